"""The bare echo: grpc.aio on uvloop over the same mTLS, answering SignDigest with one prepared Signature.

    echo_server.py PKI_DIR SIGNATURE_FILE       prints its port, then serves until stdin ends

SIGNATURE_FILE holds a serialised Signature that the daemon really gave, so that the messages are
those of the measure; the request is parsed and the answer serialised for each call.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import grpc
import uvloop

from greatseal.v1 import signing_pb2, signing_pb2_grpc


class Echo(signing_pb2_grpc.SigningServiceServicer):  # type: ignore[misc]
    def __init__(self, answer: signing_pb2.Signature) -> None:
        self._answer = answer

    async def SignDigest(  # noqa: N802 -- the method's name on the wire
        self, request: signing_pb2.SignDigestRequest, _context: grpc.aio.ServicerContext
    ) -> signing_pb2.Signature:
        if len(request.digest.sha256) != 32:
            raise ValueError("not a SHA-256 digest")
        return self._answer


async def serve(pki: Path, answer: signing_pb2.Signature) -> None:
    server = grpc.aio.server()
    signing_pb2_grpc.add_SigningServiceServicer_to_server(Echo(answer), server)
    pair = ((pki / "server.key").read_bytes(), (pki / "server.pem").read_bytes())
    credentials = grpc.ssl_server_credentials([pair], (pki / "ca.pem").read_bytes(), require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(0)


def main() -> None:
    answer = signing_pb2.Signature.FromString(Path(sys.argv[2]).read_bytes())
    uvloop.run(serve(Path(sys.argv[1]), answer))


if __name__ == "__main__":
    main()
