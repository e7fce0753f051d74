"""What `doctor` looks at: everything that a signature needs, looked at in the order in which it would fail.

It changes nothing but the remembered checkpoint, as every call does, and asks for no signature. A
step that fails ends those that build on it and no others.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from greatseal.cli.findings import Finding, fail, failed_by, ok, skip, warn
from greatseal.cli.session import Session
from greatseal.errors import Denied, GreatsealError, NotReady, VerificationFailed
from greatseal.version import VERSION

if TYPE_CHECKING:
    from greatseal.client import Client
    from greatseal.messages import Key, WhoAmI
    from greatseal.profile import Profile

_MAX_SECONDS: Final = 10.0
_CLOCK_WARN: Final = 5.0
_CLOCK_FAIL: Final = 300.0
_NOT_REACHED: Final = "not checked: the daemon was not reached"
_KEYS_SHOWN: Final = 20


def examine(session: Session) -> list[Finding]:
    """Look at everything that can be looked at."""
    try:
        profile = session.profile()
    except GreatsealError as error:
        return [failed_by("profile", error), *_unreached()]
    found = [ok("profile", str(profile.source or "none: options and environment"), source=str(profile.source or ""))]
    if profile.source is None and not profile.address:
        found = [warn("profile", "none", "name one with --profile or GREATSEAL_PROFILE")]
    certificate, usable = _own_certificate(profile)
    reached = False
    try:
        target = profile.target()
    except GreatsealError as error:
        found += [failed_by("address", error), certificate]
    else:
        found += [ok("address", target, address=target), certificate]
        way, reached = _way(profile, target, usable=usable)
        found += way
    return [*found, *(_asked(session, profile) if reached else _unreached())]


def _own_certificate(profile: Profile) -> tuple[Finding, bool]:
    from greatseal.cli import reachability

    try:
        finding = reachability.own_certificate(profile)
    except GreatsealError as error:
        return failed_by("client certificate", error), False
    return finding, finding.exit_code != 2


def _way(profile: Profile, target: str, *, usable: bool) -> tuple[list[Finding], bool]:
    from greatseal.cli import reachability

    seconds = min(profile.timeout, _MAX_SECONDS)
    connection, opened = reachability.connect(target, seconds)
    if opened is None:
        return [connection, skip("tls", "not checked: there is no connection")], False
    with opened:
        if not usable:
            return [connection, skip("tls", "not checked: our certificate cannot be used")], False
        handshake = reachability.handshake(profile, target, opened, seconds)
    return [connection, *handshake], not any(finding.exit_code for finding in handshake)


def _unreached() -> list[Finding]:
    names = ("identity", "clock", "versions", "keys", "log")
    own = ok("versions", f"greatseal {VERSION} here; the daemon's is not known", client=VERSION)
    return [own if name == "versions" else skip(name, _NOT_REACHED) for name in names]


def _asked(session: Session, profile: Profile) -> list[Finding]:
    """Ask the daemon, over gRPC as every command does."""
    seconds = min(profile.timeout, _MAX_SECONDS)
    try:
        client = session.client()
    except GreatsealError as error:
        return [failed_by("identity", error), *_unreached()[1:]]
    with client:
        before = datetime.now(UTC)
        try:
            me = client.whoami(timeout=seconds)
        except GreatsealError as error:
            return [failed_by("identity", error), *_unreached()[1:]]
        after = datetime.now(UTC)
        return [
            _identity(me),
            clock(me.server_time, before, after),
            versions(VERSION, me.server_version),
            _keys(client, seconds),
            _log(client, profile, me, seconds),
        ]


def _identity(me: WhoAmI) -> Finding:
    actions = sorted({action for grant in me.grants for action in grant.actions})
    data = {"client": me.client, "rules": [grant.policy_id for grant in me.grants], "actions": actions}
    if not me.grants:
        todo = f'ask the operator for an [[allow]] table with client = "{me.client}"'
        return warn("identity", f"{me.client}: no rule allows you anything", todo, **data)
    return ok("identity", f"{me.client}: {', '.join(actions)} by {', '.join(data['rules'])}", **data)


def clock(server_time: str, before: datetime, after: datetime) -> Finding:
    """Compare the clocks; the answer's way back and forth is the measure's uncertainty."""
    try:
        theirs = datetime.fromisoformat(server_time)
    except ValueError:
        theirs = None
    if theirs is None or theirs.tzinfo is None:
        return skip("clock", "not checked: the daemon does not say its time; it is older than this client")
    off = (theirs - before).total_seconds() if theirs < before else max(0.0, (theirs - after).total_seconds())
    data = {"seconds_ahead": round(off, 3), "server_time": server_time}
    text = "the daemon's and ours agree"
    if off:
        text = f"the daemon's is {abs(off):.1f} s {'ahead of' if off > 0 else 'behind'} ours"
    todo = "set both machines' clocks by NTP: certificates and the log's times depend on them"
    if abs(off) > _CLOCK_FAIL:
        return fail("clock", text, todo, exit_code=NotReady.exit_code, **data)
    return warn("clock", text, todo, **data) if abs(off) > _CLOCK_WARN else ok("clock", text, **data)


def versions(ours: str, theirs: str) -> Finding:
    """Compare the versions; before 1.0 the second number counts as the first does later."""
    text = f"greatseal {ours} here, greatseald {theirs} there"
    if ours.split(".")[:2] != theirs.split(".")[:2]:
        return warn("versions", text, "update the older side", client=ours, daemon=theirs)
    return ok("versions", text, client=ours, daemon=theirs)


def _keys(client: Client, seconds: float) -> Finding:
    from itertools import islice

    try:
        keys = list(islice(client.keys.list(timeout=seconds), 1000))
    except Denied as error:
        return skip("keys", f"not checked: {error.message}")
    except GreatsealError as error:
        return failed_by("keys", error)
    data = {
        "keys": [{"name": key.name, "state": key.state, "allowed_actions": list(key.allowed_actions)} for key in keys]
    }
    if not keys:
        return warn(
            "keys", "none that you may read", "readKeys on a key is what it takes, in an [[allow]] table", **data
        )
    text = "; ".join(map(_key, keys[:_KEYS_SHOWN]))
    if len(keys) > _KEYS_SHOWN:
        text += f"; and {len(keys) - _KEYS_SHOWN} more"
    broken = [key.name for key in keys if key.state != "ENABLED"]
    if broken:
        return warn("keys", text, f"the operator has to look at {', '.join(broken[:_KEYS_SHOWN])}", **data)
    return ok("keys", text, **data)


def _key(key: Key) -> str:
    state = "" if key.state == "ENABLED" else f" is {key.state}{f' ({key.state_detail})' if key.state_detail else ''}"
    return f"{key.name}{state}: {', '.join(key.allowed_actions) or 'nothing'}"


def _log(client: Client, profile: Profile, me: WhoAmI, seconds: float) -> Finding:
    from greatseal.profile import log_key_of

    if not profile.log_key:
        todo = "set log_key in the profile to the log's verifier key (log.vkey), so that receipts are checked"
        return warn("log", f"{me.log_origin}: not verified, for its key is not known", todo, origin=me.log_origin)
    origin = log_key_of(profile.log_key).name
    if origin != me.log_origin:
        text = f"the daemon's log is {me.log_origin} and the profile's log_key is of {origin}"
        return fail("log", text, "one of the two is another installation's", exit_code=VerificationFailed.exit_code)
    try:
        checkpoint = client.audit.checkpoint(timeout=seconds)
    except Denied:
        return skip("log", "not checked: reading it takes the action readAudit; receipts are verified all the same")
    except GreatsealError as error:
        return failed_by("log", error)
    text = f"{origin}: checkpoint of {checkpoint.size} entries verified"
    data = {"origin": origin, "size": checkpoint.size, "remembered": profile.checkpoint_file is not None}
    if profile.checkpoint_file is not None:
        return ok("log", f"{text}, and it continues the one remembered in {profile.checkpoint_file}", **data)
    return ok("log", text, **data)
