"""The commands in README.md and the user guide work as they stand there, and print what the page says they print."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import documented
from deployment import SCRIPTS, clean_environment

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs/user-guide").glob("*.md"))]
SECONDS = 150
# `init` is kept off fixed ports and `serve` out of the foreground; everything else is what is typed.
PRELUDE = r"""
greatseald() {
    case "$1" in
    init) command greatseald "$@" --listen 127.0.0.1:0 --metrics-listen 127.0.0.1:0 ;;
    serve)
        command greatseald "$@" >serve.log 2>&1 &
        PID=$!
        for _ in $(seq 300); do
            grep -q '^greatseald ready' serve.log && return
            kill -0 $PID || break
            sleep 0.1
        done
        cat serve.log
        return 1 ;;
    *) command greatseald "$@" ;;
    esac
}
trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT
mkdir -p my-model path/to/model
printf '{}' | tee my-model/config.json path/to/model/config.json >/dev/null
head -c 5000 /dev/zero | tee my-model/weights.bin path/to/model/weights.bin app.tar >/dev/null
cat >statement.json <<'END'
{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"app.tar","digest":{"sha256":"0000000000000000000000000000000000000000000000000000000000000000"}}],"predicateType":"https://example.org/p/v1","predicate":{}}
END
"""

pytestmark = pytest.mark.softhsm


def script(page: documented.Page) -> str:
    text = "\n".join(step.commands for step in page.steps)
    parts = [PRELUDE]
    if "greatseald init" not in text:
        parts.append("greatseald init seal >/dev/null\nexport GREATSEAL_PROFILE=$PWD/seal/client.toml")
        if "greatseald serve" not in text:
            parts.append("greatseald serve --config seal/greatseald.toml")
    parts.append("OUTPUT=$PWD")
    for number, step in enumerate(page.steps):
        # `serve … &` would run the function above in a shell of its own.
        commands = "\n".join(
            line.rstrip(" &") if line.startswith("greatseald serve") else line for line in step.commands.splitlines()
        )
        parts.append(f"echo {step.line} >$OUTPUT/at\n{{\n{commands}\n}} >$OUTPUT/{number}.out 2>&1")
    return "set -euo pipefail\n" + "\n".join(parts) + "\necho done >$OUTPUT/at\n"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_pages_commands_do_what_the_page_says(path: Path, tmp_path: Path):
    page = documented.read(path)
    if not page.steps:
        return  # a page of tables
    for step in page.steps:
        beyond = documented.beyond(step.commands)
        assert not beyond, f"{path.name}, line {step.line}, leaves its directory ({beyond}): mark it `not run: REASON`"
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / ".script").write_text(script(page))
    environment = clean_environment({"PATH": f"{SCRIPTS}:{os.environ['PATH']}", "HOME": str(tmp_path)})
    with (tmp_path / ".said").open("wb") as said:
        process = subprocess.Popen(
            ["bash", ".script"],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            code = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            end_group(process)
    at = (tmp_path / "at").read_text().strip() if (tmp_path / "at").exists() else "the preparation"
    outputs = sorted(tmp_path.glob("*.out"), key=lambda each: int(each.stem))
    last = (outputs[-1].read_text() if outputs else "") + (tmp_path / ".said").read_text()
    assert (code, at) == (0, "done"), f"{path.name}, block at line {at}, ended with {code}:\n{last}"
    for number, step in enumerate(page.steps):
        printed = (tmp_path / f"{number}.out").read_text()
        lost = documented.missing(step.output, printed)
        assert lost is None, (
            f"{path.name}, line {step.line}: {lost!r} is not printed by\n{step.commands}\nbut\n{printed}"
        )


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End what the page started, all of it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_what_is_not_run_says_why(path: Path):
    for line, reason in documented.read(path).not_run:
        assert len(reason.split()) >= 3, f"{path.name}, line {line}: why is this not run?"
        assert not reason.startswith("no block follows"), f"{path.name}, line {line}"


def test_the_guide_is_run_and_not_only_read():
    run = {path.name: len(documented.read(path).steps) for path in PAGES}
    assert all(run[name] for name in ("README.md", "getting-started.md", "operating.md", "pipelines.md"))


# ------------------------------------------------------------------------------- the runner itself


@pytest.mark.parametrize(
    ("commands", "leaves"),
    [
        ("install -m 644 unit /etc/systemd/system/", True),
        ("echo x >/backup/log", True),
        ("greatseald backup --config=/etc/g.toml", True),
        ("sudo make", True),
        ("python3 -m venv x && pip install y", True),
        ("cat a/b/c ./d ../e $PWD/f # like /etc/g", False),
        ("curl localhost:1/metrics >/dev/null; echo https://a.example/b", False),
    ],
)
def test_what_would_leave_the_pages_directory_is_never_run(commands: str, *, leaves: bool):
    assert bool(documented.beyond(commands)) is leaves


def test_a_page_that_lies_is_caught(tmp_path: Path):
    good = "```console\n$ printf 'key keys/a, 17 entries\\nroot 0123456789abcdef01\\n'\nkey keys/a, 4 entries\n…\n```\n"
    for text, truth in (
        (good, True),
        (good.replace("entries\n…", "entities\n…"), False),
        (good.replace("…", "root aaaaaaaaaaaaaaaaaaaaaaaa"), True),
        (good.replace("…", "root none"), False),
        ("```\nfalse\n```\n", False),
        ("<!-- not run: it would fail here -->\n```\nfalse\n```\n```\ntrue\n```\n", True),
        ("<!-- run first\nfalse\n-->\n```\ntrue\n```\n", False),
        ("```toml\nfalse\n```\n```sh\ntrue\n```\n", True),
    ):
        (tmp_path / "page.md").write_text(text)
        page = documented.read(tmp_path / "page.md")
        assert page.steps
        honest = True
        for step in page.steps:
            done = subprocess.run(["bash", "-ec", step.commands], capture_output=True, text=True, check=False)
            honest &= done.returncode == 0 and documented.missing(step.output, done.stdout) is None
        assert honest is truth, text
