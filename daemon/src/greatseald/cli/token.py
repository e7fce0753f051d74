"""`greatseald token`: an operator unlocks a token on its machine, locks it, changes or unblocks its PIN.

They talk to the token host's own socket; the front sees no PIN. `change-pin` and `unblock` work
without a daemon too: then a host runs for the command alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from greatseald.cli.exits import DENIED, UNAVAILABLE, UNEXPECTED, USAGE, CommandFailed, emit, reporting, say
from greatseald.cli.options import ConfigOption, JsonOption

if TYPE_CHECKING:
    from greatseald.adapters.tokens.operator_client import OperatedHost
    from greatseald.adapters.tokens.operator_protocol import Answer, TokenStatus
    from greatseald.adapters.tokens.secret import Secret
    from greatseald.cli.pin_entry import PinEntry
    from greatseald.domain.tokens import TokenSettings

tokens = typer.Typer(
    help="A token's PIN, on the machine where its host runs: unlock, lock, change, unblock.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
TokenArgument = Annotated[str, typer.Argument(metavar="TOKEN", help="The token's name in the configuration.")]
FinalTryOption = Annotated[
    bool, typer.Option("--final-try", help="Take the last try that the token has; a wrong one locks it.")
]
StdinOption = Annotated[bool, typer.Option("--stdin", help="Read from stdin, a line each, for scripts.")]
PinentryOption = Annotated[bool, typer.Option("--pinentry", help="Ask through a pinentry program.")]
ProgramOption = Annotated[str, typer.Option("--pinentry-program", metavar="PROGRAM", help="Which one.")]
_EXITS: Final = {"refused": DENIED, "forbidden": DENIED, "failed": UNAVAILABLE, "usage": USAGE}


@dataclass(frozen=True, slots=True)
class _Entering:
    """How PINs are given."""

    stdin: bool
    pinentry: bool
    program: str

    @contextmanager
    def open(self) -> Iterator[PinEntry]:
        from greatseald.cli.pin_entry import pin_entry

        with pin_entry(stdin=self.stdin, pinentry=self.pinentry, program=self.program) as entry:
            yield entry


@tokens.command("status")
def status_command(token: TokenArgument, config: ConfigOption, json: JsonOption = False) -> None:
    """Say whether a token's host is logged in, and what the token says of its PIN tries."""
    with reporting(), _reaching(config, token) as (_, host):
        status = host.status()
        if json:
            emit({"token": token, **msgspec.structs.asdict(status)})
        else:
            for line in _words(token, status):
                print(line)


@tokens.command("unlock")
def unlock_command(
    token: TokenArgument,
    config: ConfigOption,
    final_try: FinalTryOption = False,
    stdin: StdinOption = False,
    pinentry: PinentryOption = False,
    program: ProgramOption = "pinentry",
    json: JsonOption = False,
) -> None:
    """Give a token its PIN (unlock = "operator"). It is locked again once its host ends."""
    with reporting(), _reaching(config, token) as (_, host):
        status = host.status()
        _require_tries(token, "PIN", status.counter, status.tries, final_try=final_try)
        if status.pin != "operator" or status.state == "ready":
            answer = host.ask("unlock")
        elif status.pin_pad:
            say(f"enter the PIN of token {token} at the token itself")
            answer = host.ask("unlock", final_try=final_try)
        else:
            with _Entering(stdin, pinentry, program).open() as entry:
                answer = _unlock(host, token, entry, final_try=final_try)
        _finish(token, answer, as_json=json)


@tokens.command("lock")
def lock_command(token: TokenArgument, config: ConfigOption, json: JsonOption = False) -> None:
    """Log a token out (unlock = "operator"): it signs nothing before it is unlocked again."""
    with reporting(), _reaching(config, token) as (_, host):
        _finish(token, host.ask("lock"), as_json=json)


@tokens.command("change-pin")
def change_pin_command(
    token: TokenArgument,
    config: ConfigOption,
    final_try: FinalTryOption = False,
    stdin: StdinOption = False,
    pinentry: PinentryOption = False,
    program: ProgramOption = "pinentry",
    json: JsonOption = False,
) -> None:
    """Change a token's PIN, while its host runs or not; where the PIN lies in a file, the file is replaced.

    On stdin: the current PIN, unless the host knows it, then the new one.
    """
    from greatseald.cli.pin_entry import ask_new

    with reporting(), _reaching(config, token, offline=True) as (settings, host):
        status = host.status()
        _require_tries(token, "PIN", status.counter, status.tries, final_try=final_try)
        known = status.state == "ready" if status.pin != "operator" else False
        known = known or (status.state == "held" and settings.pin_file is not None)
        with _Entering(stdin, pinentry, program).open() as entry, _wiped() as secrets:
            if not known:
                secrets.append(entry.ask("current PIN", token))
            secrets.append(ask_new(entry, "new PIN", token))
            answer = host.ask("change-pin", secrets, final_try=final_try)
        _finish(token, answer, as_json=json)


@tokens.command("unblock")
def unblock_command(
    token: TokenArgument,
    config: ConfigOption,
    final_try: FinalTryOption = False,
    stdin: StdinOption = False,
    pinentry: PinentryOption = False,
    program: ProgramOption = "pinentry",
    json: JsonOption = False,
) -> None:
    """Set a new PIN by what unblocks it: a YubiKey's PUK, the security officer's PIN of PKCS#11.

    On stdin: that one, then the new PIN.
    """
    from greatseald.cli.pin_entry import ask_new

    with reporting(), _reaching(config, token, offline=True) as (settings, host):
        status = host.status()
        what = "PUK" if settings.kind == "yubikey-piv" else "security officer's PIN"
        _require_tries(token, what, status.unblocking_counter, status.unblocking_tries, final_try=final_try)
        if status.state == "ready":
            _finish(token, host.ask("unblock"), as_json=json)
            return
        with _Entering(stdin, pinentry, program).open() as entry, _wiped() as secrets:
            secrets.append(entry.ask(what, token))
            secrets.append(ask_new(entry, "new PIN", token))
            answer = host.ask("unblock", secrets, final_try=final_try)
        _finish(token, answer, as_json=json)


@contextmanager
def _reaching(config: Path, token: str, *, offline: bool = False) -> Iterator[tuple[TokenSettings, OperatedHost]]:
    """The token's host, asked by a process that leaves no core dump."""
    from greatseald.adapters.tokens.hardening import harden
    from greatseald.adapters.tokens.operator_client import HostUnreachable, WrongUser, reach
    from greatseald.config import ConfigError, load_token

    harden()
    try:
        settings = load_token(config, token).settings()
    except ConfigError as error:
        raise CommandFailed(USAGE, str(error)) from error
    try:
        with reach(settings, offline=offline) as host:
            yield settings, host
    except WrongUser as error:
        raise CommandFailed(USAGE, str(error)) from error
    except HostUnreachable as error:
        raise CommandFailed(UNAVAILABLE, str(error)) from error


@contextmanager
def _wiped() -> Iterator[list[Secret]]:
    """A list of secrets, wiped at the end."""
    secrets: list[Secret] = []
    try:
        yield secrets
    finally:
        for secret in secrets:
            secret.wipe()


def _unlock(host: OperatedHost, token: str, entry: PinEntry, *, final_try: bool) -> Answer:
    """Ask for PINs until one is right, as long as somebody is there to be asked and the token has tries to spare."""
    error = ""
    while True:
        with _wiped() as secrets:
            secrets.append(entry.ask("PIN", token, error))
            answer = host.ask("unlock", secrets, final_try=final_try)
        counter = answer.status.counter if answer.status is not None else ""
        if answer.result not in {"refused", "forbidden"} or not entry.again or counter in {"final try", "locked"}:
            return answer
        error = answer.message


def _require_tries(token: str, what: str, counter: str, tries: str, *, final_try: bool) -> None:
    """Refuse before anybody types a secret that would not be tried."""
    if counter == "locked":
        hint = (
            f"unblock it: greatseald token unblock {token}"
            if what == "PIN"
            else "resetting the token destroys its keys"
        )
        raise CommandFailed(DENIED, f"the {what} of token {token} is locked: {hint}")
    if counter == "final try" and not final_try:
        message = (
            f"token {token}: {tries} for the {what}, and a wrong one locks it: --final-try takes it, once you are sure"
        )
        raise CommandFailed(DENIED, message)


def _finish(token: str, answer: Answer, *, as_json: bool) -> None:
    if answer.result != "done":
        raise CommandFailed(_EXITS.get(answer.result, UNEXPECTED), answer.message)
    if as_json:
        status = msgspec.structs.asdict(answer.status) if answer.status is not None else None
        emit({"token": token, "result": answer.result, "message": answer.message, "status": status})
        return
    say(answer.message)
    if answer.status is not None and answer.status.acts_waiting:
        say("the daemon writes it into the audit log before it signs with the token again")


def _words(token: str, status: TokenStatus) -> Sequence[str]:
    states = {
        "ready": "unlocked",
        "locked": "locked, waiting for an operator",
        "closed": "closed after a login that failed",
        "held": "held by a command",
    }
    lines = [f"token {token}: {states.get(status.state, status.state)}"]
    sources = {"operator": "given by an operator", "none": "none is configured"}
    lines.append(f"PIN: {sources.get(status.pin, f'from its {status.pin}')}")
    if status.tries:
        lines.append(f"PIN tries: {status.tries}")
        lines.append(f"{status.unblocks_with} tries: {status.unblocking_tries}")
    if status.most_bytes:
        lines.append(f"PIN length: {status.least_bytes} to {status.most_bytes} bytes")
    if status.last_attempt:
        lines.append(status.last_attempt)
    if status.detail:
        lines.append(status.detail)
    if status.acts_waiting:
        lines.append(f"not in the audit log yet: {status.acts_waiting} acts of operators")
    return lines
