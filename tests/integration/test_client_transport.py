"""Both clients over real gRPC with mutual TLS, against a peer that fails as a daemon or a network does."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from client_peer import Peer, refusal, served
from greatseal import AsyncClient, Client, DigestRequest, errors
from greatseal.cli import main
from greatseal.profile import Profile
from greatseald.adapters import pki
from sample_log import SampleLog

DIGEST = hashlib.sha256(b"something").digest()


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
def profile(peer: Peer, tmp_path: Path) -> Iterator[Profile]:
    with served(peer, tmp_path, checkpoint_file=tmp_path / "checkpoint", timeout=20) as profile:
        yield profile


def test_a_call_is_sent_again_until_it_is_answered(peer: Peer, profile: Profile):
    peer.faults = [refusal("UNAVAILABLE", "OVERLOADED", retry_after=0.01), refusal("ABORTED", "X", retry_after=0.01)]
    told: list[errors.DaemonError] = []
    with Client(profile, on_retry=lambda _seconds, error: told.append(error)) as client:
        signature = client.sign_digest("keys/release", DIGEST)
    signature.receipt.verify(peer.log.vkey, public_key=peer.key.public_key(), digest=DIGEST)
    assert [error.reason for error in told] == ["OVERLOADED", "X"]
    assert len({request.request_id for method, request in peer.calls if method == "SignDigest"}) == 1


def test_an_error_arrives_whole(peer: Peer, profile: Profile):
    peer.faults = [refusal("PERMISSION_DENIED", "ACCESS_DENIED", "not allowed", action="sign")]
    with Client(profile) as client, pytest.raises(errors.Denied) as caught:
        client.sign_digest("keys/release", DIGEST)
    assert (caught.value.reason, caught.value.message) == ("ACCESS_DENIED", "not allowed")
    assert caught.value.metadata == {"action": "sign"}


def test_a_call_ends_with_its_deadline(peer: Peer, profile: Profile):
    waiting = threading.Event()
    peer.WhoAmI = lambda _request: waiting.wait(20)  # type: ignore[method-assign, assignment, return-value]
    try:
        with Client(profile) as client, pytest.raises(errors.DeadlineExceeded):
            client.whoami(timeout=0.3)
    finally:
        waiting.set()


def test_a_daemon_that_comes_back_is_found_again(peer: Peer, tmp_path: Path):
    # The address is taken, the server behind it starts only later.
    with served(peer, tmp_path, timeout=20) as profile:
        address = profile.address
    port = int(address.rpartition(":")[2])
    gate = threading.Event()

    def serve_later() -> None:
        gate.wait(10)
        with _served_again(peer, tmp_path, port):
            done.wait(20)

    done = threading.Event()
    server = threading.Thread(target=serve_later)
    server.start()
    try:
        with Client(profile, on_retry=lambda *_: gate.set()) as client:
            assert client.whoami().client == "spiffe://test/me"
    finally:
        gate.set()
        done.set()
        server.join()


def test_every_page_is_read(peer: Peer, profile: Profile):
    peer.log.grow(30)
    with Client(profile) as client:
        assert [key.name for key in client.keys.list()] == ["keys/a", "keys/b", "keys/c"]
        assert [entry.index for entry in client.audit.entries(page_size=7)] == list(range(33))
        assert client.audit.entry(5).data == peer.log.entries[5]
        assert client.audit.checkpoint().verified


def test_a_closed_client_says_so(profile: Profile):
    client = Client(profile)
    client.close()
    with pytest.raises(errors.UsageError, match="closed"):
        client.whoami()


def test_one_client_serves_many_threads(peer: Peer, profile: Profile):
    digests = [hashlib.sha256(bytes([number])).digest() for number in range(12)]
    with Client(profile) as client, ThreadPoolExecutor(12) as pool:
        signed = list(pool.map(lambda digest: client.sign_digest("keys/release", digest), digests))
    assert [signature.digest for signature in signed] == digests
    assert profile.checkpoint_file is not None
    assert profile.checkpoint_file.read_text() == peer.log.note()


def test_the_asyncio_client_does_the_same(peer: Peer, profile: Profile):
    peer.faults = [refusal("UNAVAILABLE", "OVERLOADED", retry_after=0.01)]

    async def use() -> tuple[Any, ...]:
        async with AsyncClient(profile) as client:
            one = await client.sign_digest("keys/release", DIGEST)
            many = await client.sign_batch(
                [DigestRequest("keys/release", hashlib.sha256(bytes([n])).digest()) for n in range(5)]
            )
            both = await asyncio.gather(client.whoami(), client.audit.checkpoint())
            keys = [key.name async for key in client.keys.list()]
            entries = [entry.index async for entry in client.audit.entries(page_size=3)]
            return one, many, both, keys, entries

    one, many, both, keys, entries = asyncio.run(use())
    assert one.receipt.verify(peer.log.vkey, public_key=peer.key.public_key()).digest == DIGEST
    assert [result.digest for result in many] == [hashlib.sha256(bytes([n])).digest() for n in range(5)]
    assert both[1].verified
    assert len(keys) == 3
    assert entries == list(range(len(peer.log.entries)))


def test_a_cancelled_asyncio_call_ends_at_once_and_its_id_still_works(peer: Peer, profile: Profile):
    blocked, entered = threading.Event(), threading.Event()
    sign = peer.SignDigest

    def slow(request: Any) -> Any:
        entered.set()
        blocked.wait(20)
        return sign(request)

    peer.SignDigest = slow  # type: ignore[method-assign]
    request_id = "01926e4a-7d1c-7003-8a51-2b6f0c9d4e77"

    async def use() -> Any:
        async with AsyncClient(profile) as client:
            task = asyncio.create_task(client.sign_digest("keys/release", DIGEST, request_id=request_id))
            await asyncio.to_thread(entered.wait, 20)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            blocked.set()
            peer.SignDigest = sign  # type: ignore[method-assign]
            return await client.sign_digest("keys/release", DIGEST, request_id=request_id)

    assert asyncio.run(use()).request_id == request_id


def test_a_certificate_of_another_authority_is_refused_without_retries(peer: Peer, profile: Profile, tmp_path: Path):
    (tmp_path / "other-ca.pem").write_bytes(pki.create_authority("other.test").certificate_pem)
    began = time.monotonic()
    with (
        Client(dataclasses.replace(profile, ca_cert=tmp_path / "other-ca.pem")) as client,
        pytest.raises(errors.ConnectionRefused, match="ca_cert"),
    ):
        client.whoami()
    assert time.monotonic() - began < profile.timeout
    assert peer.calls == []


def test_a_client_certificate_of_another_authority_gets_nothing(peer: Peer, profile: Profile, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    pki.write(
        pki.issue_client(pki.create_authority("other.test"), "spiffe://other.test/client"),
        other / "client.pem",
        other / "client.key",
    )
    foreign = dataclasses.replace(profile, client_cert=other / "client.pem", client_key=other / "client.key")
    with Client(foreign) as client, pytest.raises(errors.Unavailable, match="certificate"):
        client.whoami(timeout=1)
    assert peer.calls == []


def test_a_server_of_another_name_is_refused(peer: Peer, profile: Profile):
    with (
        Client(dataclasses.replace(profile, server_name="elsewhere.example")) as client,
        pytest.raises(errors.ConnectionRefused),
    ):
        client.whoami()
    assert peer.calls == []


def test_a_peer_that_speaks_no_tls_is_an_error(profile: Profile):
    with socket.create_server(("127.0.0.1", 0)) as plain:
        port = plain.getsockname()[1]
        answering = threading.Thread(target=_answer_junk, args=(plain,), daemon=True)
        answering.start()
        with (
            Client(dataclasses.replace(profile, address=f"localhost:{port}")) as client,
            pytest.raises(errors.Unavailable),
        ):
            client.whoami(timeout=1)
        plain.shutdown(socket.SHUT_RDWR)
        answering.join(5)


def _answer_junk(listener: socket.socket) -> None:
    try:
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    except OSError:
        return


def _served_again(peer: Peer, directory: Path, port: int) -> Any:
    return served(peer, directory, again=port)


# --- `greatseal audit verify` against a daemon that shows another log than it signed


def _audit_verify(profile: Profile, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    for name in ("address", "ca_cert", "client_cert", "client_key", "server_name", "log_key"):
        monkeypatch.setenv(f"GREATSEAL_{name.upper()}", str(getattr(profile, name)))
    monkeypatch.setattr(sys, "argv", ["greatseal", "audit", "verify", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def _replace_entry(index: int, old: bytes, new: bytes) -> Any:
    def tamper(method: str, answer: Any) -> None:
        if method == "ListEntries":
            for entry in answer.entries:
                if entry.index == index:
                    entry.data = entry.data.replace(old, new)

    return tamper


@pytest.mark.parametrize("index", [0, 1, 1200, 1499])
def test_the_first_entry_that_was_edited_is_named(
    peer: Peer, profile: Profile, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], index: int
):
    peer.log.grow(1497)
    assert _audit_verify(profile, monkeypatch) == 0
    peer.tamper = _replace_entry(index, b"reload", b"forged")
    assert _audit_verify(profile, monkeypatch) == 6
    assert f"the log is bad from entry {index} on" in capsys.readouterr().err


def test_an_edit_that_contradicts_is_named_even_where_an_earlier_one_does_not(
    peer: Peer, profile: Profile, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pair = peer.log.sign(peer.key, DIGEST)
    quiet, loud = (
        _replace_entry(1, b"reload", b"forged"),
        _replace_entry(pair.outcome, DIGEST.hex().encode(), b"00" * 32),
    )
    peer.tamper = lambda method, answer: (quiet(method, answer), loud(method, answer))[0]
    assert _audit_verify(profile, monkeypatch) == 6
    assert "bad from entry 1 on" in capsys.readouterr().err


def test_entries_that_are_held_back_are_noticed(
    peer: Peer, profile: Profile, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def hide(method: str, answer: Any) -> None:
        if method == "ListEntries" and len(answer.entries) > 1:
            del answer.entries[-1]

    peer.tamper = hide
    assert _audit_verify(profile, monkeypatch) == 6
    assert "entry 2 is missing" in capsys.readouterr().err


def test_a_receipt_whose_entries_are_not_in_the_log_is_named(
    peer: Peer, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    receipt = peer.log.receipt(peer.log.sign(peer.key, DIGEST))
    (tmp_path / "receipt.json").write_bytes(receipt.to_json())
    assert _audit_verify(profile, monkeypatch, "--receipt", str(tmp_path / "receipt.json")) == 0
    fork = SampleLog(private_key=peer.log.private_key)
    fork.grow(9)
    peer.log = fork
    assert _audit_verify(profile, monkeypatch, "--receipt", str(tmp_path / "receipt.json")) == 6
    assert "receipt.json" in capsys.readouterr().err
