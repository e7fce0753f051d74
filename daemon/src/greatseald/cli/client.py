"""`greatseald client add`: a certificate from the local PKI, a profile, and, when asked, a rule.

The new configuration is validated before anything is written; certificate, key and profile are
written next and taken back if anything after them fails; the configuration is replaced last, in
one rename.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from greatseald.adapters import pki
from greatseald.cli import starter
from greatseald.cli.exits import UNEXPECTED, USAGE, CommandFailed, emit, say
from greatseald.config import ConfigError, Settings, load


def add(
    name: str,
    config: Path,
    *,
    actions: Sequence[str],
    keys: Sequence[str],
    payload_types: Sequence[str],
    days: int,
    as_json: bool,
) -> None:
    """Issue a certificate for `name`; with `actions`, allow it those.

    Raises:
        CommandFailed: the name is taken or malformed, the configuration or an option is wrong, there is no local CA.
    """
    actions, keys, payload_types = _split(actions), _split(keys), _split(payload_types)
    if not actions and (keys or payload_types):
        raise CommandFailed(USAGE, "--keys and --payload-types narrow --actions, and no --actions were given")
    if "sign" in actions and not payload_types:
        payload_types = [starter.IN_TOTO]
    config = config.absolute()
    home = config.parent
    certificate, key, profile = (
        home / "pki" / f"{name}.pem",
        home / "pki" / f"{name}.key",
        home / f"{name}-client.toml",
    )
    try:
        with _locked(home), ExitStack() as undo:
            settings = load(config, {})
            authority = pki.load_authority(home / "pki" / "ca.pem", home / "pki" / "ca.key")
            identity = pki.spiffe_id(pki.trust_domain_of(authority.certificate), name)
            for path in (certificate, key, profile):
                if os.path.lexists(path):
                    raise CommandFailed(USAGE, f"{path} exists already: there is a client or certificate of that name")
            rule = starter.allow_table(identity, actions, keys, payload_types) if actions else ""
            changed = _prepare(config, rule, undo) if rule else None
            issued = pki.issue_client(authority, identity, days)
            undo.callback(_remove, certificate, key)
            pki.write(issued, certificate, key)
            undo.callback(_remove, profile)
            text = starter.profile_text(
                this_file=str(profile),
                listen=settings.server.listen,
                client_cert=f"pki/{name}.pem",
                client_key=f"pki/{name}.key",
            )
            pki.write_new(profile, text.encode(), 0o644)
            if changed is not None:
                changed.replace(config)
            undo.pop_all()
    except ConfigError as error:
        raise CommandFailed(USAGE, "\n".join(map(str, error.problems))) from error
    except (pki.PkiError, ValueError) as error:
        raise CommandFailed(USAGE, str(error)) from error
    except OSError as error:
        raise CommandFailed(UNEXPECTED, f"{error.filename or home}: {error.strerror}; nothing was changed") from error
    _report(settings, identity, issued, profile, rule, as_json=as_json)


def _split(values: Sequence[str]) -> list[str]:
    """Options may be repeated or separated by commas."""
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep two of these commands from replacing each other's configuration."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise CommandFailed(USAGE, f"{directory}: {error.strerror}: --config names a file in it") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _prepare(config: Path, rule: str, undo: ExitStack) -> Path:
    """Write the configuration with `rule` at its end beside the old one, validated; it is removed when `undo` runs."""
    old = config.read_bytes()
    changed = config.with_name(f".{config.name}.new")
    _remove(changed)  # what a killed command left; we hold the lock
    undo.callback(_remove, changed)
    ending = b"" if old.endswith(b"\n") else b"\n"
    pki.write_new(changed, old + ending + b"\n" + rule.encode(), config.stat().st_mode & 0o777)
    status = config.stat()
    if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
        os.chown(changed, status.st_uid, status.st_gid)
    try:
        load(changed, {})
    except ConfigError as error:
        problems = "\n".join(str(problem).replace(str(changed), str(config)) for problem in error.problems)
        raise CommandFailed(USAGE, f"with the new [[allow]] the configuration would be invalid:\n{problems}") from error
    return changed


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _report(settings: Settings, identity: str, issued: pki.Issued, profile: Path, rule: str, *, as_json: bool) -> None:
    if as_json:
        emit(
            {
                "client": identity,
                "profile": str(profile),
                "serial": f"{issued.certificate.serial_number:x}",
                "not_after": f"{issued.not_after:%Y-%m-%dT%H:%M:%SZ}",
                "rule_added": bool(rule),
            }
        )
        return
    say(f"Issued a certificate for {identity}, serial {issued.certificate.serial_number:x}.")
    say(f"It expires on {issued.not_after:%Y-%m-%d}; renew it before: the daemon refuses it from then on.")
    if rule:
        say(f"Added to {settings.file}:")
        say("    " + rule.strip().replace("\n", "\n    "))
        say("A running daemon reads it on SIGHUP.")
    else:
        say("No rule was added: it may do nothing but `whoami` until an [[allow]] table names it.")
    say(f"Profile: greatseal --profile {profile} whoami")
