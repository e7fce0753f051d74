"""A witness over HTTP: the client's side of C2SP tlog-witness."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from greatseal.cosignature import WitnessKey
from greatseal.errors import VerificationFailed
from greatseal.tlogwitness import PATH, AddCheckpoint, parse_size
from greatseald.adapters.web import Endpoint
from greatseald.ports.sightings import Cosigned, Elsewhere, OutsideUnreachable, ProofRejected

_MAX_ANSWER: Final = 64 * 1024
_HINTS: Final = {
    403: "it trusts another key for this log: give it the line in log.vkey",
    404: "it does not know this log, or the url is not its prefix: give it the line in log.vkey",
}


class HttpWitness:
    """`ports.sightings.Witness` over one URL prefix."""

    def __init__(self, key: WitnessKey, url: str, ca: Path | None, timeout: float) -> None:
        """Speak to the witness with this key. Raises OSError if `ca` cannot be used."""
        self.key = key
        self._endpoint = Endpoint(url, ca, timeout)

    def add_checkpoint(self, request: AddCheckpoint) -> Cosigned | Elsewhere | ProofRejected:
        answer = self._endpoint.post(f"/{PATH}", request.body(), "text/plain; charset=utf-8", _MAX_ANSWER)
        try:
            if answer.status == 200:
                return Cosigned(answer.body.decode())
            if answer.status == 409:
                return Elsewhere(parse_size(answer.body))
        except (UnicodeDecodeError, VerificationFailed) as error:
            raise OutsideUnreachable(
                f"witness {self.key.name} answered {answer.status} with something that it should not: {error}"
            ) from error
        if answer.status == 422:
            return ProofRejected()
        hint = _HINTS.get(answer.status, answer.told())
        raise OutsideUnreachable(f"witness {self.key.name} answered {answer.status}: {hint}")
