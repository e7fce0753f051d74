"""Make a throwaway SoftHSM token with keys in it, for trying things out.

    .venv/bin/python softhsm-config/create_token.py DIR --key release:ec-p256 --key big:rsa-3072

makes DIR (which must not exist) with softhsm2.conf, tokens/, a random PIN in pin (0600) and the
public keys as NAME.pem, and prints the [[tokens]] and [[keys]] tables that go with it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from greatseald.adapters.tokens.provision import KEY_KINDS, ProvisioningFailed, find_softhsm, provision_softhsm

ALGORITHMS = {
    "ec-p256": ["ecdsa-p256-sha256"],
    "ec-p384": ["ecdsa-p384-sha384"],
    "ec-p521": ["ecdsa-p521-sha512"],
    "ed25519": ["ed25519"],
}
RSA = ["rsa-pss-sha256", "rsa-pkcs1-sha256"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--label", default="greatseal", help="the token's label")
    parser.add_argument("--module", type=Path, help="SoftHSM's library, where it is not in the usual place")
    parser.add_argument(
        "--key", action="append", required=True, metavar="NAME:KIND", help=f"KIND is one of {', '.join(KEY_KINDS)}"
    )
    options = parser.parse_args()
    keys = [tuple(key.split(":", 1)) for key in options.key]
    if any(len(key) != 2 or key[1] not in KEY_KINDS for key in keys):
        parser.error(f"--key takes NAME:KIND, and KIND is one of {', '.join(KEY_KINDS)}")
    directory = options.directory.absolute()
    try:
        module = options.module or find_softhsm()
        directory.mkdir(mode=0o700)
        made = provision_softhsm(directory, module, options.label, [(name, kind) for name, kind in keys])
    except (ProvisioningFailed, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, spki in made.items():
        pem = load_der_public_key(spki).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (directory / f"{name}.pem").write_bytes(pem)
    print(tables(directory, module, options.label, dict(keys)))
    return 0


def tables(directory: Path, module: Path, label: str, keys: dict[str, str]) -> str:
    """Return what a configuration needs to use the token."""
    lines = [
        "[[tokens]]",
        f"name = {json.dumps(label)}",
        'type = "pkcs11"',
        f"uri = {json.dumps(f'pkcs11:token={label}')}",
        f"module = {json.dumps(str(module))}",
        f"environment = {{ SOFTHSM2_CONF = {json.dumps(str(directory / 'softhsm2.conf'))} }}",
        f"pin_file = {json.dumps(str(directory / 'pin'))}",
        f"state_dir = {json.dumps(str(directory / 'state'))}",
        "sessions = 2",
        'lockout = "none"',
    ]
    for name, kind in keys.items():
        lines += [
            "",
            "[[keys]]",
            f"name = {json.dumps(name)}",
            f"token = {json.dumps(label)}",
            f"uri = {json.dumps(f'pkcs11:object={name}')}",
            f"algorithms = {json.dumps(ALGORITHMS.get(kind, RSA))}",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
