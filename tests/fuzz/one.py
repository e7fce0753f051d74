"""One target under atheris, in a process of its own: libFuzzer ends the process when it is done.

python tests/fuzz/one.py TARGET CORPUS... [libFuzzer's options]      what is new goes into the first directory
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]


def main() -> None:
    with atheris.instrument_imports(include=["greatseal", "greatseald"], enable_loader_override=False):
        from targets import load_all

        found = load_all()
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, found[name].run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
