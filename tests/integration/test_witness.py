"""The witness: what it cosigns, what it refuses, and what it remembers, as C2SP tlog-witness has it."""

from __future__ import annotations

import base64
import http.client
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from deployment import WITHOUT_OVERRIDE, greatseal
from greatseal.checkpoint import Checkpoint, parse_text
from greatseal.cosignature import WitnessSigner, require_quorum
from greatseal.errors import UsageError
from greatseal.note import NoteSigner, parse_note
from greatseal.tlogwitness import MAX_REQUEST_BYTES, AddCheckpoint, parse_request
from greatseal.verification import ProofInvalid
from greatseal.witness import Reply, Witness
from outside_site import WitnessProcess
from sample_log import ORIGIN, SampleLog

NOW = 1_700_000_000


@pytest.fixture(scope="module")
def log() -> SampleLog:
    log = SampleLog()
    log.grow(40)
    return log


@pytest.fixture
def fork(log: SampleLog) -> SampleLog:
    """The same log by the same key, with another entry 10."""
    fork = SampleLog(private_key=log.private_key)
    fork.append([*log.entries[:10], b'{"another":10}', *log.entries[11:]])
    return fork


@pytest.fixture
def signer() -> WitnessSigner:
    return WitnessSigner("witness.example/w1", Ed25519PrivateKey.generate())


@pytest.fixture
def witness(signer: WitnessSigner, log: SampleLog, tmp_path: Path):
    witness = Witness(signer, [log.vkey], tmp_path, clock=lambda: NOW)
    yield witness
    witness.close()


def ask(witness: Witness, log: SampleLog, size: int, old: int, proof: tuple[bytes, ...] | None = None) -> Reply:
    if proof is None:
        proof = tuple(log.tree.prover(size).consistency(old, size)) if 0 < old < size else ()
    return witness.add_checkpoint(AddCheckpoint(old, proof, log.note(size)).body())


def test_a_log_that_grows_is_cosigned_and_the_cosignatures_verify(witness, signer, log):
    for old, size in ((0, 7), (7, 8), (8, 8), (8, 40)):
        reply = ask(witness, log, size, old)
        assert reply.status == 200, reply
        note = log.note(size) + reply.body.decode()
        assert require_quorum(note, [signer.verifier], 1) == {signer.verifier.name: NOW}


def test_another_old_size_is_answered_with_the_size_that_was_cosigned(witness, log):
    assert ask(witness, log, 20, 0).status == 200
    for old in (0, 19):
        reply = ask(witness, log, 30, old)
        assert (reply.status, reply.content_type, reply.body) == (409, "text/x.tlog.size", b"20\n")


def test_a_log_is_never_cosigned_shorter_again(witness, log):
    assert ask(witness, log, 20, 0).status == 200
    assert ask(witness, log, 19, 19).status == 409
    assert ask(witness, log, 19, 20).status == 400
    assert ask(witness, log, 19, 0).body == b"20\n"


def test_a_fork_is_never_cosigned(witness, log, fork):
    assert ask(witness, log, 20, 0).status == 200
    assert ask(witness, fork, 20, 20).status == 409  # the same size with another root
    assert ask(witness, fork, 30, 20).status == 422  # with the fork's own proof
    right = tuple(log.tree.prover(30).consistency(20, 30))
    assert ask(witness, fork, 30, 20, right).status == 422
    assert ask(witness, log, 30, 20).status == 200


@pytest.mark.parametrize("proof", [(), (b"x" * 32,), (b"x" * 32,) * 63])
def test_a_wrong_proof_is_refused_and_changes_nothing(proof, witness, log):
    assert ask(witness, log, 20, 0).status == 200
    assert ask(witness, log, 30, 20, proof).status == 422
    assert ask(witness, log, 30, 20).status == 200


def test_a_first_checkpoint_takes_no_proof(witness, log):
    assert ask(witness, log, 30, 0, (b"x" * 32,)).status == 422


def test_logs_and_keys_that_it_was_not_given_are_refused(witness, log):
    other = SampleLog("other.example/log")
    other.grow(3)
    assert ask(witness, other, 3, 0).status == 404
    forger = SampleLog(log.origin)
    forger.grow(3)
    assert ask(witness, forger, 3, 0).status == 403
    assert witness.sizes == {ORIGIN: 0}


@pytest.mark.parametrize(
    "change",
    [
        lambda body: b"",
        lambda body: body.replace(b"old 0\n", b"old 00\n"),
        lambda body: body.replace(b"old 0\n", b"old -1\n"),
        lambda body: body.replace(b"old 0\n", b"old 9223372036854775808\n"),
        lambda body: body.replace(b"old 0\n", b"old 0\nAAAA\n"),
        lambda body: body.replace(b"old 0\n", b"old 0\n" + base64.b64encode(bytes(32)) + b"\n", 1) * 2,
        lambda body: body[:-1],
        lambda body: body.replace(b"\n\n", b"\n"),
        lambda body: b"\xff" + body,
        lambda body: b"old 0\n" + (base64.b64encode(bytes(32)) + b"\n") * 64 + body[5:],
        lambda body: body + b"x" * MAX_REQUEST_BYTES,
    ],
)
def test_malformed_requests_are_refused(change, witness, log):
    body = AddCheckpoint(0, (), log.note(5)).body()
    assert witness.add_checkpoint(change(body)).status in {400, 403}
    assert witness.sizes == {ORIGIN: 0}


def test_what_a_request_says_is_read_as_it_was_written(log):
    request = AddCheckpoint(3, (b"a" * 32, b"b" * 32), log.note(5))
    assert parse_request(request.body()) == request
    with pytest.raises(ProofInvalid):
        parse_request(request.body().replace(b"old 3", b"new 3"))


def test_a_checkpoint_with_extension_lines_is_cosigned_whole(witness, signer, log):
    text = Checkpoint(ORIGIN, 5, log.tree.prover(5).root()).text() + "an extension\n"
    note = log.signer.sign(text)
    reply = witness.add_checkpoint(AddCheckpoint(0, (), note).body())
    assert reply.status == 200
    assert require_quorum(note + reply.body.decode(), [signer.verifier], 1)


def test_what_was_cosigned_is_remembered_across_restarts(witness, signer, log, fork, tmp_path):
    assert ask(witness, log, 20, 0).status == 200
    witness.close()
    again = Witness(signer, [log.vkey], tmp_path, clock=lambda: NOW)
    assert again.sizes == {ORIGIN: 20}
    assert ask(again, log, 10, 0).body == b"20\n"
    assert ask(again, fork, 20, 20).status == 409
    assert ask(again, log, 30, 20).status == 200
    again.close()


def test_two_witnesses_never_share_their_state(witness, signer, log, tmp_path):
    with pytest.raises(UsageError, match="in use by another witness"):
        Witness(signer, [log.vkey], tmp_path)


def test_a_state_that_somebody_changed_is_refused(witness, signer, log, fork, tmp_path):
    assert ask(witness, log, 20, 0).status == 200
    witness.close()
    (kept,) = tmp_path.glob("*.checkpoint")
    for text in (b"", b"nonsense", kept.read_bytes().replace(b"\n20\n", b"\n19\n"), fork.note(5).encode()[:-9]):
        kept.write_bytes(text)
        with pytest.raises(UsageError):
            Witness(signer, [log.vkey], tmp_path)


# ------------------------------------------------------------------------------------ the command


@pytest.fixture
def process(tmp_path: Path, log: SampleLog):
    process = WitnessProcess(tmp_path / "w")
    yield process.start(log.vkey.line())
    process.stop()


def post(process: WitnessProcess, body: bytes, path: str = "/add-checkpoint", **headers: str) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection(process.address, timeout=20)
    try:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        return response.status, response.headers.get_content_type(), response.read()
    finally:
        connection.close()


def test_the_command_serves_cosigns_and_goes_on_after_a_restart(process, log):
    assert post(process, AddCheckpoint(0, (), log.note(20)).body())[0] == 200
    status, kind, body = post(process, AddCheckpoint(0, (), log.note(30)).body())
    assert (status, kind, body) == (409, "text/x.tlog.size", b"20\n")
    assert process.stop() == 0
    process.start(log.vkey.line())
    assert f"{ORIGIN}: cosigned up to 20 entries" in process.stderr
    proof = tuple(log.tree.prover(30).consistency(20, 30))
    status, _, body = post(process, AddCheckpoint(20, proof, log.note(30)).body())
    assert status == 200
    note = log.note(30) + body.decode()
    assert parse_text(parse_note(note).text).size == 30
    assert f"cosigned {ORIGIN} of size 30" in process.stderr


def test_requests_over_the_bounds_are_refused_before_they_are_read(process):
    assert post(process, b"x", "/elsewhere")[0] == 404
    assert post(process, b"", **{"Content-Length": str(MAX_REQUEST_BYTES + 1)})[0] == 413
    assert post(process, b"0\r\n\r\n", **{"Transfer-Encoding": "chunked"})[0] == 411
    assert post(process, b"nonsense")[0] == 400


def test_nothing_is_cosigned_that_cannot_be_kept(tmp_path, log):
    process = WitnessProcess(tmp_path / "w")
    script = tmp_path / "unwritable"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from greatseal.cosignature import WitnessSigner\n"
        "from greatseal.note import VerifierKey\n"
        "from greatseal.witness import Witness\n"
        "state, key, vkey, body = sys.argv[1:]\n"
        "signer = WitnessSigner.from_pem('witness.example/w1', Path(key).read_bytes())\n"
        "witness = Witness(signer, [VerifierKey.parse(vkey)], Path(state))\n"
        "Path(state).chmod(0o500)\n"
        "try:\n"
        "    print(witness.add_checkpoint(Path(body).read_bytes()).status)\n"
        "except OSError as error:\n"
        "    print('kept nothing:', error.strerror, witness.sizes)\n"
    )
    state, body = tmp_path / "state", tmp_path / "body"
    state.mkdir()
    body.write_bytes(AddCheckpoint(0, (), log.note(5)).body())
    import sys

    from deployment import run

    done = run(
        *WITHOUT_OVERRIDE, sys.executable, script, state, process.directory / "witness.key", log.vkey.line(), body
    )
    assert done.stdout == f"kept nothing: Permission denied {{'{ORIGIN}': 0}}\n", done.stderr


def test_wrong_input_is_named(tmp_path, log):
    process = WitnessProcess(tmp_path / "w")
    serve = ("witness", "serve", "--state", tmp_path / "state", "--key", process.directory / "witness.key")
    for options, told in (
        (("--log-key", log.vkey.line(), "--listen", "0.0.0.0:0"), "is not loopback"),
        (("--log-key", process.vkey), "0x01 is wanted here"),
    ):
        done = greatseal(*serve, *options)
        assert done.returncode == 2, done
        assert told in done.stderr
    (process.directory / "witness.key").chmod(0o644)
    assert "chmod 600" in greatseal(*serve, "--log-key", log.vkey.line()).stderr
    again = greatseal("witness", "init", process.name, "--dir", process.directory)
    assert (again.returncode, "never replaced" in again.stderr) == (2, True)
    assert greatseal("witness", "init", "a name", "--dir", tmp_path / "x").returncode == 2


def test_a_log_may_have_two_keys(signer, log, tmp_path):
    other = SampleLog(log.origin)
    other.append(log.entries)
    witness = Witness(signer, [log.vkey, other.vkey], tmp_path, clock=lambda: NOW)
    assert ask(witness, log, 5, 0).status == 200
    assert ask(witness, other, 6, 5).status == 200
    assert NoteSigner(log.origin, other.private_key).verifier == other.vkey
    witness.close()
