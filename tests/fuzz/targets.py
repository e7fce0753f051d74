"""What is fuzzed: one function for each parser that meets foreign bytes, by name.

A target takes any bytes. It returns if the parser refused them with the error that it documents, or
accepted them and kept its promises; anything else that it raises is a find. "Does not crash" is the
least of it: what parses must be written out again with the same meaning, and what verifies must be
what was really signed.

    TARGETS["note"].run(b"...")
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

MAX_BYTES = 16 * 1024
"""No input is longer; tests/fuzz/test_fuzz_memory.py has the large ones."""


@dataclass(frozen=True)
class Target:
    """A function of bytes, and the texts that its format is made of, for the mutations."""

    name: str
    run: Callable[[bytes], None]
    words: tuple[bytes, ...] = ()


JSON_WORDS = (b'"', b'{"', b'":', b"[[", b"]]", b"\\u", b"\\ud800", b"1e999", b"NaN", b"null", b"-0")
TOML_WORDS = (b'"' * 3, b"'" * 3, b"a = ", b"{a=", b"[[", b"]]", b"= 1979-05-27", b"inf", b"\\u0000", b"1e999")

TARGETS: dict[str, Target] = {}


def target(name: str, *words: bytes) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    """Register a function as the target of this name."""

    def register(run: Callable[[bytes], None]) -> Callable[[bytes], None]:
        TARGETS[name] = Target(name, run, words)
        return run

    return register


def load_all() -> dict[str, Target]:
    """Import every module of targets and return them all."""
    import client_targets
    import daemon_targets
    import operator_targets
    import trust_targets

    assert {client_targets, daemon_targets, operator_targets, trust_targets}
    return dict(sorted(TARGETS.items()))


def told(error: Exception) -> None:
    """Check what a refusal says: it may stand in a log line and in a gRPC status, and is no copy of the input."""
    text = str(error)
    assert len(text.encode()) < 4096, f"the message has {len(text)} characters"
