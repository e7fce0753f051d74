"""The text of the files that `init` and `client add` write for people to read and edit: pure functions.

A path or name that comes from outside goes through `quoted`, so that nothing can break out of its string.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

IN_TOTO: Final = "application/vnd.in-toto+json"
_UNSPECIFIED: Final = frozenset({"0.0.0.0", "[::]"})  # noqa: S104 - what one listens on, and cannot be called by

_CONFIG: Final = """\
# Configuration of greatseald, written by `greatseald init`. Relative paths are relative to this file.
# Check a change with:   greatseald check-config {this_file}
# [[allow]], [[deny]] and certificates are read again on SIGHUP; the rest at the next start.
# Every table and key: docs/user-guide/configuration.md

[server]
listen = {listen}                      # host:port; port 0 takes a free one, see run/address
tls_cert = "pki/server.pem"
tls_key = "pki/server.key"
client_ca = "pki/ca.pem"               # who issues the certificates that clients must show
metrics_listen = {metrics_listen}         # plain HTTP for probes and Prometheus, loopback only; "" for none;
                                       # port 0 takes a free one, see run/metrics_address
admin_socket = "run/admin.sock"        # `greatseald backup` asks here; this machine only, mode 0600

[store]
url = {store_url}

[log]
origin = {origin}                      # the log's name in every checkpoint; it never changes
key_file = "log/log.key"               # Ed25519, signs checkpoints and nothing else
head_mac_key_file = "log/head-mac.key" # the database never sees it
anchor = "anchor/released"             # better on another volume than the database
reserve_bytes = 268435456              # below this much free space nothing new is signed

# ---------------------------------------------------------------- tokens
[[tokens]]
name = "soft"
type = "pkcs11"
uri = "pkcs11:token={token_label}"     # RFC 7512, never with a PIN
module = {module}
init_args = ""                         # for modules that want a parameter string at C_Initialize
environment = {{ SOFTHSM2_CONF = {softhsm_conf} }}
pin_file = "tokens/soft/pin"
state_dir = "tokens/soft/state"        # the PIN latch and the host's own ledger
sessions = 2                           # SoftHSM gains nothing from more
operation_timeout = 30                 # seconds, then the host is replaced
lockout = "none"                       # SoftHSM never locks; leave this out for real devices
host_socket = ""                       # empty: a child of the daemon

# ---------------------------------------------------------------- keys
[[keys]]
name = "release"                       # signs statements that the daemon has read
token = "soft"
uri = "pkcs11:object=release"
algorithms = ["ecdsa-p256-sha256"]

[[keys]]
name = "scratch"                       # may sign blind: for trying things out
token = "soft"
uri = "pkcs11:object=scratch"
algorithms = ["ecdsa-p256-sha256"]

# ---------------------------------------------------------------- who may do what; anything else is denied
{allow}
# A stolen certificate is refused from the next call on, on open connections too:
# [[deny]]
# serial = "0a1b2c"                    # or spki_sha256 = "…"
# comment = "laptop lost"
"""

_PROFILE: Final = """\
# Profile of a Greatseal client, written by greatseald. Use it with:
#     greatseal --profile {this_file} whoami
# Relative paths are relative to this file. GREATSEAL_ADDRESS and the like win over it.

address = {address}
address_file = "run/address"           # the address in use, written by the daemon; wins while it exists
server_name = "localhost"              # the name that the server's certificate must bear
ca_cert = "pki/ca.pem"
client_cert = {client_cert}
client_key = {client_key}
log_key = "log/log.vkey"               # verifies receipts and checkpoints
"""


def quoted(text: str) -> str:
    """Return `text` as a TOML basic string.

    Raises:
        ValueError: it holds a character that cannot stand in TOML or should not stand in a path.
    """
    if any(ord(char) < 0x20 or ord(char) == 0x7F or 0xD800 <= ord(char) <= 0xDFFF for char in text):
        message = f"{text!r} holds a control character or is not valid UTF-8"
        raise ValueError(message)
    return json.dumps(text, ensure_ascii=False)


def allow_table(
    client: str, actions: Sequence[str], keys: Sequence[str] = (), payload_types: Sequence[str] = ()
) -> str:
    """Return one `[[allow]]` table; empty lists are left out."""
    lines = ["[[allow]]", f"client = {quoted(client)}", f"actions = {_listed(actions)}"]
    if keys:
        lines.append(f"keys = {_listed(keys)}")
    if payload_types:
        lines.append(f"payload_types = {_listed(payload_types)}")
    return "\n".join(lines) + "\n"


def config_text(  # each value is one place in the text
    *,
    this_file: str,
    listen: str,
    metrics_listen: str,
    store_url: str,
    origin: str,
    token_label: str,
    module: str,
    softhsm_conf: str,
    pipeline: str,
) -> str:
    """Return the starter configuration: `release` for statements, `scratch` for blind digests, both for `pipeline`."""
    allow = "\n".join(
        [
            allow_table(pipeline, ["sign", "readKeys", "readAudit", "readTokens"], ["release"], [IN_TOTO]),
            allow_table(pipeline, ["sign", "signBlind", "readKeys"], ["scratch"], [IN_TOTO]),
        ]
    )
    return _CONFIG.format(
        this_file=this_file,
        listen=quoted(listen),
        metrics_listen=quoted(metrics_listen),
        store_url=quoted(store_url),
        origin=quoted(origin),
        token_label=token_label,
        module=quoted(module),
        softhsm_conf=quoted(softhsm_conf),
        allow=allow,
    )


def profile_text(*, this_file: str, listen: str, client_cert: str, client_key: str) -> str:
    """Return a profile for a client of the daemon at `listen`; certificate and key are named relative to it."""
    host, port = listen.rsplit(":", 1)
    address = f"localhost:{port}" if host in _UNSPECIFIED else listen
    return _PROFILE.format(
        this_file=this_file, address=quoted(address), client_cert=quoted(client_cert), client_key=quoted(client_key)
    )


def _listed(values: Sequence[str]) -> str:
    return "[" + ", ".join(quoted(value) for value in values) + "]"
