"""How the command starts: help loads nothing heavy, and what programs read is JSON from the first argument on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from deployment import SCRIPTS, clean_environment, greatseal
from greatseal.cli import app

HEAVY = {"grpc", "google", "rich", "cryptography", "pydantic", "asyncio", "ssl", "multiprocessing"}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["-h"], ["sign", "--help"], ["sign", "model", "-h"], ["audit", "list", "--help"]]
)
def test_help_loads_nothing_heavy(arguments: list[str]):
    code = (
        "import sys\nfrom greatseal.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: ")
    assert "typer" in done.stderr.split()
    assert set(done.stderr.split()) & HEAVY == set()


@pytest.mark.parametrize(
    ("arguments", "groups"),
    [
        (["--help"], set()),
        ([], set()),
        (["sign", "--help"], {"sign", "models", "many"}),
        (["keys", "show", "--help"], {"keys"}),
        (["version"], set()),
    ],
)
def test_a_group_is_imported_only_when_its_commands_are_asked_for(arguments: list[str], groups: set[str]):
    code = (
        "import sys\nfrom greatseal.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(*(name for name in sys.modules if name.startswith('greatseal.cli.')), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=True)
    loaded = {name.rpartition(".")[2] for name in done.stderr.splitlines()[-1].split()}
    lazy = {
        "audit",
        "auditexport",
        "auditlist",
        "auditprove",
        "auditverify",
        "many",
        "models",
        "receipts",
        "sign",
        "tokens",
    }
    assert loaded & (lazy | {"keys"}) == groups | {"keys"}  # whoami stands there


def test_every_group_has_its_commands_and_an_unknown_one_is_named():
    done = greatseal("audit", "--help")
    assert all(f"\n  {name} " in done.stdout for name in ("list", "tail", "show", "prove", "verify", "export"))
    wrong = greatseal("audit", "no-such-command")
    assert wrong.returncode == 2
    assert "no-such-command" in wrong.stderr


def test_help_of_a_command_names_the_command_and_its_options():
    done = greatseal("sign", "digest", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: greatseal sign digest [OPTIONS]")
    assert "--sha256" in done.stdout
    # The same where our own options come first and the quick way is not taken.
    assert greatseal("--no-color", "sign", "digest", "--help").stdout == done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--json", "keys", "show"), "NAME"),
        (("keys", "show", "--json"), "NAME"),
        (("--json", "no-such-command"), "no-such-command"),
        (("--json", "--no-such-option", "whoami"), "--no-such-option"),
        (("--json", "--timeout", "soon", "whoami"), "timeout"),
        (("--json", "audit", "show", "x"), "INDEX"),
        (("--json", "completion", "tcsh"), "tcsh"),
        (("--json", "--profile", "/nonexistent", "whoami"), "/nonexistent"),
    ],
)
def test_with_json_every_wrong_command_line_is_an_object_on_stderr(arguments: tuple[str, ...], expected: str):
    done = greatseal(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    error = json.loads(done.stderr)["error"]
    assert error["exit_code"] == 2
    assert expected.casefold() in error["message"].casefold()


def test_json_as_a_value_is_no_wish_for_json():
    done = greatseal("keys", "show", "--", "--json", "too many")
    assert done.returncode == 2
    assert "Usage:" in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_a_script_that_names_the_command(shell: str):
    done = greatseal("completion", shell)
    assert done.returncode == 0
    assert f"_GREATSEAL_COMPLETE=complete_{shell}" in done.stdout
    assert json.loads(greatseal("--json", "completion", shell).stdout)["script"].strip() == done.stdout.strip()


def test_bash_completes_commands_and_says_nothing_where_there_is_no_daemon():
    environment = clean_environment({"PATH": f"{SCRIPTS}:/usr/bin:/bin"})

    def complete(*words: str) -> tuple[str, str]:
        script = (
            'source <(greatseal completion bash); COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
            '_greatseal_completion greatseal; echo "${COMPREPLY[@]}"'
        )
        command = ["bash", "-c", script, "bash", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.stdout.strip(), done.stderr

    assert complete("greatseal", "doc") == ("doctor", "")
    assert complete("greatseal", "--address", "127.0.0.1:9", "keys", "show", "") == ("", "")


def test_every_command_takes_json():
    def walk(command: Any, path: str) -> Iterator[tuple[str, set[str]]]:
        for name, child in command.commands.items():
            if hasattr(child, "commands"):
                yield from walk(child, f"{path} {name}")
            else:
                yield f"{path} {name}", {option for parameter in child.params for option in parameter.opts}

    found = dict(walk(typer.main.get_command(app), "greatseal"))
    assert len(found) > 10
    assert {path for path, options in found.items() if "--json" not in options} == set()
