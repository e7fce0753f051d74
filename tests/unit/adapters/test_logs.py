"""The daemon's own log: one JSON object a line, no secrets, one level for everybody."""

from __future__ import annotations

import json
import logging

import pytest
import structlog

from greatseald.adapters import logs


@pytest.fixture(autouse=True)
def put_back():
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    yield
    root.handlers[:], level = before
    root.setLevel(level)
    structlog.reset_defaults()


def records(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_ours_and_the_librarys_records_look_alike(capsys):
    logs.configure("info")
    structlog.get_logger("greatseald.x").info("event", number=1)
    logging.getLogger("grpc").warning("from %s", "elsewhere")
    ours, theirs = records(capsys.readouterr().err)
    assert (ours["event"], ours["logger"], ours["level"], ours["number"]) == ("event", "greatseald.x", "info", 1)
    assert (theirs["event"], theirs["logger"], theirs["level"]) == ("from elsewhere", "grpc", "warning")
    assert ours["ts"].endswith("Z")


def test_the_level_can_be_changed_while_loggers_are_in_use(capsys):
    log = structlog.get_logger("greatseald.x")
    logs.configure("warning")
    log.info("silent")
    logs.configure("debug")
    log.debug("heard")
    logs.configure("error")
    log.warning("silent")
    assert [record["event"] for record in records(capsys.readouterr().err)] == ["heard"]


@pytest.mark.parametrize("name", ["pin", "PIN", "password", "secret", "private_key", "authorization"])
def test_values_named_like_secrets_are_struck_out(capsys, name):
    logs.configure("info")
    structlog.get_logger("greatseald.x").info("event", **{name: "98765", "pin_file": "/path"})
    text = capsys.readouterr().err
    assert "98765" not in text
    assert "/path" in text


def test_an_exception_is_one_line_with_its_traceback(capsys):
    logs.configure("info")
    try:
        int("boom")
    except ValueError as error:
        structlog.get_logger("greatseald.x").error("failed", exc_info=error)
    (record,) = records(capsys.readouterr().err)
    assert "ValueError: invalid literal" in record["exception"]
