#!/usr/bin/env python3
"""Verify an exported Greatseal audit log, with nothing but Python 3.9 or newer.

    python3 greatseal_verify.py DIR --log-key log.vkey [--checkpoint KEPT]... [--keys PEMS]

DIR is a directory of C2SP tiles as `greatseal audit export` writes it. Checked are: the checkpoint's
Ed25519 signature (RFC 8032), the leaf hash of each entry (RFC 6962) against the tiles and the root,
every checkpoint given with --checkpoint, and what the entries say: at most one outcome for each
intent, after it, with its leaf hash, key and digest; no outcome without an intent; no ECDSA nonce
used over two digests. Signatures are verified where the package `cryptography` is installed and
--keys holds the public key; how many were not is said.

Every file is taken for hostile: sizes are bounded before anything is read into memory.
Exit code: 0 verified, 2 wrong usage or an unreadable file, 6 the log is not what it should be.
This file shares no code with Greatseal. The format is docs/audit-format.md.
"""

import argparse
import base64
import hashlib
import json
import sys
from pathlib import Path

WIDTH = 256
MAX_ENTRY = 16 * 1024
MAX_NOTE = 1_000_000
MAX_OPEN = 100_000
RESULTS = {"signed", "failed", "unknown", "aborted"}


class Bad(Exception):
    """The log is not what it should be."""


# --- Ed25519 (RFC 8032, section 5.1), verification only: nothing here is secret

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
SQRT_M1 = pow(2, (P - 1) // 4, P)


def _recover_x(y, sign):
    if y >= P:
        return None
    x2 = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    if x2 == 0:
        return None if sign else 0
    x = pow(x2, (P + 3) // 8, P)
    if (x * x - x2) % P:
        x = x * SQRT_M1 % P
    if (x * x - x2) % P:
        return None
    return P - x if x & 1 != sign else x


def _point(data):
    y = int.from_bytes(data, "little")
    x = _recover_x(y & ((1 << 255) - 1), y >> 255)
    y &= (1 << 255) - 1
    return None if x is None else (x, y, 1, x * y % P)


def _add(a, b):
    e, f = (a[1] - a[0]) * (b[1] - b[0]) % P, (a[1] + a[0]) * (b[1] + b[0]) % P
    g, h = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2] % P
    i, j, k, m = f - e, h - g, h + g, f + e
    return (i * j % P, k * m % P, j * k % P, i * m % P)


def _times(number, point):
    found = (0, 1, 1, 0)
    while number:
        if number & 1:
            found = _add(found, point)
        point = _add(point, point)
        number >>= 1
    return found


BASE_Y = 4 * pow(5, P - 2, P) % P
BASE_X = _recover_x(BASE_Y, 0)
BASE = (BASE_X, BASE_Y, 1, BASE_X * BASE_Y % P)


def ed25519_verifies(key, message, signature):
    """Whether `signature` (64 bytes) over `message` is by `key` (32 bytes)."""
    if len(key) != 32 or len(signature) != 64:
        return False
    public, commitment = _point(key), _point(signature[:32])
    scalar = int.from_bytes(signature[32:], "little")
    if public is None or commitment is None or scalar >= L:
        return False
    challenge = int.from_bytes(hashlib.sha512(signature[:32] + key + message).digest(), "little") % L
    left, right = _times(scalar, BASE), _add(commitment, _times(challenge, public))
    return not (left[0] * right[2] - right[0] * left[2]) % P and not (left[1] * right[2] - right[1] * left[2]) % P


# --- notes and checkpoints, as C2SP signed-note and tlog-checkpoint have them


def _base64(text, what):
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except ValueError:
        raise Bad(f"{what} is not base64") from None
    if base64.b64encode(data).decode() != text:
        raise Bad(f"{what} is not canonical base64")
    return data


def parse_vkey(line):
    """Return origin, key id and public key of a verifier key."""
    parts = line.strip().split("+", 2)
    if len(parts) != 3:
        raise Bad("the log key is no verifier key: origin+id+base64")
    origin, identifier, encoded = parts
    data = _base64(encoded, "the log key")
    if len(data) != 33 or data[0] != 1:
        raise Bad("the log key is not an Ed25519 key")
    key_id = hashlib.sha256(origin.encode() + b"\n" + data).digest()[:4]
    if key_id.hex() != identifier:
        raise Bad("the log key's id is not that of its key")
    return origin, key_id, data[1:]


def open_checkpoint(data, vkey, what):
    """Return size and root of a checkpoint that the log's key signed."""
    origin, key_id, public = vkey
    try:
        note = data.decode()
    except UnicodeDecodeError:
        raise Bad(f"{what} is not UTF-8") from None
    text, separator, signed = note.rpartition("\n\n")
    text += "\n"
    if not separator or not signed.endswith("\n") or signed.count("\n") > 100:
        raise Bad(f"{what} is no signed note")
    verified = False
    for line in signed[:-1].split("\n"):
        parts = line.split(" ")
        if len(parts) != 3 or parts[0] != "\u2014":
            raise Bad(f"{what} has a malformed signature line")
        signature = _base64(parts[2], f"a signature of {what}")
        if parts[1] == origin and signature[:4] == key_id:
            if not ed25519_verifies(public, text.encode(), signature[4:]):
                raise Bad(f"{what} is not signed by the log's key: its signature is wrong")
            verified = True
    if not verified:
        raise Bad(f"{what} is not signed by the log's key")
    lines = text.split("\n")
    if len(lines) != 4 or lines[0] != origin:
        raise Bad(f"{what} is no checkpoint of {origin}")
    size, root = lines[1], _base64(lines[2], f"the root of {what}")
    if (
        not size.isascii()
        or not size.isdigit()
        or str(int(size[:20])) != size
        or int(size) >= 1 << 63
        or len(root) != 32
    ):
        raise Bad(f"{what} has a malformed size or root")
    return int(size), root


# --- tree and tiles (RFC 6962, c2sp.org/tlog-tiles)


def node(left, right):
    """The hash above two hashes."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def fold(row):
    """The hash above a power of two of hashes."""
    while len(row) > 1:
        row = [node(row[at], row[at + 1]) for at in range(0, len(row), 2)]
    return row[0]


def tile_path(level, number, width):
    """Where a tile or bundle stands."""
    groups = [f"{number % 1000:03d}"]
    while number >= 1000:
        number //= 1000
        groups.append(f"x{number % 1000:03d}")
    return f"tile/{level}/{'/'.join(reversed(groups))}{'' if width == WIDTH else f'.p/{width}'}"


class Tiles:
    """The tree of the entries read so far, compared with the stored tiles as it grows."""

    def __init__(self, directory):
        self.directory = directory
        self.rows = []
        self.size = 0
        self.first_bad = None

    def append(self, leaf):
        """Add a leaf's hash."""
        self.size += 1
        level = 0
        while True:
            if level == len(self.rows):
                self.rows.append([])
            row = self.rows[level]
            row.append(leaf)
            if len(row) < WIDTH:
                return
            self.rows[level] = []
            self.compare(level, (self.size >> 8 * (level + 1)) - 1, row)
            leaf = fold(row)
            level += 1

    def finish(self):
        """Compare the partial tiles too."""
        for level, row in enumerate(self.rows):
            if row:
                self.compare(level, self.size >> 8 * (level + 1), row)

    def compare(self, level, number, row):
        """Note the first entry whose hash is not in its tile."""
        stored = read(self.directory / tile_path(level, number, len(row)), WIDTH * 32)
        for place, digest in enumerate(row):
            if stored[32 * place : 32 * place + 32] != digest or len(stored) != 32 * len(row):
                index = (number * WIDTH + place) << 8 * level
                self.first_bad = index if self.first_bad is None else min(index, self.first_bad)
                return

    def root(self):
        """The root of the leaves so far."""
        perfect = []
        for row in reversed(self.rows):
            at = 0
            for height in range(7, -1, -1):
                if len(row) >> height & 1:
                    perfect.append(fold(row[at : at + (1 << height)]))
                    at += 1 << height
        if not perfect:
            return hashlib.sha256(b"").digest()
        root = perfect.pop()
        while perfect:
            root = node(perfect.pop(), root)
        return root


def bundles(directory, size):
    """Give the bytes of every entry."""
    for first in range(0, size, WIDTH):
        width = min(WIDTH, size - first)
        path = directory / tile_path("entries", first // WIDTH, width)
        data, at = read(path, WIDTH * (2 + MAX_ENTRY)), 0
        for index in range(first, first + width):
            end = at + 2 + int.from_bytes(data[at : at + 2], "big")
            if len(data) < at + 2 or len(data) < end or end - at - 2 > MAX_ENTRY:
                raise Bad(f"entry {index} is cut off in {path}")
            yield data[at + 2 : end]
            at = end
        if at != len(data):
            raise Bad(f"{path} holds more than {width} entries")


# --- what the entries say


def _pairs(pairs):
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _refuse(text):
    raise ValueError(f"{text} is no number")


def text_at(value, *path):
    """The text at a path; empty where there is none."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else ""


class Meaning:
    """Checks what entries say of each other; returns what is wrong with each, or an empty text."""

    def __init__(self, origin, keys):
        self.origin = origin
        self.keys = keys
        self.open = {}
        self.counts = {}
        self.nonces = {}
        self.verified = 0
        self.unchecked = {}

    def read(self, index, leaf, data):
        """Take the next entry."""
        try:
            entry = json.loads(data.decode(), object_pairs_hook=_pairs, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            return f"is no JSON as it should be ({str(error)[:80]})"
        if not isinstance(entry, dict) or entry.get("v") != 1 or isinstance(entry.get("v"), bool):
            return "is not an entry of version 1"
        if entry.get("log") != self.origin:
            return "names another log"
        kind = entry.get("t")
        if kind not in ("intent", "outcome", "denied", "admin"):
            return "is of an unknown kind"
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if kind == "intent":
            return self.intent(index, leaf, entry)
        return self.outcome(index, entry) if kind == "outcome" else ""

    def intent(self, index, leaf, entry):
        """An intent waits for its outcome."""
        about = (text_at(entry, "key", "spki_sha256"), text_at(entry, "tbs"), text_at(entry, "mech"))
        if not all(about):
            return "is an intent without key, tbs or mech"
        if len(self.open) >= MAX_OPEN:
            return f"is one of over {MAX_OPEN} intents without an outcome"
        self.open[index] = (leaf.hex(), *about)
        return ""

    def outcome(self, index, entry):
        """An outcome closes one intent, once, and repeats what it said."""
        reference = entry.get("intent")
        closes = reference.get("index") if isinstance(reference, dict) else None
        if not isinstance(closes, int) or isinstance(closes, bool) or closes not in self.open:
            return f"is an outcome of {str(closes)[:20]}, which is no open intent: a second outcome, or one of nothing"
        leaf, spki, tbs, mech = self.open.pop(closes)
        if text_at(entry, "intent", "leaf_hash") != leaf:
            return f"is an outcome of entry {closes} and repeats another leaf hash than that entry has"
        if (text_at(entry, "key", "spki_sha256"), text_at(entry, "tbs")) != (spki, tbs):
            return f"is an outcome of entry {closes} with another key or digest than that intent's"
        result, signature = text_at(entry, "res"), text_at(entry, "sig")
        if result not in RESULTS or (result == "signed") != bool(signature):
            return f"is an outcome with the result {result[:20]!r} and {'a' if signature else 'no'} signature"
        return self.signature(index, spki, tbs, mech, signature) if signature else ""

    def signature(self, index, spki, tbs, mech, encoded):
        """A signature is by its key over its digest, and no nonce stands twice."""
        try:
            signature, digest = base64.b64decode(encoded, validate=True), bytes.fromhex(tbs)
        except ValueError:
            return "holds a signature or digest that is not base64 or hexadecimal"
        if mech.startswith("ecdsa-"):
            if len(signature) < 8 or signature[0] != 0x30:
                return "holds a signature that is not DER"
            at = 4 if signature[1] & 0x80 else 3  # past the sequence's length, at that of r
            r = signature[at + 1 : at + 1 + signature[at]].lstrip(b"\0")
            mark = hashlib.sha256(spki.encode() + b"\0" + r).digest()[:12]
            earlier, signed = self.nonces.setdefault(mark, (index, digest))
            if signed != digest:
                return f"has the same key and nonce as entry {earlier} over another digest: the private key is lost"
        key = self.keys.get(spki)
        if key is None or mech == "ed25519":  # Ed25519 signs the message, and the log has its digest only
            name = spki if key is None else mech
            if name in self.unchecked or len(self.unchecked) < 1000:
                self.unchecked[name] = self.unchecked.get(name, 0) + 1
            return ""
        problem = verify_signature(key, mech, digest, signature)
        self.verified += not problem
        return problem


def verify_signature(key, mech, digest, signature):
    """Say what is wrong with a signature; takes the package `cryptography`."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, padding, utils

    name = mech.rsplit("-", 1)[-1]
    known = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384(), "sha512": hashes.SHA512()}
    if name not in known:
        return f"has the unknown algorithm {mech[:40]!r}"
    hashed = utils.Prehashed(known[name])
    try:
        if mech.startswith("ecdsa-") and isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, digest, ec.ECDSA(hashed))
        elif mech.startswith("rsa-pss-"):
            key.verify(signature, digest, padding.PSS(padding.MGF1(known[name]), known[name].digest_size), hashed)
        elif mech.startswith("rsa-pkcs1-"):
            key.verify(signature, digest, padding.PKCS1v15(), hashed)
        else:
            return f"has the algorithm {mech[:40]!r}, which its key does not fit"
    except (InvalidSignature, ValueError, TypeError, AttributeError):
        return "holds a signature that its key did not make over this digest"
    return ""


def load_keys(directory):
    """Return public keys by the SHA-256 of their SubjectPublicKeyInfo; none without `cryptography`."""
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError:
        print("the package cryptography is not installed: no signature is checked", file=sys.stderr)
        return {}
    found = {}
    for path in sorted(directory.glob("*.pem")):
        try:
            key = serialization.load_pem_public_key(read(path, MAX_ENTRY))
        except (ValueError, TypeError):
            raise Bad(f"{path} holds no public key") from None
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        found[hashlib.sha256(key.public_bytes(serialization.Encoding.DER, form)).hexdigest()] = key
    return found


# --- all of it


def read(path, limit):
    """Read a file of at most `limit` bytes."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise Bad(f"{path} is missing") from None
    if len(data) > limit:
        raise Bad(f"{path} is over {limit} bytes")
    return data


def verify(directory, vkey, kept=(), keys=None):
    """Verify a directory; return its size and what its entries said. Raises Bad, which names the first bad entry."""
    size, root = open_checkpoint(read(directory / "checkpoint", MAX_NOTE), vkey, "the checkpoint")
    tiles, meaning = Tiles(directory), Meaning(vkey[0], keys or {})
    roots = {0: tiles.root(), **dict.fromkeys(size_of for _, size_of, _ in kept)}
    first = None
    for index, data in enumerate(bundles(directory, size)):
        leaf = hashlib.sha256(b"\0" + data).digest()
        tiles.append(leaf)
        if tiles.size in roots:
            roots[tiles.size] = tiles.root()
        problem = meaning.read(index, leaf, data)
        if problem and first is None:
            first = (index, problem)
        if index % 50_000 == 49_999 and sys.stderr.isatty():
            print(f"\r{index + 1} of {size} entries", end="", file=sys.stderr)
    tiles.finish()
    if tiles.first_bad is not None and (first is None or tiles.first_bad <= first[0]):
        first = (tiles.first_bad, "does not lead to the hash in its tile")
    if first is not None:
        raise Bad(f"the log is bad from entry {first[0]} on: entry {first[0]} {first[1]}")
    if tiles.root() != root:
        raise Bad("entries and tiles agree with each other and not with the checkpoint: both were changed")
    for path, kept_size, kept_root in kept:
        if kept_size > size or roots[kept_size] != kept_root:
            raise Bad(
                f"{path} (size {kept_size}) is not the beginning of this log of {size}: cut off, rolled back or forked"
            )
    return size, meaning


def main(arguments=None):
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(description="Verify an exported Greatseal audit log.")
    parser.add_argument("directory", type=Path, help="the export")
    parser.add_argument("--log-key", required=True, help="the log's verifier key, or a file that holds it")
    parser.add_argument("--checkpoint", type=Path, action="append", default=[], help="one kept earlier; repeatable")
    parser.add_argument("--keys", type=Path, help="a directory of public keys, *.pem")
    options = parser.parse_args(arguments)
    try:
        line = options.log_key
        vkey = parse_vkey(read(Path(line), MAX_ENTRY).decode("utf-8", "replace") if line.count("+") < 2 else line)
        kept = [(path, *open_checkpoint(read(path, MAX_NOTE), vkey, path)) for path in options.checkpoint]
        keys = load_keys(options.keys) if options.keys else {}
        size, meaning = verify(options.directory, vkey, kept, keys)
    except Bad as error:
        print(f"NOT VERIFIED: {error}", file=sys.stderr)
        return 6
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"log {vkey[0]}: {size} entries, {len(kept) + 1} checkpoints verified")
    for kind, count in sorted(meaning.counts.items()):
        print(f"  {kind}: {count}")
    print(f"  open intents: {len(meaning.open)}")
    print(f"  signatures: {meaning.verified} verified, {sum(meaning.unchecked.values())} not checked")
    for spki, count in meaning.unchecked.items():
        print(f"    not checked: {count} by the key {spki}")
    print("OK")
    return 0


if __name__ == "__main__":
    sys.exit(main())
