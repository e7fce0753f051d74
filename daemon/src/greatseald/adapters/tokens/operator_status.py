"""How a token's host stands, as an operator is told: without a PIN, and without costing a try."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from greatseald.adapters.tokens.device import Device
from greatseald.adapters.tokens.latch import LatchUnusable, PinLatch
from greatseald.adapters.tokens.operator_acts import ActJournal
from greatseald.adapters.tokens.operator_protocol import TokenStatus

if TYPE_CHECKING:
    from greatseald.domain.tokens import TokenSettings


def describe(settings: TokenSettings, latch: PinLatch, acts: ActJournal, state: str, detail: str) -> TokenStatus:
    """What the host knows without asking the token."""
    status = TokenStatus(state, _pin_from(settings), detail, acts_waiting=len(acts.waiting))
    with suppress(LatchUnusable):
        status = msgspec.structs.replace(status, last_attempt=latch.last_attempt())
    return status


def describe_tries(status: TokenStatus, device: Device) -> TokenStatus:
    """The same with what the token says of its PINs. Raises DeviceError."""
    tries, unblocking, rules = device.tries, device.unblocking_tries, device.pin_rules
    return msgspec.structs.replace(
        status,
        counter=tries.counter.value,
        tries=str(tries),
        unblocking_counter=unblocking.counter.value,
        unblocking_tries=str(unblocking),
        unblocks_with=device.unblocks_with,
        least_bytes=rules.least,
        most_bytes=rules.most,
        pin_pad=device.has_pin_pad,
    )


def _pin_from(settings: TokenSettings) -> str:
    if settings.by_operator:
        return "operator"
    if settings.pin_file is not None:
        return "file"
    return "credential" if settings.pin_credential else "none"
