"""Making a token and key pairs through a PKCS#11 module, in a process of its own (`provision.py`).

Private keys are made in the token, sign only, sensitive, not extractable, and looked at afterwards:
templates are requests, and what counts is what the token made of them.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pkcs11
from pkcs11 import Attribute, KeyType, MechanismFlag
from pkcs11.constants import DEFAULT

from greatseald.adapters.tokens.curves import ED25519, Curve
from greatseald.adapters.tokens.device import TokenNotFound
from greatseald.adapters.tokens.pkcs11 import Module, Session
from greatseald.adapters.tokens.uris import PkcsUri

# What python-pkcs11 puts into its templates; PKCS#11 3.2's are unknown to most modules.
_UNKNOWN_TO_MOST: Final = (Attribute.ENCAPSULATE, Attribute.DECAPSULATE)
_PRIVATE_USES: Final = (Attribute.DECRYPT, Attribute.UNWRAP, Attribute.DERIVE, Attribute.SIGN_RECOVER)
_PUBLIC_USES: Final = (Attribute.ENCRYPT, Attribute.WRAP, Attribute.DERIVE, Attribute.VERIFY_RECOVER)
_TEMPLATE_REFUSED: Final = (
    pkcs11.AttributeTypeInvalid,
    pkcs11.AttributeValueInvalid,
    pkcs11.TemplateInconsistent,
    pkcs11.TemplateIncomplete,
)


class KeyNotAsAsked(Exception):
    """A key was made, and it is not what was asked for."""


class TokenForGeneration:
    """A token with a read-write session that is logged in as user."""

    def __init__(self, module: Module, session: Session, writable: Any) -> None:
        self.module = module
        self.session = session
        self.writable = writable


def open_for_generation(path: Path, label: str, pin: bytes, so_pin: bytes) -> TokenForGeneration:
    """Open the token with this label, making it in the first free slot where there is none.

    Raises:
        ModuleUnusable, TokenNotFound, CryptokiError: as their names say.
    """
    module = Module(path, "")
    try:
        module.choose_token(PkcsUri(token=label))
    except TokenNotFound:
        slot = module.free_slot()
        module.cryptoki.init_token(slot, so_pin, label)
        # SoftHSM gives the new token another slot.
        module.choose_token(PkcsUri(token=label))
        assert module.description is not None  # noqa: S101 - choose_token returned
        module.cryptoki.set_user_pin(module.description.slot, so_pin, pin)
    session = module.open_session()
    module.login(session, pin)
    return TokenForGeneration(module, session, module.open_writable())


def generate_key(token: TokenForGeneration, label: str, kind: str, curve: Curve | None) -> bytes:
    """Make one key pair and return its SubjectPublicKeyInfo (DER). `curve` is None for RSA.

    Raises:
        KeyNotAsAsked: a key with this label is there, or the token made something else.
        pkcs11.PKCS11Error: the token refused.
    """
    uri = f"pkcs11:object={_quoted(label)}"
    if list(token.writable.get_objects({Attribute.LABEL: label, Attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY})):
        message = f"a key {label!r} is in the token already"
        raise KeyNotAsAsked(message)
    try:  # SoftHSM allows every use that a template does not forbid
        key = _generate(token.writable, label, kind, curve, unused=False)
    except _TEMPLATE_REFUSED:  # and other modules refuse templates that speak of uses they do not have
        key = _generate(token.writable, label, kind, curve, unused=DEFAULT)
    _verify(label, key)
    return token.module.describe_key(token.session, uri).spki


def _generate(session: Any, label: str, kind: str, curve: Curve | None, *, unused: Any) -> Any:
    """Generate a key pair; `unused` is the value of attributes that allow other uses, DEFAULT to leave them out."""
    drop = dict.fromkeys((*_PRIVATE_USES, *_PUBLIC_USES, *_UNKNOWN_TO_MOST), DEFAULT)
    private = {
        **drop,
        **dict.fromkeys(_PRIVATE_USES, unused),
        Attribute.VERIFY: DEFAULT,
        Attribute.SIGN: True,
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: False,
        Attribute.PRIVATE: True,
    }
    public = {**drop, **dict.fromkeys(_PUBLIC_USES, unused), Attribute.SIGN: DEFAULT, Attribute.VERIFY: True}
    arguments: dict[str, Any] = {
        "id": label.encode("utf-8"),
        "label": label,
        "store": True,
        "capabilities": MechanismFlag.SIGN | MechanismFlag.VERIFY,
        "private_template": private,
        "public_template": public,
    }
    if curve is not None:
        family = KeyType.EC_EDWARDS if curve is ED25519 else KeyType.EC
        parameters = session.create_domain_parameters(family, {Attribute.EC_PARAMS: curve.parameters}, local=True)
        return parameters.generate_keypair(**arguments)[1]
    return session.generate_keypair(KeyType.RSA, int(kind.removeprefix("rsa-")), **arguments)[1]


def _verify(label: str, key: Any) -> None:
    """What the token made: sensitive, not extractable, signs, does nothing else."""
    if not key[Attribute.SENSITIVE] or key[Attribute.EXTRACTABLE] or not key[Attribute.SIGN]:
        message = f"the token made key {label!r} that is not sensitive, or extractable, or does not sign"
        raise KeyNotAsAsked(message)
    for use in _PRIVATE_USES:
        with suppress(pkcs11.AttributeTypeInvalid):
            if key[use]:
                message = f"the token made key {label!r} with {use.name} set: it has to sign only"
                raise KeyNotAsAsked(message)


def _quoted(label: str) -> str:
    return "".join(f"%{byte:02x}" for byte in label.encode("utf-8"))
