"""A daemon with witnesses: what waits for them and what does not, and that a log which they did not see grow signs nothing."""

from __future__ import annotations

import json
import shutil
import threading
import uuid
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from deployment import Deployment, greatseal
from front_site import connected, digest_request, logged, pipeline, reason_of, wait_for
from greatseal.checkpoint import open_checkpoint
from greatseal.cosignature import WitnessKey, WitnessSigner, cosigned_by, require_quorum
from greatseal.note import VerifierKey, parse_note
from greatseal.tlogwitness import parse_request
from greatseal.v1 import audit_pb2, audit_pb2_grpc, signing_pb2, signing_pb2_grpc
from outside_site import Answering, BlackHole, WitnessProcess, table, witnessed

pytestmark = pytest.mark.softhsm
Code = grpc.StatusCode


class Site:
    """A deployment with witnesses beside it."""

    def __init__(self, directory: Path, names: tuple[str, ...] = ("w1",)) -> None:
        self.daemon = Deployment.create(directory)
        self.vkey = VerifierKey.parse(self.daemon.log_vkey.read_text())
        self.witnesses = [WitnessProcess(directory / name, f"witness.example/{name}") for name in names]
        for witness in self.witnesses:
            witness.start(self.daemon.log_vkey)
        self.keys = [WitnessKey.parse(witness.vkey) for witness in self.witnesses]

    def close(self) -> None:
        self.daemon.close()
        for witness in self.witnesses:
            witness.stop()

    def add(self, **more: object) -> None:
        for witness in self.witnesses:
            self.daemon.append(witness.table(**more))

    def sign(self, text: str, request_id: str = "", timeout: float = 15) -> signing_pb2.Signature:
        with connected(self.daemon, pipeline(self.daemon)) as channel:
            return signing_pb2_grpc.SigningServiceStub(channel).SignDigest(
                digest_request(text, request_id=request_id), timeout=timeout
            )

    def checkpoint(self, cosignatures: int = 0) -> audit_pb2.Checkpoint:
        with connected(self.daemon, pipeline(self.daemon)) as channel:
            return audit_pb2_grpc.AuditServiceStub(channel).GetCheckpoint(
                audit_pb2.GetCheckpointRequest(cosignatures=cosignatures), timeout=15
            )

    def refusal(self, text: str = "refused", request_id: str = "", timeout: float = 15) -> tuple[Code, str, str]:
        with pytest.raises(grpc.RpcError) as caught:
            self.sign(text, request_id, timeout)
        return (*reason_of(caught.value), caught.value.details())

    def start_refused(self) -> str:
        """Start, and return the last line of why it did not."""
        self.daemon.start(wait=False)
        assert self.daemon.wait_exit() == 6, self.daemon.stderr
        return self.daemon.stderr.splitlines()[-1]


@pytest.fixture
def site(tmp_path: Path):
    made: list[Site] = []

    def make(*names: str) -> Site:
        made.append(Site(tmp_path, names or ("w1",)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_witnessed_key_waits_for_its_witnesses_and_for_no_others(site):
    """Two of three, one of which takes connections and says nothing; other keys wait for none."""
    site = site("w1", "w2")
    hole = BlackHole()
    silent = WitnessSigner("witness.example/silent", Ed25519PrivateKey.generate()).verifier.line()
    site.add()
    site.daemon.append(table("witnesses", vkey=silent, url=f"http://{hole.address}", timeout=1))
    witnessed(site.daemon, "scratch", 2)
    with site.daemon.running():
        for number in range(3):
            signature = site.sign(f"file {number}")
            note = signature.receipt.checkpoint
            assert open_checkpoint(note, site.vkey).size > signature.receipt.outcome_index
            assert set(require_quorum(note, site.keys, 2)) == {"witness.example/w1", "witness.example/w2"}
        checkpoint = site.checkpoint(2)
        assert len(cosigned_by(checkpoint.note, site.keys)) == 2
        alarm = wait_for(lambda: logged(site.daemon, "anchor_unreachable"))[0]
        assert (alarm["anchor"], alarm["kind"]) == ("witness.example/silent", "witness")

        options = [part for witness in site.witnesses for part in ("--witness", witness.vkey_file)]
        receipt = site.daemon.directory / "receipt.json"
        done = site.daemon.client("sign", "digest", "--sha256", "ab" * 32, "--key", "scratch", "--receipt", receipt)
        assert done.returncode == 0, done.stderr
        verify = ("receipt", "verify", receipt, "--log-key", site.daemon.log_vkey)
        assert greatseal(*verify, *options).returncode == 0
        assert greatseal(*verify, *options, "--witness", silent, "--quorum", "2").returncode == 0
        refused = greatseal(*verify, *options, "--witness", silent)
        assert (refused.returncode, "by 2 of the 3 witnesses" in refused.stderr) == (6, True), refused.stderr
        assert greatseal(*verify, *options, "--quorum", "3").returncode == 2
        shown = site.daemon.client("audit", "checkpoint", *options, "--json")
        assert set(json.loads(shown.stdout)["witnesses"]) == {"witness.example/w1", "witness.example/w2"}
        refused = site.daemon.client("--timeout", "2", "audit", "checkpoint", "--witness", silent)
        assert (refused.returncode, "WITNESSES_MISSING" in refused.stderr) == (5, True), refused.stderr
    hole.close()


def test_without_witnesses_the_outcome_stands_and_a_retry_releases_it_and_other_keys_sign(site):
    site = site()
    site.add(timeout=5)
    witnessed(site.daemon, "scratch", 1)
    site.witnesses[0].stop()
    site.daemon.start()
    request_id = str(uuid.uuid4())
    code, reason, details = site.refusal("waits", request_id)
    assert (code, reason) == (Code.UNAVAILABLE, "WITNESSES_MISSING")
    assert "ask again with the same request id" in details
    assert site.refusal("waits", request_id)[:2] == (Code.UNAVAILABLE, "WITNESSES_MISSING")
    # The other key is not held up, and gRPC health says that the daemon serves.
    model = site.daemon.directory / "model"
    model.mkdir()
    (model / "weights").write_bytes(b"w")
    assert site.daemon.client("sign", "model", model, "--key", "release").returncode == 0
    site.witnesses[0].start(site.daemon.log_vkey)
    released = wait_for(lambda: _or_none(lambda: site.sign("waits", request_id)))
    assert released.replayed
    assert require_quorum(released.receipt.checkpoint, site.keys, 1)
    assert logged(site.daemon, "anchor_reached_again")
    # One intent, one outcome: nothing was signed a second time.
    shown = site.daemon.client("audit", "list", "--json", "--key", "scratch", "--type", "outcome")
    assert len(shown.stdout.splitlines()) == 1


def _or_none(call):
    try:
        return call()
    except grpc.RpcError:
        return None


def test_a_caller_with_little_time_gets_the_reason_and_a_black_hole_holds_up_no_other_key(site):
    site = site()
    hole = BlackHole()
    silent = WitnessSigner("witness.example/silent", Ed25519PrivateKey.generate()).verifier.line()
    site.daemon.append(table("witnesses", vkey=silent, url=f"http://{hole.address}", timeout=30))
    site.daemon.edit(r'^name = "release"(.*)$', r'name = "release"\1\nrelease = "witnessed(1)"')
    site.daemon.start(wait=False)
    # A start asks every witness once, for as long as that one may take.
    wait_for(lambda: hole.taken)
    for each in hole.taken:
        each.close()
    site.daemon.wait_ready()
    results: list[int] = []
    model = site.daemon.directory / "model"
    model.mkdir()
    (model / "weights").write_bytes(b"w")
    waiting = threading.Thread(
        target=lambda: results.append(
            site.daemon.client("--timeout", "3", "sign", "model", model, "--key", "release").returncode
        )
    )
    waiting.start()
    wait_for(lambda: len(hole.taken) > 1)
    for number in range(5):
        site.sign(f"other {number}")  # while the call above waits
    assert not results
    waiting.join()
    assert results == [5]
    hole.close()


def test_an_old_copy_is_refused_though_the_file_anchor_is_gone(site):
    site = site()
    site.add(timeout=10)
    site.daemon.start()
    site.sign("first")
    site.daemon.stop()
    copy = site.daemon.directory / "copy.db"
    shutil.copy(site.daemon.database, copy)
    site.daemon.start()
    for number in range(3):
        site.sign(f"later {number}")
    site.checkpoint(1)
    site.daemon.stop()
    anchor = site.daemon.directory / "anchor"
    shutil.copy(copy, site.daemon.database)
    for left in site.daemon.database.parent.glob("log.db-*"):
        left.unlink()
    (anchor / "released").unlink()
    # What the daemon itself remembers of the witness refuses it, without asking anybody ...
    site.witnesses[0].stop()
    told = site.start_refused()
    assert "witness.example/w1 has seen" in told
    assert "Restore the newest copy" in told
    # ... and where that is gone too, the witness does.
    (anchor / "released.seen").unlink()
    site.witnesses[0].start(site.daemon.log_vkey)
    told = site.start_refused()
    assert "witness witness.example/w1 has cosigned" in told
    assert "the database is an older copy" in told
    # A database that begins anew is an older copy, too.
    (anchor / "released.seen").unlink()
    (anchor / "released").unlink()
    site.daemon.database.unlink()
    assert "and the log has 0" in site.start_refused()
    # Had it been unreachable at the next start, the disagreement would still stand.
    site.witnesses[0].stop()
    assert "cannot be asked now whether that is settled" in site.start_refused()


def test_a_fork_that_began_while_the_witness_was_away_stops_the_signing_when_it_is_back(site):
    site = site()
    site.add(timeout=10)
    site.daemon.edit(r"^reserve_bytes", "witness_interval = 0.2\nreserve_bytes")
    site.daemon.start()
    site.sign("first")
    site.daemon.stop()
    copy = site.daemon.directory / "copy.db"
    shutil.copy(site.daemon.database, copy)
    site.daemon.start()
    site.sign("on one branch")
    site.checkpoint(1)
    site.daemon.stop()
    shutil.copy(copy, site.daemon.database)
    for left in [*site.daemon.database.parent.glob("log.db-*"), *(site.daemon.directory / "anchor").iterdir()]:
        left.unlink()
    site.witnesses[0].stop()
    site.daemon.start()  # an unreachable witness is an alarm
    for number in range(5):
        site.sign(f"on the other branch {number}")
    site.witnesses[0].start(site.daemon.log_vkey)
    wait_for(lambda: logged(site.daemon, "anchor_disagrees"))
    code, reason, details = site.refusal()
    assert (code, reason) == (Code.FAILED_PRECONDITION, "ANCHOR_DISAGREES")
    assert details.startswith("nothing is signed, for an anchor disagrees with the log: witness witness.example/w1 has")
    (why,) = {record["why"] for record in wait_for(lambda: logged(site.daemon, "not_serving"))}
    assert "witness.example/w1" in why
    assert site.checkpoint().size  # the log can be read: it is the evidence
    site.daemon.stop()
    assert "witness.example/w1" in site.start_refused()


def test_forged_cosignatures_and_those_of_another_checkpoint_count_for_nothing(site):
    """The neighbour on the witness's address answers with lines that verify nowhere, or elsewhere."""
    site = site()
    private = Ed25519PrivateKey.generate()
    signer = WitnessSigner("witness.example/false", private)
    forger = WitnessSigner("witness.example/false", Ed25519PrivateKey.generate())
    lines = []

    def answer(_path: str, body: bytes) -> tuple[int, str, bytes]:
        text = parse_note(parse_request(body).note).text
        lines.append(text)
        other = text.replace("\n", "\n1", 1)
        line = forger.cosign(text, 1) if len(lines) % 2 else signer.cosign(other, 1)
        return 200, "text/plain", line.encode()

    false = Answering(answer)
    site.daemon.append(table("witnesses", vkey=signer.verifier.line(), url=false.url))
    witnessed(site.daemon, "scratch", 1)
    with site.daemon.running():
        request_id = str(uuid.uuid4())
        assert site.refusal("x", request_id)[1] == "WITNESSES_MISSING"
        assert wait_for(lambda: site.refusal("x", request_id)[1] == "WITNESSES_MISSING" and len(lines) > 2)
        why = {str(record["why"]) for record in logged(site.daemon, "anchor_unreachable")}
        assert any("without a cosignature of its key" in each or "a wrong cosignature" in each for each in why)
    false.close()
