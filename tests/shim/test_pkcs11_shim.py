"""The shim itself: what it counts and how it misbehaves. The fault tests rest on this."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pkcs11_shim
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

pytestmark = [pytest.mark.shim, pytest.mark.softhsm]

PROBE = Path(__file__).with_name("shim_probe.py")
PIN = "1234-right"
DIGESTS = [hashlib.sha256(bytes([number])).digest() for number in range(8)]


@dataclass(frozen=True)
class Bench:
    """A SoftHSM token with one P-256 key behind a shim."""

    shim: pkcs11_shim.Shim
    conf: Path
    public: ec.EllipticCurvePublicKey

    def start(self, *, pin: str = PIN, digests: list[bytes] = DIGESTS, threads: int = 1) -> subprocess.Popen[str]:
        command = [sys.executable, str(PROBE), self.shim.module, "shimtest", pin, "k", str(threads)]
        environment = {**os.environ, **self.shim.environment, "SOFTHSM2_CONF": str(self.conf)}
        command += [digest.hex() for digest in digests]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    def run(self, **arguments: object) -> dict[str, object]:
        with self.start(**arguments) as process:  # type: ignore[arg-type]
            output, _ = process.communicate(timeout=30)
        assert process.returncode == 0, f"the probe ended with {process.returncode}"
        return json.loads(output)  # type: ignore[no-any-return]

    def verifies(self, digest: bytes, signature: bytes) -> bool:
        half = len(signature) // 2
        der = utils.encode_dss_signature(
            int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
        )
        try:
            self.public.verify(der, digest, ec.ECDSA(utils.Prehashed(SHA256())))
        except Exception:  # noqa: BLE001 -- any refusal is a refusal
            return False
        return True


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ec.EllipticCurvePublicKey]:
    directory = tmp_path_factory.mktemp("token")
    (directory / "tokens").mkdir()
    conf = directory / "softhsm2.conf"
    conf.write_text(f"directories.tokendir = {directory}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n")
    environment = {**os.environ, "SOFTHSM2_CONF": str(conf)}

    def run(*command: str) -> None:
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    run("softhsm2-util", "--init-token", "--free", "--label", "shimtest", "--pin", PIN, "--so-pin", "so-pin-00")
    tool = ("pkcs11-tool", "--module", pkcs11_shim.softhsm_module(), "--token-label", "shimtest", "--pin", PIN)
    run(*tool, "--login", "--keypairgen", "--key-type", "EC:prime256v1", "--label", "k", "--id", "01")
    run(*tool, "--read-object", "--type", "pubkey", "--label", "k", "--output-file", str(directory / "k.der"))
    public = load_der_public_key((directory / "k.der").read_bytes())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    return conf, public


@pytest.fixture
def bench(tmp_path: Path, token: tuple[Path, ec.EllipticCurvePublicKey]) -> Bench:
    return Bench(pkcs11_shim.Shim(tmp_path / "shim"), *token)


def test_counts_each_signature_once_with_its_digest_and_login(bench: Bench) -> None:
    answer = bench.run()
    calls = bench.shim.signatures()
    assert [call.digest for call in calls] == DIGESTS
    assert [call.signature.hex() for call in calls] == answer["signatures"]
    assert all(bench.verifies(call.digest, call.signature) for call in calls)
    assert [call.rv for call in bench.shim.logins()] == [pkcs11_shim.CKR_OK]


def test_sessions_on_several_threads_keep_the_ledger_whole(bench: Bench) -> None:
    digests = [hashlib.sha256(b"%d" % number).digest() for number in range(400)]
    answer = bench.run(digests=digests, threads=4)
    calls = bench.shim.signatures()
    assert sorted(call.digest for call in calls) == sorted(digests)
    assert sorted(call.signature.hex() for call in calls) == sorted(answer["signatures"])  # type: ignore[call-overload]
    assert len({call.thread for call in calls}) > 1


def test_return_value_once_then_no_more(bench: Bench) -> None:
    rule = bench.shim.rule("C_Sign", "rv", pkcs11_shim.CKR_DEVICE_ERROR, after=2, times=1)
    assert bench.run()["error"] == "DeviceError"
    assert len(bench.shim.signatures()) == 2
    assert "signatures" in bench.run()  # the counter outlives the process
    assert bench.shim.hits(rule) == 3 + len(DIGESTS)


def test_late_error_signs_and_then_says_no(bench: Bench) -> None:
    bench.shim.rule("C_Sign", "late", pkcs11_shim.CKR_FUNCTION_FAILED)
    assert bench.run()["error"] == "FunctionFailed"
    assert len(bench.shim.signatures()) == 1


def test_rule_for_one_digest_leaves_the_others_alone(bench: Bench) -> None:
    bench.shim.rule("C_Sign", "flip", digest=DIGESTS[3][:4])
    signatures = [bytes.fromhex(text) for text in bench.run()["signatures"]]  # type: ignore[attr-defined]
    verdicts = [bench.verifies(digest, signature) for digest, signature in zip(DIGESTS, signatures, strict=True)]
    assert verdicts == [number != 3 for number in range(len(DIGESTS))]


@pytest.mark.parametrize("action, expected", [("segv", -signal.SIGSEGV), ("abort", -signal.SIGABRT), ("exit", 7)])
def test_crash_ends_the_process(bench: Bench, action: str, expected: int) -> None:
    bench.shim.rule("C_Sign", action, after=1)
    with bench.start() as process:
        process.communicate(timeout=30)
    assert process.returncode == expected
    assert len(bench.shim.signatures()) == 1


def test_hang_holds_the_caller_until_it_is_killed(bench: Bench) -> None:
    rule = bench.shim.rule("C_Sign", "hang")
    with bench.start() as process:
        reached = threading.Event()
        for _ in range(3000):
            if bench.shim.hits(rule):
                break
            reached.wait(0.01)
        assert bench.shim.hits(rule) == 1
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        process.kill()
        process.communicate(timeout=30)
    assert bench.shim.signatures() == []


def test_lockout_after_wrong_pins_even_for_the_right_one(bench: Bench) -> None:
    bench.shim.rule("C_Login", "lockout", 2)
    assert bench.run(pin="wrong-1")["error"] == "PinIncorrect"
    assert "signatures" in bench.run()  # a right one clears the count
    assert bench.run(pin="wrong-1")["error"] == "PinIncorrect"
    assert bench.run(pin="wrong-2")["error"] == "PinIncorrect"
    assert bench.shim.wrong_pins() == 2
    assert bench.run()["error"] == "PinLocked"


def test_session_limit(tmp_path: Path, token: tuple[Path, ec.EllipticCurvePublicKey]) -> None:
    bench = Bench(pkcs11_shim.Shim(tmp_path / "shim", max_sessions=3), *token)
    assert "signatures" in bench.run(threads=3)
    assert bench.run(threads=4)["error"] == "SessionCount"


def test_initialisation_string_is_demanded(tmp_path: Path, token: tuple[Path, ec.EllipticCurvePublicKey]) -> None:
    bench = Bench(pkcs11_shim.Shim(tmp_path / "shim", init_args="parameters=x"), *token)
    assert "0x7" in str(bench.run()["text"])


def test_token_gone(bench: Bench) -> None:
    bench.shim.unplug()
    assert bench.run()["error"] == "NoSuchToken"
    bench.shim.lift_all()
    assert "signatures" in bench.run()
