"""How a signature file says who signed."""

from __future__ import annotations

from enum import Enum


class Method(str, Enum):
    """`key` names the public key by its hash; `certificate` holds the certificates, without the root."""

    KEY = "key"
    CERTIFICATE = "certificate"
