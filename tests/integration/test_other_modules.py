"""Modules that are not SoftHSM: NSS's own token, and a token behind p11-kit's remoting, as network HSMs are.

NSS wants a parameter string at C_Initialize, has objects of classes of its own, and leaves the label
off private keys. p11-kit's client makes a new connection for whoever asks for its function list, and
loses all sessions when that connection is cut.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployment import Deployment, clean_environment, run

LIBRARIES = Path("/usr/lib") / (os.uname().machine + "-linux-gnu")
SOFTOKN = LIBRARIES / "libsoftokn3.so"
P11_KIT_CLIENT = LIBRARIES / "pkcs11" / "p11-kit-client.so"
DIGEST = hashlib.sha256(b"anything").hexdigest()


def sign_and_verify(deployment: Deployment, key: str, directory: Path) -> None:
    """Have a digest signed by the key through the command, and verify receipt and signature offline."""
    receipt = directory / "receipt.json"
    pem = directory / "key.pem"
    signed = deployment.client("sign", "digest", "--sha256", DIGEST, "--key", key, "--receipt", receipt)
    assert signed.returncode == 0, signed.stderr
    pem.write_text(deployment.client("keys", "public", key).stdout)
    receipt_check = deployment.client(
        "receipt", "verify", receipt, "--log-key", deployment.log_vkey, "--public-key", pem, "--digest", DIGEST
    )
    assert receipt_check.returncode == 0, receipt_check.stderr


def certutil(*arguments: str | Path) -> None:
    done = run("certutil", *arguments)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def nss(deployment: Deployment, tmp_path: Path) -> Deployment:
    """An installation with a second token: an NSS database with one P-256 key, named only by its certificate."""
    database = tmp_path / "nss"
    database.mkdir()
    pin = deployment.directory / "nss-pin"
    pin.touch(mode=0o600)
    pin.write_text(secrets.token_hex(8))
    noise = tmp_path / "noise"
    noise.write_bytes(os.urandom(64))
    certutil("-N", "-d", f"sql:{database}", "-f", pin)
    certutil(
        *("-S", "-n", "archive", "-s", "CN=archive", "-x", "-t", ",,", "-m", "1", "-k", "ec", "-q", "nistp256"),
        *("-d", f"sql:{database}", "-f", pin, "-z", noise),
    )
    deployment.append(
        f"""
[[tokens]]
name = "nss"
type = "pkcs11"
uri = "pkcs11:token=NSS%20Certificate%20DB"
module = "{SOFTOKN}"
init_args = "configdir='sql:{database}' certPrefix='' keyPrefix='' secmod='secmod.db' flags="
pin_file = "nss-pin"

[[keys]]
name = "archive"
token = "nss"
uri = "pkcs11:object=archive"
algorithms = ["ecdsa-p256-sha256"]

[[keys]]
name = "absent"
token = "nss"
uri = "pkcs11:object=absent"
algorithms = ["ecdsa-p256-sha256"]

[[allow]]
client = "spiffe://greatseal.local/pipeline"
actions = ["signBlind", "readKeys"]
keys = ["archive", "absent"]
"""
    )
    return deployment


def test_a_key_in_nss_signs_though_only_its_certificate_is_labelled(nss: Deployment, tmp_path: Path) -> None:
    with nss.running():
        sign_and_verify(nss, "keys/archive", tmp_path)


def test_a_key_that_nss_does_not_have_is_named_with_what_there_is(nss: Deployment) -> None:
    with nss.running():
        done = nss.client("--timeout", "2", "sign", "digest", "--sha256", DIGEST, "--key", "keys/absent")
        assert done.returncode == 5
        assert "no private key fits pkcs11:object=absent" in done.stderr
        assert "'archive'" in done.stderr


@pytest.fixture
def remote(deployment: Deployment, tmp_path: Path) -> Iterator[tuple[Deployment, subprocess.Popen[bytes]]]:
    """An installation whose token stands behind p11-kit's remoting, and the process that serves it."""
    socket = tmp_path / "p11"
    server = subprocess.Popen(
        [
            *("p11-kit", "server", "--foreground", "--provider", "/usr/lib/softhsm/libsofthsm2.so"),
            *("--name", str(socket), "pkcs11:token=greatseal"),
        ],
        env=clean_environment({"SOFTHSM2_CONF": str(deployment.directory / "tokens/soft/softhsm2.conf")}),
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert server.stdout is not None
    assert b"P11_KIT_SERVER_ADDRESS" in server.stdout.readline()
    deployment.edit(r'^module = ".*"', f'module = "{P11_KIT_CLIENT}"')
    deployment.edit(r"^environment = .*$", f'environment = {{ P11_KIT_SERVER_ADDRESS = "unix:path={socket}" }}')
    yield deployment, server
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    server.stdout.close()


def connections(server: subprocess.Popen[bytes]) -> list[int]:
    """The processes that p11-kit's server has forked, one for each connection."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text()
    return [int(child) for child in re.findall(r"\d+", children)]


def test_a_remote_token_signs_and_comes_back_after_its_line_was_cut(
    remote: tuple[Deployment, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    deployment, server = remote
    with deployment.running():
        sign_and_verify(deployment, "keys/scratch", tmp_path)
        cut = connections(server)
        assert cut
        for child in cut:
            os.kill(child, signal.SIGKILL)
        sign_and_verify(deployment, "keys/scratch", tmp_path)
