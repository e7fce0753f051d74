"""The load: raw generated stubs over mTLS in a process of their own, nothing of the client library.

    load_client.py PKI_DIR LOG_VKEY_FILE

Commands: batch{address, key, pem, algorithm, digest_size, callers, size, seconds}
          unary{address, key, pem, callers, seconds | count, check}
          sample{address, key, path}   one SignDigest, its answer written to a file for the echo server
Each answers {count, seconds, cpu, p50_ms, checked}, unary p99_ms as well. What came back is kept during the window and
checked after it, every signature and both proofs of every receipt, by tests/log_oracle.py.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import uvloop
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from workers import serve

from greatseal.ids import new_request_id
from greatseal.v1 import signing_pb2, signing_pb2_grpc

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from log_oracle import NoteVerifier, verify_receipt, verify_signature

OPTIONS = [("grpc.max_receive_message_length", 16 * 1024 * 1024)]


class Load:
    """One channel at a time, `callers` coroutines on it, as many clients behind one connection would be."""

    def __init__(self, pki: Path, vkey_file: Path) -> None:
        self._credentials = grpc.ssl_channel_credentials(
            (pki / "ca.pem").read_bytes(), (pki / "pipeline.key").read_bytes(), (pki / "pipeline.pem").read_bytes()
        )
        self._notes = NoteVerifier(vkey_file.read_text())

    def _channel(self, address: str) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(address, self._credentials, options=OPTIONS)

    async def sample(self, address: str, key: str, path: str) -> int:
        async with self._channel(address) as channel:
            answer = await signing_pb2_grpc.SigningServiceStub(channel).SignDigest(_digest_request(key, 32))
        return Path(path).write_bytes(answer.SerializeToString())

    async def batch(
        self,
        address: str,
        key: str,
        pem: str,
        algorithm: str,
        digest_size: int,
        callers: int,
        size: int,
        seconds: float,
    ) -> dict[str, float]:
        kept: list[tuple[list[bytes], signing_pb2.BatchSignResponse]] = []
        times: list[float] = []
        async with self._channel(address) as channel:
            stub = signing_pb2_grpc.SigningServiceStub(channel)
            await channel.channel_ready()

            async def caller(until: float) -> None:
                while (begun := time.perf_counter()) < until:
                    block = os.urandom(digest_size * size)
                    digests = [block[start : start + digest_size] for start in range(0, len(block), digest_size)]
                    answer = await stub.BatchSign(_batch_request(key, digest_size, digests), timeout=60)
                    times.append(time.perf_counter() - begun)
                    kept.append((digests, answer))

            cpu, begun = time.process_time(), time.perf_counter()
            await asyncio.gather(*(caller(begun + seconds) for _ in range(callers)))
            elapsed, cpu = time.perf_counter() - begun, time.process_time() - cpu
        checked = self._check_batches(kept, pem, algorithm)
        return {
            "count": checked,
            "seconds": elapsed,
            "cpu": cpu,
            "p50_ms": 1e3 * statistics.median(times),
            "checked": checked,
        }

    async def unary(
        self,
        address: str,
        key: str,
        pem: str,
        callers: int,
        check: bool,
        seconds: float = 60.0,
        count: int = 1 << 60,
    ) -> dict[str, float]:
        kept: list[tuple[bytes, signing_pb2.Signature]] = []
        times: list[float] = []
        async with self._channel(address) as channel:
            sign = signing_pb2_grpc.SigningServiceStub(channel).SignDigest
            await channel.channel_ready()

            async def caller(until: float) -> None:
                for _ in range(count):
                    if (begun := time.perf_counter()) >= until:
                        return
                    request = _digest_request(key, 32)
                    answer = await sign(request, timeout=60)
                    times.append(time.perf_counter() - begun)
                    kept.append((request.digest.sha256, answer))

            cpu, begun = time.process_time(), time.perf_counter()
            await asyncio.gather(*(caller(begun + seconds) for _ in range(callers)))
            elapsed, cpu = time.perf_counter() - begun, time.process_time() - cpu
        if check:
            public = load_pem_public_key(pem.encode())
            for digest, answer in kept:
                verify_signature(public, "ecdsa-p256-sha256", digest, answer.signature)
                verify_receipt(answer.receipt, answer.receipt.checkpoint, self._notes, digest, answer.signature)
        return {
            "count": len(kept),
            "seconds": elapsed,
            "cpu": cpu,
            "p50_ms": 1e3 * statistics.median(times),
            "p99_ms": 1e3 * sorted(times)[(99 * len(times) - 1) // 100],
            "checked": len(kept) if check else 0,
        }

    def _check_batches(self, kept: list[Any], pem: str, algorithm: str) -> int:
        public, checked = load_pem_public_key(pem.encode()), 0
        for digests, answer in kept:
            for digest, result in zip(digests, answer.results, strict=True):
                if result.HasField("error"):
                    raise RuntimeError(f"an item was refused: {result.error.message}")
                signature = result.signature
                verify_signature(public, algorithm, digest, signature.signature)
                verify_receipt(signature.receipt, answer.checkpoint, self._notes, digest, signature.signature)
                checked += 1
        return checked


def _digest_request(key: str, size: int) -> signing_pb2.SignDigestRequest:
    request = signing_pb2.SignDigestRequest(key=key, request_id=new_request_id())
    request.digest.sha256 = os.urandom(size)
    return request


def _batch_request(key: str, digest_size: int, digests: list[bytes]) -> signing_pb2.BatchSignRequest:
    request = signing_pb2.BatchSignRequest()
    add = request.items.add
    for digest in digests:
        item = add().digest
        item.key, item.request_id = key, new_request_id()
        if digest_size == 32:
            item.digest.sha256 = digest
        else:
            item.digest.sha384 = digest
    return request


def main() -> None:
    load = Load(Path(sys.argv[1]), Path(sys.argv[2]))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        serve(
            lambda command, arguments: runner.run(
                {"batch": load.batch, "unary": load.unary, "sample": load.sample}[command](**arguments)
            )
        )


if __name__ == "__main__":
    main()
