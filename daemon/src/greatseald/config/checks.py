"""What takes a second table or a file to check: names that must exist, secrets that must be secret.

Private keys and certificates are parsed here so that a daemon never starts, or reloads, with files
that do not fit together. PINs are not: the token host alone reads them; only their mode is looked at.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from greatseald.config.positions import Path as Place
from greatseald.config.problems import did_you_mean
from greatseald.config.values import is_loopback
from greatseald.domain.keys import Holder
from greatseald.domain.policy import ANY, SIGN, SIGN_BLIND

MAX_FILE_BYTES: Final = 1024 * 1024
MAX_SOCKET_PATH: Final = 107
_CREDENTIALS: Final = Path("/run/credentials")
EXPIRY_WARNING: Final = timedelta(days=30)

Report = Callable[..., None]
CheckUri = Callable[[str, bool], None]


@dataclass(slots=True)
class Found:
    """What the checks read on their way: certificate chains by key name (DER, leaf first), and warnings."""

    chains: dict[str, tuple[bytes, ...]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class FileProblem(Exception):
    """A file cannot be used; the message says why, `hint` what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def check_secret_mode(path: Path) -> None:
    """Refuse a secret that others can read.

    Raises:
        FileProblem: the file is missing, not a regular file, or readable by group or world.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise FileProblem(f"names {path}, which cannot be used: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise FileProblem(f"names {path}, which is not a regular file")
    # The service manager lets the unit's user read a credential by an ACL, whose mask shows as the group's right.
    others = 0o037 if _is_credential(path) else 0o077
    if status.st_mode & others:
        mode = stat.S_IMODE(status.st_mode)
        raise FileProblem(f"names {path}, which others can read (mode {mode:04o})", f"run: chmod 600 {path}")


def _is_credential(path: Path) -> bool:
    """Whether a file is one of systemd's credentials, which only root and the unit's user reach."""
    directories = [_CREDENTIALS]
    if os.environ.get("CREDENTIALS_DIRECTORY"):
        directories.append(Path(os.environ["CREDENTIALS_DIRECTORY"]))
    return any(path.is_relative_to(directory) for directory in directories) and ".." not in path.parts


def read_file(path: Path, *, secret: bool = False) -> bytes:
    """Read a small file, a secret one only if nobody else can.

    Raises:
        FileProblem: it is missing, unreadable, too large, or a secret that others can read.
    """
    if secret:
        check_secret_mode(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise FileProblem(f"names {path}, which cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise FileProblem(f"names {path}, which is larger than {MAX_FILE_BYTES} bytes")
    return data


def read_certificates(path: Path) -> list[x509.Certificate]:
    """Read a PEM file of one or more certificates.

    Raises:
        FileProblem: it cannot be read, or holds no certificate.
    """
    data = read_file(path)
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise FileProblem(f"names {path}, which holds no PEM certificate that can be parsed") from error


def read_private_key(path: Path) -> Any:
    """Read an unencrypted PEM private key from a file that only its owner can read.

    Raises:
        FileProblem: it cannot.
    """
    data = read_file(path, secret=True)
    try:
        return load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as error:
        raise FileProblem(f"names {path}, which holds no unencrypted PEM private key") from error


def read_log_key(path: Path) -> Ed25519PrivateKey:
    """Read the key that signs checkpoints.

    Raises:
        FileProblem: the file cannot be used or holds another kind of key.
    """
    key = read_private_key(path)
    if not isinstance(key, Ed25519PrivateKey):
        raise FileProblem(f"names {path}, whose key is not Ed25519")
    return key


def read_head_mac_key(path: Path) -> bytes:
    """Read the 32 bytes that authenticate the log's head, written as 64 hexadecimal digits.

    Raises:
        FileProblem: the file cannot be used or holds something else.
    """
    try:
        key = bytes.fromhex(read_file(path, secret=True).decode("ascii").strip())
    except ValueError as error:
        raise FileProblem(f"names {path}, which does not hold 64 hexadecimal digits") from error
    if len(key) != 32:
        raise FileProblem(f"names {path}, which holds {len(key)} bytes in hexadecimal instead of 32")
    return key


def read_header(path: Path) -> tuple[str, str]:
    """Read one HTTP header, `Name: value`, from a file that only its owner can read.

    Raises:
        FileProblem: the file cannot be used or holds something else. The message never quotes it.
    """
    data = read_file(path, secret=True)
    try:
        name, colon, value = data.decode("ascii").strip().partition(":")
    except UnicodeDecodeError:
        name = colon = value = ""
    if not colon or re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name) is None or not value.strip().isprintable():
        raise FileProblem(f"names {path}, which does not hold one line like `Authorization: Bearer …`")
    return name, value.strip()


def read_store_password(store: Any) -> str:
    """Read the store's password from its file or the service manager's credential; "" where neither is named.

    Raises:
        FileProblem: it cannot be read, others can read it, or it is no single line of up to 1,024 characters.
    """
    if store.password_file is not None:
        path = store.password_file
    elif store.password_credential:
        directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
        if not directory:
            raise FileProblem(
                f"names the credential {store.password_credential}, and there are none (CREDENTIALS_DIRECTORY is not set)",
                "start the daemon from a unit with LoadCredential= or LoadCredentialEncrypted=",
            )
        path = Path(directory) / store.password_credential
    else:
        return ""
    # A credential's directory is private to the unit; its files are of mode 0440 there.
    data = read_file(path, secret=store.password_file is not None)
    try:
        password = data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise FileProblem(f"names {path}, which is not UTF-8") from error
    if not 0 < len(password) <= 1024 or not password.isprintable():
        raise FileProblem(f"names {path}, which does not hold one line of 1 to 1,024 characters")
    return password


def read_tls(cert: Path, key: Path, client_ca: Path) -> tuple[bytes, bytes, bytes]:
    """Read and match the server's chain, its private key and the clients' CAs, as PEM.

    Raises:
        FileProblem: one of them cannot be used, or key and certificate do not belong together.
    """
    chain = read_certificates(cert)
    private = read_private_key(key)
    if _spki(private.public_key()) != _spki(chain[0].public_key()):
        raise FileProblem(f"names {cert}, which is not the certificate of the key in {key}")
    read_certificates(client_ca)
    return read_file(cert), read_file(key, secret=True), read_file(client_ca)


def _spki(public_key: Any) -> bytes:
    data: bytes = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return data


def _read_chain(path: Path) -> tuple[bytes, ...]:
    chain = read_certificates(path)
    for number, (lower, upper) in enumerate(pairwise(chain)):
        try:
            lower.verify_directly_issued_by(upper)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise FileProblem(
                f"names {path}, whose certificate {number + 1} was not issued by certificate {number + 2}",
                "put the leaf first, then each issuer",
            ) from error
    if len(chain) > 1 and chain[-1].issuer == chain[-1].subject:
        raise FileProblem(f"names {path}, which ends in a root", "leave the root out: whoever verifies has it")
    return tuple(cert.public_bytes(Encoding.DER) for cert in chain)


def _expiry_warning(what: str, cert: x509.Certificate, now: datetime) -> list[str]:
    left = cert.not_valid_after_utc - now
    if left <= timedelta(0):
        return [f"{what} expired on {cert.not_valid_after_utc:%Y-%m-%d}"]
    if left < EXPIRY_WARNING:
        return [f"{what} expires on {cert.not_valid_after_utc:%Y-%m-%d}, in {left.days} days"]
    return []


def check(values: dict[str, Any], file: Path, report: Report, check_uri: CheckUri | None = None) -> Found:
    """Check the tables that are valid by themselves; `report(place, message, hint)` takes each problem."""
    found = Found()
    now = datetime.now(UTC)
    if values.get("server"):
        _check_server(values["server"], report, found, now)
    if values.get("log"):
        _attempt(report, ("log", "key_file"), lambda: read_log_key(values["log"].key_file))
        _attempt(report, ("log", "head_mac_key_file"), lambda: read_head_mac_key(values["log"].head_mac_key_file))
        _check_anchors(values["log"], values["keys"], report)
    if values.get("store"):
        _check_store(values["store"], file, report)
    _check_own_mode(file, report)
    if check_uri is not None:
        for place, uri, names_object in _references(values["tokens"], values["keys"]):
            try:
                check_uri(uri, names_object)
            except ValueError as error:
                report((*place, "uri"), str(error))
    _check_names("tokens", values["tokens"], report)
    _check_names("keys", values["keys"], report)
    _check_tokens(values["tokens"], report)
    _check_keys(values["keys"], values["tokens"], report, found, now)
    _check_rules(values["allow"], values["keys"], report, found)
    _check_names("outbox", values["outbox"], report)
    _check_outboxes(values["outbox"], report, found)
    return found


def _check_anchors(log: Any, keys: Sequence[Any], report: Report) -> None:
    """Witnesses, authorities and peers are told apart, their files can be read, and there are as many as keys want."""
    for table in ("witnesses", "timestamps", "peers"):
        names: set[str] = set()
        for number, row in enumerate(getattr(log, table)):
            place = ("log", table, number)
            name = row.key.name if table == "witnesses" else row.name
            if name in names:
                report((*place, "vkey" if table == "witnesses" else "name"), f"has the name {name!r} a second time")
            names.add(name)
            for file in ("ca", "roots", "client_cert"):
                path = getattr(row, file, None)
                if path is not None:
                    _attempt(report, (*place, file), lambda path=path: read_certificates(path))  # type: ignore[misc]
            if getattr(row, "client_key", None) is not None:
                _attempt(report, (*place, "client_key"), lambda path=row.client_key: read_private_key(path))  # type: ignore[misc]
    different = len({row.key.public_key for row in log.witnesses})
    if different < len(log.witnesses):
        report(("log", "witnesses"), "has one public key under two names: that is one witness")
    for number, key in enumerate(keys):
        if key is not None and key.witnesses > different:
            report(
                ("keys", number, "release"),
                f"is {key.release}, and there are {different} [[log.witnesses]]",
                "add witnesses, or ask for fewer",
            )


def _check_store(store: Any, file: Path, report: Report) -> None:
    if store.has_password:
        try:
            check_secret_mode(file)
        except FileProblem as problem:
            report(("store", "url"), "holds a password, and others can read this file", problem.hint)
    if store.password_file is not None:
        _attempt(report, ("store", "password_file"), lambda: read_store_password(store))


def _check_own_mode(file: Path, report: Report) -> None:
    """Whoever can write the file can allow himself anything."""
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
    except OSError as error:
        report((), f"cannot be looked at: {error.strerror}")
        return
    if mode & 0o022:
        report((), f"can be written by others (mode {mode:04o})", f"run: chmod go-w {file}")


def _attempt(report: Report, place: Place, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except FileProblem as problem:
        report(place, str(problem), problem.hint)
    return None


def _check_server(server: Any, report: Report, found: Found, now: datetime) -> None:
    chain = _attempt(report, ("server", "tls_cert"), lambda: read_certificates(server.tls_cert))
    key = _attempt(report, ("server", "tls_key"), lambda: read_private_key(server.tls_key))
    _attempt(report, ("server", "client_ca"), lambda: read_certificates(server.client_ca))
    if chain and key is not None and _spki(key.public_key()) != _spki(chain[0].public_key()):
        report(
            ("server", "tls_cert"),
            f"names {server.tls_cert}, which is not the certificate of the key in {server.tls_key}",
        )
    if chain:
        found.warnings += _expiry_warning(f"the server certificate {server.tls_cert}", chain[0], now)
        try:
            names = chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            named = names.get_values_for_type(x509.DNSName) or names.get_values_for_type(x509.IPAddress)
        except (x509.ExtensionNotFound, ValueError):
            named = []
        if not named:
            found.warnings.append(
                f"the server certificate {server.tls_cert} has no DNS or IP name: gRPC clients will refuse it"
            )
    length = len(os.fsencode(server.admin_socket))
    if length > MAX_SOCKET_PATH:
        report(
            ("server", "admin_socket"),
            f"is a path of {length} bytes, and a Unix socket takes {MAX_SOCKET_PATH}",
            "name a shorter one, such as /run/greatseald/admin.sock",
        )


def _check_names(table: str, rows: Sequence[Any], report: Report) -> None:
    first: dict[str, int] = {}
    for number, row in enumerate(rows):
        if row is not None and first.setdefault(row.name, number) != number:
            report((table, number, "name"), f"is {row.name!r}, as {table}[{first[row.name]}] is already")


def _check_tokens(tokens: Sequence[Any], report: Report) -> None:
    for number, token in enumerate(tokens):
        if token is None:
            continue
        if token.pin_file is not None and token.pin_credential:
            report(("tokens", number, "pin_credential"), "stands beside pin_file: name one of them")
        if token.unlock and (token.pin_file is not None or token.pin_credential):
            other = "pin_file" if token.pin_file is not None else "pin_credential"
            report(("tokens", number, "unlock"), f"stands beside {other}: an operator gives the PIN, or it lies there")
        length = len(os.fsencode(token.settings().operator_socket))
        if token.unlock and length > MAX_SOCKET_PATH:
            report(
                ("tokens", number, "unlock"),
                f"needs a socket at a path of {length} bytes, and a Unix socket takes {MAX_SOCKET_PATH}",
                "name a shorter one as unlock_socket, in a directory of the host's user",
            )
        if token.host_socket is not None:
            continue  # the host runs as its own user; module and PIN are its business and may be invisible here
        if token.pin_file is not None:
            pin_file = token.pin_file
            _attempt(report, ("tokens", number, "pin_file"), lambda path=pin_file: check_secret_mode(path))  # type: ignore[misc]
        if token.type != "pkcs11":
            if token.management_key_file is not None:
                secret = token.management_key_file
                _attempt(report, ("tokens", number, "management_key_file"), lambda path=secret: check_secret_mode(path))  # type: ignore[misc]
            for place, path in enumerate(token.attestation_roots):
                where = ("tokens", number, "attestation_roots", place)
                _attempt(report, where, lambda path=path: read_certificates(path))  # type: ignore[misc]
            continue
        if not token.module.is_file():
            report(("tokens", number, "module"), f"names {token.module}, which is not a file")


def _holders(number: int, key: Any) -> Iterator[tuple[Place, Holder]]:
    """Each token that holds a key, with the place where that is written."""
    for position, holder in enumerate(key.held):
        yield (("keys", number, "holders", position) if key.holders else ("keys", number)), holder


def _references(tokens: Sequence[Any], keys: Sequence[Any]) -> Iterator[tuple[Place, str, bool]]:
    """Each reference of the configuration, with its place and whether it has to name an object."""
    for number, token in enumerate(tokens):
        if token is not None and token.type == "pkcs11":
            yield ("tokens", number), token.uri, False
    for number, key in enumerate(keys):
        for place, holder in () if key is None else _holders(number, key):
            yield place, holder.uri, True


def _check_holders(number: int, key: Any, tokens: Sequence[Any], report: Report) -> None:
    """A key lies in tokens that there are, in each once, and is named as that token's kind names keys."""
    kinds = {token.name: token.type for token in tokens if token is not None}
    seen: set[str] = set()
    for place, holder in _holders(number, key):
        is_slot = holder.uri.lower().startswith("piv:")
        if holder.token not in kinds and None not in tokens:
            message = f"names the token {holder.token!r}, which is not there"
            report((*place, "token"), message, did_you_mean(holder.token, list(kinds)))
        elif holder.token in seen:
            report((*place, "token"), f"names the token {holder.token!r} twice: a token holds a key once")
        elif kinds.get(holder.token) == "yubikey-piv" and not is_slot:
            message = f"names no slot, and token {holder.token!r} is a YubiKey"
            report((*place, "uri"), message, 'write uri = "piv:slot=9c" (9a, 9c, 9d, 9e, or 82 to 95)')
        elif kinds.get(holder.token) == "pkcs11" and is_slot:
            message = f"names a YubiKey's slot, and token {holder.token!r} is reached through PKCS#11"
            report((*place, "uri"), message, "write a PKCS#11 URI such as pkcs11:object=release")
        seen.add(holder.token)


def _check_keys(keys: Sequence[Any], tokens: Sequence[Any], report: Report, found: Found, now: datetime) -> None:
    for number, key in enumerate(keys):
        if key is None:
            continue
        _check_holders(number, key, tokens, report)
        if len(set(key.algorithms)) != len(key.algorithms):
            report(("keys", number, "algorithms"), "names an algorithm twice")
        if len({algorithm.family for algorithm in key.algorithms}) > 1:
            report(
                ("keys", number, "algorithms"),
                f"mixes {' and '.join(sorted({algorithm.family for algorithm in key.algorithms}))}: a key is of one kind",
            )
        if key.certificate_chain is not None:
            path = key.certificate_chain
            chain = _attempt(report, ("keys", number, "certificate_chain"), lambda path=path: _read_chain(path))  # type: ignore[misc]
            if chain:
                found.chains[key.name] = chain
                leaf = x509.load_der_x509_certificate(chain[0])
                found.warnings += _expiry_warning(f"the certificate of keys/{key.name}", leaf, now)


def _check_outboxes(rows: Sequence[Any], report: Report, found: Found) -> None:
    for number, row in enumerate(rows):
        if row is None:
            continue
        place = ("outbox", number)
        target = urlsplit(row.target)
        secure = target.scheme in {"https", "syslog+tls"}
        for name in ("ca", "client_cert", "client_key"):
            if getattr(row, name) is not None and not secure:
                report((*place, name), f"means nothing for {target.scheme}://: only https and syslog+tls use TLS")
        if row.header_file is not None:
            if target.scheme not in {"http", "https"}:
                report((*place, "header_file"), f"means nothing for {target.scheme}://")
            _attempt(report, (*place, "header_file"), lambda path=row.header_file: read_header(path))  # type: ignore[misc]
        if row.ca is not None:
            _attempt(report, (*place, "ca"), lambda path=row.ca: read_certificates(path))  # type: ignore[misc]
        if (row.client_cert is None) != (row.client_key is None):
            report(place, "has one of client_cert and client_key, and needs both or neither")
        elif row.client_cert is not None:
            chain = _attempt(report, (*place, "client_cert"), lambda path=row.client_cert: read_certificates(path))  # type: ignore[misc]
            key = _attempt(report, (*place, "client_key"), lambda path=row.client_key: read_private_key(path))  # type: ignore[misc]
            if chain and key is not None and _spki(key.public_key()) != _spki(chain[0].public_key()):
                report(
                    (*place, "client_cert"), f"names {row.client_cert}, which is not the certificate of the client_key"
                )
        if target.scheme == "syslog+tcp" and not is_loopback(target.hostname or ""):
            found.warnings.append(
                f"outbox {row.name} sends the log to {target.hostname} without TLS: whoever is on the way reads who signs what"
            )


def _check_rules(rules: Sequence[Any], keys: Sequence[Any], report: Report, found: Found) -> None:
    known = [key.name for key in keys if key is not None]
    for number, rule in enumerate(rules):
        if rule is None:
            continue
        for position, name in enumerate(rule.keys):
            if name != ANY and name not in known and None not in keys:
                report(
                    ("allow", number, "keys", position),
                    f"names the key {name!r}, which is not there",
                    did_you_mean(name, known),
                )
        if SIGN in rule.actions and not rule.payload_types:
            report(
                ("allow", number),
                "allows sign of no payload_types",
                'add payload_types = ["application/vnd.in-toto+json"]',
            )
        if {SIGN, SIGN_BLIND} & set(rule.actions) and not rule.keys:
            report(("allow", number), "allows signing with no keys", 'add keys = ["NAME"]')
    if not rules:
        found.warnings.append("there is no [[allow]] table: every call but WhoAmI is denied")
