"""The way to the daemon, step by step: the name, the port, TLS as gRPC would do it, and whether our certificate is taken."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from greatseal.cli.findings import Finding, fail, ok, warn
from greatseal.errors import Unavailable, UsageError

if TYPE_CHECKING:
    from cryptography import x509

    from greatseal.profile import Profile

WARN_DAYS: Final = 14
"""Certificates that expire within so many days deserve a look."""
_UNAVAILABLE: Final = Unavailable.exit_code
_USAGE: Final = UsageError.exit_code
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
"""What an HTTP/2 client says first, with empty settings (RFC 9113, 3.4)."""


def own_certificate(profile: Profile) -> Finding:
    """Look at our certificate and its key, as files."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    name = "client certificate"
    _, key_pem, chain_pem = profile.credentials()
    try:
        certificate = x509.load_pem_x509_certificates(chain_pem)[0]
        key = load_pem_private_key(key_pem, None)
    except (ValueError, TypeError, IndexError) as error:
        return fail(
            name,
            f"{profile.client_cert} or {profile.client_key} cannot be read: {error}",
            "give a PEM certificate and its unencrypted PEM key",
            exit_code=_USAGE,
        )
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        return fail(
            name,
            f"{profile.client_key} is not the key of {profile.client_cert}",
            "name the two files that belong together",
            exit_code=_USAGE,
        )
    data = {"identity": identity(certificate), "serial": f"{certificate.serial_number:X}"}
    return lifetime(
        name, data["identity"], certificate, "ask the operator for a new one (greatseald client add)", **data
    )


def lifetime(name: str, subject: str, certificate: x509.Certificate, todo: str, **data: Any) -> Finding:
    """Return whether a certificate is valid now, and for how long."""
    now = datetime.now(UTC)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    days = int((end - now) / timedelta(days=1))
    data |= {"not_after": end.strftime("%Y-%m-%dT%H:%M:%SZ"), "days_left": days}
    when = end.strftime("%Y-%m-%d %H:%M UTC")
    if now > end:
        return fail(name, f"{subject}: expired on {when}", todo, exit_code=_UNAVAILABLE, **data)
    if now < begin:
        text = f"{subject}: valid only from {begin:%Y-%m-%d %H:%M UTC} on"
        return fail(name, text, "compare this machine's clock with another one", exit_code=_UNAVAILABLE, **data)
    text = f"{subject}: expires in {days} day{'' if days == 1 else 's'}, {when}"
    return warn(name, text, todo, **data) if days < WARN_DAYS else ok(name, text, **data)


def identity(certificate: x509.Certificate) -> str:
    """Return what the daemon's rules would call the holder: its SPIFFE id, else DNS name, e-mail address or subject."""
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return certificate.subject.rfc4514_string()
    spiffe = [uri for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if uri.startswith("spiffe://")]
    found = spiffe or names.get_values_for_type(x509.DNSName) or names.get_values_for_type(x509.RFC822Name)
    return found[0] if found else certificate.subject.rfc4514_string()


def connect(target: str, seconds: float) -> tuple[Finding, socket.socket | None]:
    """Resolve the name and open a connection; the caller closes it."""
    host, _, port = target.rpartition(":")
    host = host.strip("[]")
    name = "connection"
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        todo = "correct address in the profile, or ask whoever runs the name service"
        why = getattr(error, "strerror", None) or str(error)
        return fail(name, f"{host} is no name that can be resolved: {why}", todo, exit_code=_UNAVAILABLE), None
    addresses = sorted({str(each[4][0]) for each in found})
    try:
        opened = socket.create_connection((host, int(port)), seconds)
    except OSError as error:
        why = error.strerror or f"no answer within {seconds:.0f} s"
        todo = "is greatseald running, does its ready line name this address, and does no firewall stand between?"
        text = f"{target} ({', '.join(addresses)}): {why}"
        return fail(name, text, todo, exit_code=_UNAVAILABLE, addresses=addresses), None
    return ok(name, f"{host} is {', '.join(addresses)}; port {port} answers", addresses=addresses), opened


def handshake(profile: Profile, target: str, opened: socket.socket, seconds: float) -> list[Finding]:
    """Speak TLS as gRPC does, and wait for the daemon's first words, for it refuses a certificate only then."""
    expected = profile.server_name or target.rpartition(":")[0].strip("[]")
    ca, _, _ = profile.credentials()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    assert profile.client_cert is not None  # noqa: S101 - credentials() refused that
    try:
        context.load_verify_locations(cadata=ca.decode("ascii", "replace"))
        # An empty password, so that an encrypted key is an error and never a question.
        context.load_cert_chain(profile.client_cert, profile.client_key, password="")
    except (ssl.SSLError, ValueError) as error:
        todo = "ca_cert, client_cert and client_key must be PEM, the key unencrypted"
        return [fail("tls", f"the profile's files cannot be used: {error}", todo, exit_code=_USAGE)]
    try:
        with context.wrap_socket(opened, server_hostname=expected) as secured:
            found = [_server(secured.getpeercert(binary_form=True), expected)]
            version = secured.version() or "TLS"
            return [*found, _accepted(secured, version)]
    except ssl.SSLCertVerificationError as error:
        return [_distrusted(target, expected, error, seconds)]
    except (ssl.SSLError, OSError) as error:
        return [_refused(error)]


def _accepted(secured: ssl.SSLSocket, version: str) -> Finding:
    try:
        secured.sendall(_PREFACE)
        heard = secured.recv(9)
    except (ssl.SSLError, OSError) as error:
        return _refused(error)
    if not heard:
        return _refused(ConnectionResetError(0, "the daemon hung up"))
    return ok("tls", f"{version}, and the daemon takes our certificate", version=version)


def _refused(error: OSError) -> Finding:
    why = getattr(error, "reason", None) or error.strerror or str(error)
    todo = (
        "the daemon does not take our certificate: it must be valid and issued by a CA in the daemon's client_ca; "
        "or the port belongs to something else than greatseald"
    )
    return fail("tls", f"the connection ended during the handshake: {why}", todo, exit_code=_UNAVAILABLE)


def _server(der: bytes | None, expected: str) -> Finding:
    from cryptography import x509

    certificate = x509.load_der_x509_certificate(der or b"")
    todo = "tell the operator to renew it"
    return lifetime(
        "server certificate", _named(certificate), certificate, todo, names=_names(certificate), expected=expected
    )


def _distrusted(target: str, expected: str, error: ssl.SSLCertVerificationError, seconds: float) -> Finding:
    """Say what certificate is there instead, looked at without trust and with nothing sent."""
    from cryptography import x509

    host, _, port = target.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    shown, data = "", {"expected": expected, "why": error.verify_message}
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), seconds) as again,
            context.wrap_socket(again, server_hostname=expected) as secured,
        ):
            certificate = x509.load_der_x509_certificate(secured.getpeercert(binary_form=True) or b"")
        shown = f" It is {_named(certificate)}, valid to {certificate.not_valid_after_utc:%Y-%m-%d %H:%M UTC}"
    except (OSError, ValueError):
        pass  # what the daemon shows is a help, and the failure stands without it
    why = error.verify_message.rstrip(".")
    todo = "compare ca_cert with the CA of the daemon's certificate; do not go on before you know why they differ"
    if "mismatch" in why:
        todo = "the name expected comes from server_name or the address: set server_name to a name in the certificate"
    elif "expired" in why:
        todo = "tell the operator to renew it, or set this machine's clock"
    text = f"not trusted as {expected}: {why}.{shown}"
    return fail("server certificate", text, todo, exit_code=_UNAVAILABLE, **data)


def _names(certificate: x509.Certificate) -> list[str]:
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def _named(certificate: x509.Certificate) -> str:
    return ", ".join(_names(certificate)[:5]) or certificate.subject.rfc4514_string()
