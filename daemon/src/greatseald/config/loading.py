"""Reading the configuration: TOML, then `GREATSEALD_*` from the environment, validated as a whole.

Every problem is collected before anything is raised, each with its file, line and key:

    greatseald.toml:12: tokens[0].sesions: is not a known key (did you mean 'sessions'?)

`GREATSEALD_SERVER_LISTEN` overrides `[server] listen`, and so on for every key of `[server]`,
`[store]` and `[log]`; a value that is not meant to be a string is written as in TOML.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import ValidationError

from greatseal.algorithms import Algorithm
from greatseald.config import checks
from greatseald.config.checks import CheckUri
from greatseald.config.log_tables import LogSettings
from greatseald.config.positions import Path as Place
from greatseald.config.positions import dotted, index_lines, line_of
from greatseald.config.problems import ConfigError, ConfigProblem, did_you_mean
from greatseald.config.settings import (
    AllowTable,
    DenyTable,
    KeyTable,
    OutboxTable,
    ServerSettings,
    Settings,
    StoreSettings,
    TokenTable,
    YubiKeyTable,
)
from greatseald.config.values import Table

MAX_CONFIG_BYTES: Final = 4 * 1024 * 1024
_SINGLE: Final[dict[str, type[Table]]] = {"server": ServerSettings, "store": StoreSettings, "log": LogSettings}
_MANY: Final[dict[str, type[Table]]] = {
    "tokens": TokenTable,
    "keys": KeyTable,
    "allow": AllowTable,
    "deny": DenyTable,
    "outbox": OutboxTable,
}
AnyToken = TokenTable | YubiKeyTable
_ENVIRONMENT: Final = re.compile(r"GREATSEALD_(SERVER|STORE|LOG)_([A-Z0-9_]+)")


class _Reader:
    """One reading of one file."""

    def __init__(self, path: Path, environment: Mapping[str, str], check_uri: CheckUri | None = None) -> None:
        self.check_uri = check_uri
        self.path = path
        self.base = path.absolute().parent
        self.environment = environment
        self.problems: list[ConfigProblem] = []
        self.lines: dict[Place, int] = {}
        self.sources: dict[Place, str] = {}

    def problem(self, place: Place, message: str, hint: str = "") -> None:
        """Record one problem at a place of the document, or at the variable that overrides it."""
        if place[:2] in self.sources:
            self.problems.append(ConfigProblem("environment", 0, self.sources[place[:2]], message, hint))
        else:
            line = line_of(self.lines, place) if place else 0
            self.problems.append(ConfigProblem(str(self.path), line, dotted(place), message, hint))

    def document(self) -> dict[str, Any]:
        """Read and parse the file."""
        try:
            with self.path.open("rb") as file:
                data = file.read(MAX_CONFIG_BYTES + 1)
        except OSError as error:
            self.problem((), f"cannot be read: {error.strerror}")
            raise ConfigError(self.problems) from error
        if len(data) > MAX_CONFIG_BYTES:
            self.problem((), f"is larger than {MAX_CONFIG_BYTES} bytes")
            raise ConfigError(self.problems)
        try:
            text = data.decode()
            document = tomllib.loads(text)
            self.lines = index_lines(text)
        except UnicodeDecodeError as error:
            self.problem((), f"is not UTF-8: byte {error.start}")
            raise ConfigError(self.problems) from error
        except tomllib.TOMLDecodeError as error:
            at = re.search(r"at line (\d+), column (\d+)", str(error))
            message = "is not TOML: " + re.sub(r" \(at .*\)$", "", str(error))
            line = int(at[1]) if at else text.count("\n") + 1
            self.problems.append(ConfigProblem(str(self.path), line, "", message))
            raise ConfigError(self.problems) from error
        except (RecursionError, ValueError) as error:
            why = "is nested too deeply" if isinstance(error, RecursionError) else "has too many digits"
            self.problem((), f"cannot be read: a value in it {why}")
            raise ConfigError(self.problems) from error
        return document

    def override(self, document: dict[str, Any]) -> None:
        """Lay the environment's values over the document's."""
        for variable, raw in sorted(self.environment.items()):
            match = _ENVIRONMENT.fullmatch(variable)
            if match is None:
                continue
            table, key = match[1].lower(), match[2].lower()
            model = _SINGLE[table]
            place: Place = (table, key)
            self.sources[place] = variable
            field = model.model_fields.get(key)
            if field is None:
                names = [f"GREATSEALD_{match[1]}_{name.upper()}" for name in model.model_fields]
                self.problem(place, "sets no known key", did_you_mean(variable, names))
                continue
            kinds = get_args(field.annotation) or (field.annotation,)
            value: Any = raw
            if int in kinds or float in kinds:
                try:
                    value = tomllib.loads(f"value = {raw}")["value"]
                except (ValueError, RecursionError):  # not TOML, or beyond what a number may be
                    self.problem(place, "must be a number")
                    continue
            if isinstance(document.setdefault(table, {}), dict):
                document[table][key] = value

    def table(self, model: type[Table], value: Any, place: Place) -> Any:
        """Validate one table; return None, its problems recorded, where it is not valid."""
        if not isinstance(value, dict):
            self.problem(place, "must be a table")
            return None
        try:
            return model.model_validate(value, context={"base": self.base})
        except ValidationError as error:
            details = error.errors(include_url=False)
            for detail in details:
                inside = [other["loc"] for other in details if other["loc"][:-1] == detail["loc"]]
                if detail["type"] == "too_short" and inside:
                    continue  # pydantic counts elements that are wrong as absent
                at: Place = (*place, *detail["loc"])
                self.problem(at, *_explain(detail, model))
        return None

    def with_state_dir(self, token: AnyToken) -> AnyToken:
        """Resolve where a token keeps its latch and ledger if the file does not say."""
        if token.state_dir is not None:
            return token
        return token.model_copy(update={"state_dir": self.base / "tokens" / token.name / "state"})

    def with_cursor(self, outbox: OutboxTable) -> OutboxTable:
        """Resolve where an outbox remembers how far it is, if the file does not say."""
        if outbox.cursor is not None:
            return outbox
        return outbox.model_copy(update={"cursor": self.base / "outbox" / f"{outbox.name}.cursor"})

    def token(self, name: str) -> AnyToken:
        """Read one token's table and nothing else."""
        rows = self.document().get("tokens", [])
        named = [
            (number, row)
            for number, row in enumerate(rows if isinstance(rows, list) else [])
            if isinstance(row, dict) and row.get("name") == name
        ]
        if len(named) != 1:
            self.problem(("tokens",), f"has {len(named)} tokens with the name {name!r} instead of one")
            raise ConfigError(self.problems)
        number, row = named[0]
        token = self.table(_model_of("tokens", row), row, ("tokens", number))
        if token is None:
            raise ConfigError(self.problems)
        return self.with_state_dir(token)

    def settings(self) -> Settings:
        """Read, validate and check everything."""
        document = self.document()
        self.override(document)
        known = [*_SINGLE, *_MANY]
        for name in document:
            if name not in known:
                self.problem((name,), "is not a known table", did_you_mean(name, known))
        values: dict[str, Any] = {}
        for name, model in _SINGLE.items():
            if name in document:
                values[name] = self.table(model, document[name], (name,))
            else:
                self.problem((), f"has no [{name}] table")
        for name in _MANY:
            rows = document.get(name, [])
            if not isinstance(rows, list):
                self.problem((name,), f"must be an array of tables: write [[{name}]]")
                rows = []
            values[name] = [self.table(_model_of(name, row), row, (name, number)) for number, row in enumerate(rows)]
        values["tokens"] = [token and self.with_state_dir(token) for token in values["tokens"]]
        values["outbox"] = [outbox and self.with_cursor(outbox) for outbox in values["outbox"]]
        if ("store", "url") in self.sources and values.get("store") and values["store"].has_password:
            self.problem(
                ("store", "url"), "holds a password, and an environment is no place for one", "use password_file"
            )
        found = checks.check(values, self.path, self.problem, self.check_uri)
        if self.problems:
            raise ConfigError(sorted(self.problems, key=lambda problem: (problem.line, problem.key)))
        return Settings(
            file=self.path.absolute(),
            server=values["server"],
            store=values["store"],
            log=values["log"],
            tokens=tuple(values["tokens"]),
            keys=tuple(values["keys"]),
            allow=tuple(values["allow"]),
            deny=tuple(values["deny"]),
            outbox=tuple(values["outbox"]),
            chains=found.chains,
            warnings=tuple(found.warnings),
        )


def _model_of(table: str, row: Any) -> type[Table]:
    """The model of a row: of tokens there is one for each type."""
    if table == "tokens" and isinstance(row, dict) and row.get("type") == "yubikey-piv":
        return YubiKeyTable
    return _MANY[table]


def _model_at(model: type[Table], place: Place) -> type[Table]:
    """The model of the table that a place within `model` lies in: of a table within a table its own."""
    for part in place[:-1]:
        field = model.model_fields.get(str(part))
        kinds = get_args(field.annotation) if field is not None else ()
        model = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Table)), model)
    return model


_TYPES: Final = {
    "string_type": "a string",
    "int_type": "a whole number",
    "float_type": "a number",
    "tuple_type": "an array",
    "dict_type": "a table",
    "is_instance_of": "a path, as a string",
    "path_type": "a path, as a string",
    "bool_type": "true or false",
}
_TOML_NAMES: Final = {
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a float",
    list: "an array",
    dict: "a table",
}


def _explain(detail: Any, model: type[Table]) -> tuple[str, str]:
    """Say one pydantic error in our words: what is wrong, and a hint or nothing."""
    kind: str = detail["type"]
    value = detail["input"]
    context = detail.get("ctx", {})
    message, hint = str(detail["msg"]), ""
    if kind == "missing":
        message = "is required"
    elif kind == "extra_forbidden":
        inner = _model_at(model, detail["loc"])
        message, hint = "is not a known key", did_you_mean(str(detail["loc"][-1]), inner.model_fields)
    elif kind in _TYPES:
        message = f"must be {_TYPES[kind]}, and is {_TOML_NAMES.get(type(value), type(value).__name__)}"
    elif kind == "enum":
        message, hint = (
            f"is {str(value)[:60]!r}, which is no algorithm",
            did_you_mean(str(value), [a.value for a in Algorithm]),
        )
    elif kind == "literal_error":
        message = f"is {str(value)[:60]!r}, and must be {context['expected']}"
    elif kind in {"greater_than_equal", "greater_than", "less_than_equal", "less_than"}:
        bound = next(iter(context.values()))
        words = {
            "greater_than_equal": "at least",
            "greater_than": "more than",
            "less_than_equal": "at most",
            "less_than": "less than",
        }
        message = f"is {value}, and must be {words[kind]} {bound}"
    elif kind in {"too_short", "string_too_short"}:
        message = "must not be empty"
    elif kind == "value_error":
        message = str(context["error"])
    return message, hint


def load(path: Path, environment: Mapping[str, str], check_uri: CheckUri | None = None) -> Settings:
    """Read `path` with the overrides of `environment`, and the small files that it names.

    `check_uri` is the token adapter's own opinion of a PKCS#11 URI, which this layer cannot see: called
    with the URI and whether an object must be named, it raises ValueError with what is wrong.

    Raises:
        ConfigError: with every problem found.
    """
    return _Reader(path, environment, check_uri).settings()


def load_token(path: Path, name: str) -> AnyToken:
    """Read one `[[tokens]]` table, for a host that runs as its own user and may read nothing else of the daemon's.

    Raises:
        ConfigError: the file cannot be read, has no such token, or the table has problems.
    """
    return _Reader(path, {}).token(name)
