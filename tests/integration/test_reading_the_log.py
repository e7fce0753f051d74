"""Reading the log as people and scripts do: filters, a tail over restarts, proofs that others check."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deployment import SCRIPTS, Deployment, clean_environment, greatseal
from greatseal.checkpoint import Checkpoint
from greatseal.note import NoteSigner
from greatseal.tlog import leaf_hash

VERIFIER = Path(__file__).resolve().parents[2] / "clients" / "verifier" / "greatseal_verify.py"
pytestmark = pytest.mark.softhsm


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _sign(deployment: Deployment, text: str, key: str = "scratch") -> int:
    done = deployment.client("sign", "digest", "--sha256", _digest(text), "--key", key)
    return done.returncode


@pytest.fixture(scope="module")
def written(shared_deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """A log with three blind signatures, a denial and a model."""
    for number in range(3):
        assert _sign(shared_deployment, f"file {number}") == 0
    assert _sign(shared_deployment, "refused", "release") == 3
    model = tmp_path_factory.mktemp("models") / "llama-tiny"
    model.mkdir()
    (model / "weights").write_bytes(b"w")
    assert shared_deployment.client("sign", "model", model).returncode == 0
    return shared_deployment


def _list(deployment: Deployment, *options: str) -> list[dict[str, Any]]:
    done = deployment.client("audit", "list", "--json", *options)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        (("--result", "denied"), ["denied"]),
        (("--key", "scratch", "--result", "signed"), ["outcome"] * 3),
        (("--key", "keys/scr*", "--type", "intent"), ["intent"] * 3),
        (("--model", "llama-tiny"), ["intent", "outcome"]),
        (("--model", "llama*", "--type", "outcome"), ["outcome"]),
        (("--digest", _digest("file 1")[:8]), ["intent", "outcome"]),
        (("--digest", _digest("file 1").upper(), "--type", "outcome"), ["outcome"]),
        (("--caller", "spiffe://greatseal.local/pipeline", "--type", "denied"), ["denied"]),
        (("--caller", "nobody"), []),
        (("--until", "1d"), []),
        (("--since", "1h", "--key", "release", "--type", "outcome", "--type", "denied"), ["denied", "outcome"]),
    ],
)
def test_filters_choose_entries(written: Deployment, options: tuple[str, ...], kinds: list[str]):
    found = _list(written, *options)
    assert [each["entry"]["t"] for each in found] == kinds
    assert all(each["intent"]["t"] == "intent" for each in found if each["entry"]["t"] == "outcome")
    backwards = _list(written, "--reverse", *options)
    assert [each["index"] for each in backwards] == [each["index"] for each in found][::-1]


def test_an_intent_and_its_outcome_are_one_row(written: Deployment):
    done = written.client("audit", "list", "--limit", "5")
    header, *rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert header == ["INDEX", "TIME", "CALLER", "KEY", "WHAT", "RESULT"]
    assert [row[-1] for row in rows] == ["signed", "signed", "signed", "denied: ACCESS_DENIED", "signed"]
    assert [row[3] for row in rows] == ["scratch"] * 3 + ["release"] * 2
    assert rows[-1][4] == "llama-tiny"
    assert rows[0][4] == f"digest {_digest('file 0')[:16]}…"
    first = written.client("audit", "list", "--from", rows[0][0], "--limit", "1").stdout.splitlines()[1]
    assert first.split("\t") == rows[0]


def test_raw_gives_the_bytes_that_the_leaf_hash_is_of(written: Deployment):
    for each in _list(written, "--raw", "--limit", "0"):
        data = base64.b64decode(each["data"])
        assert leaf_hash(data).hex() == each["leaf_hash"]
        assert json.loads(data) == each["entry"]


@pytest.mark.parametrize(
    "wrong",
    [
        ("--digest", "1234567"),
        ("--digest", "xyz" * 5),
        ("--result", "good"),
        ("--type", "x"),
        ("--since", "yesterday"),
        ("--since", "1969-01-01"),
        ("--since", "999999999w"),
        ("--since", "1h", "--until", "2h"),
        ("--key", "k" * 300),
        ("--limit", "-1"),
    ],
)
def test_a_wrong_filter_is_refused_with_a_reason(written: Deployment, wrong: tuple[str, ...]):
    done = written.client("audit", "list", *wrong)
    assert done.returncode == 2
    assert done.stdout == ""
    assert wrong[0].lstrip("-") in done.stderr


def _size(deployment: Deployment, *options: str | Path) -> int:
    done = deployment.client("--json", "audit", "checkpoint", *options)
    return int(json.loads(done.stdout)["size"])


def test_a_proof_that_was_written_verifies_offline_and_no_other_entry_does(written: Deployment, tmp_path: Path):
    proof, entry = tmp_path / "proof", tmp_path / "entry"
    done = written.client("audit", "prove", "3", "--output", proof, "--entry", entry)
    assert done.returncode == 0, done.stderr
    assert proof.read_text().startswith("c2sp.org/tlog-proof@v1\nindex 3\n")
    vkey = written.directory / "log" / "log.vkey"
    done = greatseal("verify", "entry", entry, "--proof", proof, "--log-key", vkey, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["index"] == 3
    for path, data in (
        (entry, entry.read_bytes().replace(b"1", b"2", 1)),
        (entry, b""),
        (proof, proof.read_bytes().replace(b"index 3", b"index 4")),
        (proof, proof.read_bytes().replace(b"greatseal.local/log", b"greatseal.local/lug")),
        (proof, b"\xff"),
        (proof, b""),
    ):
        kept = path.read_bytes()
        path.write_bytes(data)
        done = greatseal("verify", "entry", entry, "--proof", proof, "--log-key", vkey)
        assert done.returncode == 6, (path, data, done.stderr)
        path.write_bytes(kept)
    assert greatseal("verify", "entry", entry, "--proof", proof, "--log-key", vkey).returncode == 0


def test_an_entry_is_proven_in_earlier_trees_too(written: Deployment, tmp_path: Path):
    checkpoint, proof = tmp_path / "checkpoint", tmp_path / "proof"
    size = _size(written, "--output", checkpoint)
    assert _sign(written, "one more") == 0
    for earlier in (3, 4, size):
        done = written.client("audit", "prove", "2", "--size", str(earlier), "--json")
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert (said["size"], said["checkpoint"]) == (earlier, None)
        # Nothing signed is at hand for that size, and the file is to hold a checkpoint.
        refused = written.client("audit", "prove", "2", "--size", str(earlier), "--output", proof)
        assert refused.returncode == 2
        assert "--output" in refused.stderr
    done = written.client("audit", "prove", "2", "--checkpoint", checkpoint, "--output", proof)
    assert done.returncode == 0, done.stderr
    assert proof.read_text().endswith(checkpoint.read_text())


def test_consistency_is_proven_between_sizes_and_kept_checkpoints(written: Deployment, tmp_path: Path):
    checkpoint, proof = tmp_path / "checkpoint", tmp_path / "proof"
    size = _size(written, "--output", checkpoint)
    assert _sign(written, "and one more") == 0
    for old, new in ((checkpoint, None), ("1", checkpoint), ("4", "7"), (str(size), None), ("5", "5")):
        done = written.client("audit", "prove", "--consistency", old, *([new] if new else []), "--json")
        assert done.returncode == 0, done.stderr
    done = written.client("audit", "prove", "--consistency", checkpoint, "--output", proof)
    assert done.returncode == 0, done.stderr
    assert proof.read_text().startswith(f"old {size}\n")
    # Signed by the log's key, and of another tree: what a forked log would show.
    signer = NoteSigner.from_pem("greatseal.local/log", (written.directory / "log" / "log.key").read_bytes())
    checkpoint.write_text(Checkpoint("greatseal.local/log", size, b"f" * 32).sign(signer))
    assert written.client("audit", "prove", "--consistency", checkpoint).returncode == 6
    assert written.client("audit", "prove", "1", "--checkpoint", checkpoint).returncode == 6
    checkpoint.write_text(Checkpoint("greatseal.local/log", 10**6, b"f" * 32).sign(signer))
    assert written.client("audit", "prove", "--consistency", checkpoint).returncode == 6
    assert written.client("audit", "prove", "1", "--checkpoint", checkpoint).returncode == 6
    assert written.client("audit", "verify", "--from", "2", "--checkpoint", checkpoint).returncode == 6


@pytest.mark.parametrize(
    "wrong",
    [
        ("99999",),
        ("x",),
        ("1", "2"),
        ("-1",),
        ("9" * 30,),
        ("5", "--size", "5"),
        ("1", "--size", "99999"),
        ("--consistency", "7", "4"),
        ("--consistency", "0"),
        ("--consistency", "99999"),
        ("--consistency", "1", "2", "3"),
        ("--consistency", "/nowhere"),
        (),
    ],
)
def test_what_cannot_be_proven_is_refused_with_a_reason(written: Deployment, wrong: tuple[str, ...]):
    done = written.client("audit", "prove", *wrong)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr


def test_the_end_of_the_log_is_verified_alone(written: Deployment, tmp_path: Path):
    checkpoint = tmp_path / "checkpoint"
    size = _size(written, "--output", checkpoint)
    assert _sign(written, "the last") == 0
    for start in ("3", str(size - 1), str(size)):
        done = written.client("audit", "verify", "--from", start, "--checkpoint", checkpoint, "--json")
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert (said["from"], said["checkpoints"]) == (int(start), 2)
    assert written.client("audit", "verify", "--from", "99999").returncode == 2


def test_an_export_is_verified_without_the_daemon_by_two_programs(written: Deployment, tmp_path: Path):
    export, vkey, keys = tmp_path / "export", written.directory / "log" / "log.vkey", written.directory / "keys"
    for _ in range(2):
        done = written.client("audit", "export", export, "--json")
        assert done.returncode == 0, done.stderr
        assert _sign(written, "after the export") == 0
    assert json.loads(done.stdout)["new"] == 2
    verify = ("audit", "verify", "--directory", export, "--log-key", vkey, "--keys", keys)
    done = greatseal(*verify, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["signatures_verified"] == said["counts"]["outcome signed"] >= 5
    lone = [sys.executable, VERIFIER, export, "--log-key", vkey, "--keys", keys]
    done = subprocess.run(lone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"signatures: {said['signatures_verified']} verified, 0 not checked" in done.stdout
    bundle = next((export / "tile" / "entries").rglob(str(said["size"])))
    bundle.write_bytes(bundle.read_bytes().replace(b"pipeline", b"pipelime", 1))
    for done in (greatseal(*verify), subprocess.run(lone, capture_output=True, text=True, check=False)):
        assert done.returncode == 6
        assert "bad from entry 2 on" in done.stderr


class _Follower:
    """`audit tail -f --json`, read line by line."""

    def __init__(self, deployment: Deployment, *options: str) -> None:
        command = [SCRIPTS / "greatseal", "--profile", deployment.profile, "audit", "tail", "-f", "--json"]
        self.process = subprocess.Popen(
            [*command, "--interval", "0.1", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=clean_environment(),
            text=True,
        )

    def until(self, digest: str) -> list[int]:
        """Read up to the outcome of a digest; return the indexes."""
        assert self.process.stdout is not None
        found = []
        for line in self.process.stdout:
            item = json.loads(line)
            found.append(item["index"])
            if item["entry"]["t"] == "outcome" and item["entry"]["tbs"] == digest:
                return found
        raise AssertionError(self.process.communicate()[1])

    def end(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=30)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Deployment]:
    deployment = Deployment.create(tmp_path)
    try:
        deployment.start()
        yield deployment
    finally:
        deployment.close()


def test_a_tail_goes_over_kills_of_the_daemon_without_gap_or_repeat(own: Deployment):
    followers = [_Follower(own, "--from", "0"), _Follower(own, "--from", "0", "--key", "scratch")]
    try:
        seen: list[list[int]] = [[], []]
        for turn in range(2):
            assert _sign(own, f"turn {turn}") == 0
            for number, follower in enumerate(followers):
                seen[number] += follower.until(_digest(f"turn {turn}"))
            if turn == 0:
                own.kill()
                own.start()
        assert seen[0] == list(range(seen[0][-1] + 1))
        assert seen[1] == [each["index"] for each in _list(own, "--key", "scratch", "--limit", "0")]
    finally:
        for follower in followers:
            follower.end()
