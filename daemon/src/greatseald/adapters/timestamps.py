"""A timestamp authority over HTTP (RFC 3161, section 3.4)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from greatseal.timestamps import MAX_RESPONSE_BYTES, verify_response
from greatseal.verification import TimestampInvalid
from greatseald.adapters.web import Endpoint
from greatseald.ports.sightings import OutsideUnreachable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography import x509

_QUERY: Final = "application/timestamp-query"
_REPLY: Final = "application/timestamp-reply"


class HttpAuthority:
    """`ports.stamps.Authority` over one URL. Nothing is returned that does not verify up to `roots`."""

    def __init__(self, name: str, url: str, ca: Path | None, timeout: float, roots: Sequence[x509.Certificate]) -> None:
        """Ask the authority at `url`. Raises OSError if `ca` cannot be used."""
        self.name = name
        self._endpoint = Endpoint(url, ca, timeout)
        self._roots = tuple(roots)

    def stamp(self, data: bytes) -> bytes:
        from rfc3161_client import HashAlgorithm, TimestampRequestBuilder

        request = TimestampRequestBuilder().data(data).hash_algorithm(HashAlgorithm.SHA256).build()
        answer = self._endpoint.post("", request.as_bytes(), _QUERY, MAX_RESPONSE_BYTES)
        if answer.status != 200 or answer.content_type != _REPLY:
            raise OutsideUnreachable(
                f"authority {self.name} answered {answer.status} with {answer.content_type}: {answer.told()}"
            )
        try:
            verify_response(answer.body, data, self._roots, request.nonce)
        except TimestampInvalid as error:
            raise OutsideUnreachable(
                f"authority {self.name} answered with a wrong timestamp: {error.message}"
            ) from error
        return answer.body
