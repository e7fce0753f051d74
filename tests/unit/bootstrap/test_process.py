"""How the process protects itself and how it ends when nothing can be trusted any more."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_the_reason_is_the_first_line_and_no_clean_up_runs():
    done = run(
        "import atexit, sys; atexit.register(print, 'cleaned up')\n"
        "from greatseald.adapters import logs; logs.configure('info')\n"
        "from greatseald.bootstrap.process import die\n"
        "try:\n"
        "    die('the log\\nis broken', exit_code=7, error=OSError(5, 'I/O error'))\n"
        "finally:\n"
        "    print('went on')\n"
    )
    assert done.returncode == 7
    assert done.stderr.splitlines()[0] == "greatseald: the log is broken"
    assert "I/O error" in done.stderr
    assert done.stdout == ""


def test_of_two_threads_that_die_only_the_first_speaks():
    done = run(
        "import threading\n"
        "from greatseald.bootstrap.process import die\n"
        "go = threading.Barrier(8)\n"
        "def end(n):\n"
        "    go.wait(); die(f'thread {n}')\n"
        "for n in range(8): threading.Thread(target=end, args=(n,)).start()\n"
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_memory_is_kept_out_of_core_files():
    done = run(
        "import ctypes, resource\n"
        "from greatseald.bootstrap.process import forbid_core_dumps\n"
        "forbid_core_dumps()\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))\n"
    )
    assert done.stdout == "(0, 0) 0\n"
