"""in-toto Statements v1, read strictly: by the daemon before it signs, by the client when it verifies.

One parser for both sides, so that nothing is signed that would not verify. A statement is UTF-8 JSON
without duplicate keys, NaN or infinities, bounded in bytes, values and depth, with the four fields of
the specification and no others. For the predicate type of OMS (OpenSSF Model Signing) the manifest
is checked whole: names valid, no duplicates, strictly ordered by path string, digests SHA-256, and
the one subject's digest equal to the recomputed root.

    statement = parse_statement(payload)
    statement.predicate_type, statement.subjects[0].name, statement.manifest and statement.manifest.root

Errors are `StatementInvalid`, whose `path` points into the document: `predicate.resources[3].name`.

Sources: in-toto/attestation spec/v1/statement.md, OMS specification 1.0 (5.2).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, NoReturn

from greatseal.strictjson import JSONInvalid, check_tree, decode, printable
from greatseal.verification import StatementInvalid

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
OMS_PREDICATE_TYPE: Final = "https://model_signing/signature/v1.0"

MAX_STATEMENT_BYTES: Final = 16 * 1024 * 1024
MAX_SUBJECTS: Final = 10_000
MAX_RESOURCES: Final = 100_000
MAX_NAME_BYTES: Final = 4096
MAX_TYPE_CHARS: Final = 512

_SHA256_HEX: Final = re.compile("[0-9a-f]{64}")
_HEX_CHARS: Final = {"sha224": 56, "sha256": 64, "sha384": 96, "sha512": 128, "sha1": 40, "md5": 32}
_HEX: Final = re.compile("[0-9a-f]+")
_BAD_IN_NAME: Final = re.compile("[\\x00-\\x1f\\x7f\\\\]")
_SEGMENT: Final = re.compile(r"(?:^|/)(?:\.{0,2})(?:/|$)")

_STATEMENT_FIELDS: Final = frozenset({"_type", "subject", "predicateType", "predicate"})
_SUBJECT_FIELDS: Final = frozenset({"name", "uri", "digest", "content", "downloadLocation", "mediaType", "annotations"})
_RESOURCE_FIELDS: Final = frozenset({"name", "algorithm", "digest"})
_PREDICATE_FIELDS: Final = frozenset({"resources", "serialization"})
_SERIALIZATION_FIELDS: Final = frozenset({"method", "hash_type", "allow_symlinks", "ignore_paths"})


class Subject(NamedTuple):
    """What a statement is about: a name (may be empty outside OMS) and digests, algorithm to text."""

    name: str
    digest: Mapping[str, str]


class Resource(NamedTuple):
    """One file of a model: its path, parts joined by `/`, and its SHA-256 as hexadecimal."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of a model, in listed order. `root` is the SHA-256 over their raw digests, hexadecimal.

    `ignore_paths` are the paths that the signer left out.
    """

    root: str
    resources: tuple[Resource, ...]
    ignore_paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement that passed every check. `manifest` is there for OMS's predicate type only."""

    subjects: tuple[Subject, ...]
    predicate_type: str
    predicate: Mapping[str, Any]
    manifest: Manifest | None


def parse_statement(payload: bytes, *, any_order: bool = False) -> Statement:
    """Read and check a statement's exact bytes.

    `any_order` admits resources in another order than by path string, which other signers of OMS
    write; the daemon never does.

    Raises:
        StatementInvalid: anything about it is wrong; `path` says where.
    """
    try:
        return _statement(payload, any_order=any_order)
    except JSONInvalid as error:
        raise StatementInvalid(error.problem, error.path) from error


def _statement(payload: bytes, *, any_order: bool) -> Statement:
    document = decode(payload, max_bytes=MAX_STATEMENT_BYTES, what="the statement")
    if not isinstance(document, dict):
        _fail("a statement is a JSON object")
    _check_fields(document, _STATEMENT_FIELDS, "")
    if document.get("_type") != STATEMENT_TYPE:
        _fail(f"must be {STATEMENT_TYPE}", "_type")
    predicate_type = document.get("predicateType")
    if (
        not isinstance(predicate_type, str)
        or not 0 < len(predicate_type) <= MAX_TYPE_CHARS
        or ":" not in predicate_type
    ):
        _fail(f"must be a type URI of at most {MAX_TYPE_CHARS} characters", "predicateType")
    subjects = _subjects(document.get("subject"))
    predicate = document.get("predicate", {})
    if not isinstance(predicate, dict):
        _fail("must be an object", "predicate")
    if predicate_type == OMS_PREDICATE_TYPE:
        manifest = _manifest(predicate, subjects, any_order=any_order)
    else:
        manifest = None
        check_tree(predicate, "predicate", 2)
    return Statement(subjects, predicate_type, predicate, manifest)


def check_resource_name(name: object, path: str = "") -> str:
    """Return `name` if it can name a file of a model: relative, `/` between its parts.

    No empty part, no `.` or `..`, no backslash (another system would read it as a separator), no
    control character, at most 4,096 bytes of UTF-8.

    Raises:
        StatementInvalid: it cannot; the error's path is `path`.
    """
    if not isinstance(name, str):
        _fail("must be a text", path)
    if not name:
        _fail("is empty", path)
    if _BAD_IN_NAME.search(name):
        _fail("has a backslash or a control character", path)
    if _SEGMENT.search(name):
        _fail("must be a relative path without empty parts, '.' or '..'", path)
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        _fail("is not Unicode text", path)
    if size > MAX_NAME_BYTES:
        _fail(f"is longer than {MAX_NAME_BYTES} bytes", path)
    return name


def manifest_root(digests: list[str]) -> str:
    """SHA-256 over the concatenated raw digests, given and returned as hexadecimal (OMS 5.2.1)."""
    return hashlib.sha256(bytes.fromhex("".join(digests))).hexdigest()


def _fail(message: str, path: str = "") -> NoReturn:
    raise StatementInvalid(message, path)


def _check_fields(value: dict[str, Any], known: frozenset[str], path: str, *, annotated: bool = False) -> None:
    if value.keys() <= known:
        return
    for field in value.keys() - known:
        if not (annotated and field == "annotations"):
            where = f"{path}.{field}" if path else field
            _fail("is not a field of the format", printable(where))
    _annotations(value, path)


def _annotations(value: dict[str, Any], path: str) -> None:
    annotations = value.get("annotations", {})
    if not isinstance(annotations, dict):
        _fail("must be an object", f"{path}.annotations")
    check_tree(annotations, f"{path}.annotations", path.count(".") + path.count("[") + 3)


def _subjects(value: object) -> tuple[Subject, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_SUBJECTS:
        _fail(f"must be a list of 1 to {MAX_SUBJECTS} subjects", "subject")
    return tuple(_subject(each, f"subject[{place}]") for place, each in enumerate(value))


def _subject(value: object, path: str) -> Subject:
    if not isinstance(value, dict):
        _fail("must be an object", path)
    _check_fields(value, _SUBJECT_FIELDS, path)
    for field in ("name", "uri", "content", "downloadLocation", "mediaType"):
        text = value.get(field, "")
        if not isinstance(text, str):
            _fail("must be a text", f"{path}.{field}")
    name = value.get("name", "")
    if len(name.encode()) > MAX_NAME_BYTES:
        _fail(f"is longer than {MAX_NAME_BYTES} bytes", f"{path}.name")
    if "annotations" in value:
        _annotations(value, path)
    digest = value.get("digest")
    if not isinstance(digest, dict) or not digest:
        _fail("must be an object with at least one digest", f"{path}.digest")
    for algorithm, text in digest.items():
        _digest(algorithm, text, f"{path}.digest.{algorithm}")
    return Subject(name, digest)


def _digest(algorithm: str, text: object, path: str) -> None:
    if not isinstance(text, str) or not 0 < len(text) <= MAX_TYPE_CHARS or not algorithm:
        _fail("must be a digest's text", path)
    expected = _HEX_CHARS.get(algorithm)
    if expected is not None and (len(text) != expected or not _HEX.fullmatch(text)):
        _fail(f"must be {expected} lower-case hexadecimal digits", path)


def _manifest(predicate: dict[str, Any], subjects: tuple[Subject, ...], *, any_order: bool) -> Manifest:
    _check_fields(predicate, _PREDICATE_FIELDS, "predicate")
    if len(subjects) != 1:
        _fail("a model's statement has exactly one subject", "subject")
    if subjects[0].digest.keys() != {"sha256"}:
        _fail("must have the one digest sha256", "subject[0].digest")
    if not subjects[0].name:
        _fail("is empty or missing", "subject[0].name")
    ignored = _serialization(predicate.get("serialization"))
    resources = _resources(predicate.get("resources"), any_order=any_order)
    root = manifest_root([each.sha256 for each in resources])
    if root != subjects[0].digest["sha256"]:
        _fail(f"is not the root of the resources, which is {root}", "subject[0].digest.sha256")
    return Manifest(root, resources, ignored)


def _serialization(value: object) -> tuple[str, ...]:
    path = "predicate.serialization"
    if not isinstance(value, dict):
        _fail("must be an object", path)
    _check_fields(value, _SERIALIZATION_FIELDS, path)
    if value.get("method") != "files":
        _fail("must be 'files'", f"{path}.method")
    if value.get("hash_type") != "sha256":
        _fail("must be 'sha256'", f"{path}.hash_type")
    if value.get("allow_symlinks") is not False:
        _fail("must be false", f"{path}.allow_symlinks")
    ignored = value.get("ignore_paths", [])
    if not isinstance(ignored, list):
        _fail("must be a list of paths", f"{path}.ignore_paths")
    return tuple(check_resource_name(each, f"{path}.ignore_paths[{place}]") for place, each in enumerate(ignored))


def _resources(value: object, *, any_order: bool) -> tuple[Resource, ...]:
    path = "predicate.resources"
    if not isinstance(value, list) or not value:
        _fail("must be a list with at least one file", path)
    if len(value) > MAX_RESOURCES:
        _fail(f"has {len(value)} files, and {MAX_RESOURCES} is the limit", path)
    resources: list[Resource] = []
    last = ""
    for place, each in enumerate(value):
        if not isinstance(each, dict):
            _fail("must be an object", f"{path}[{place}]")
        if each.keys() != _RESOURCE_FIELDS:
            _check_fields(each, _RESOURCE_FIELDS, f"{path}[{place}]", annotated=True)
        name, digest = each.get("name"), each.get("digest")
        if not isinstance(name, str):
            _fail("must be a text", f"{path}[{place}].name")
        # The checks of check_resource_name in their cheapest form; it finds the words for a failure.
        if not name.isascii() or len(name) > MAX_NAME_BYTES or _BAD_IN_NAME.search(name) or _SEGMENT.search(name):
            check_resource_name(name, f"{path}[{place}].name")
        if each.get("algorithm") != "sha256":
            _fail("must be 'sha256'", f"{path}[{place}].algorithm")
        if not isinstance(digest, str) or not _SHA256_HEX.fullmatch(digest):
            _fail("must be 64 lower-case hexadecimal digits", f"{path}[{place}].digest")
        if name <= last and not any_order:
            problem = (
                "stands there twice"
                if name == last
                else f"must stand before {last!r}: files are ordered by path string"
            )
            _fail(problem, f"{path}[{place}].name")
        last = name
        resources.append(Resource(name, digest))
    if any_order:
        _check_unique(resources, path)
    return tuple(resources)


def _check_unique(resources: list[Resource], path: str) -> None:
    seen: set[str] = set()
    for place, (name, _) in enumerate(resources):
        if name in seen:
            _fail("stands there twice", f"{path}[{place}].name")
        seen.add(name)
