"""Generate the Python stubs of protos/ into the client's package, or check that they are current.

    .venv/bin/python scripts/generate_stubs.py            # what `make proto` runs
    .venv/bin/python scripts/generate_stubs.py --check    # exit 1 and name the files that differ

The plug-ins are those of requirements/dev.txt, so that everybody generates the same bytes.
google/api comes from googleapis-common-protos, which installs its .proto files.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
TARGET = ROOT / "clients" / "python" / "src"
PACKAGE = Path("greatseal", "v1")
INIT = '"""Generated from protos/greatseal/v1 by `make proto`; never edited by hand."""\n'


def generate(out: Path) -> None:
    """Write the package `greatseal.v1` below `out`."""
    out.mkdir(parents=True, exist_ok=True)
    scripts = sysconfig.get_path("scripts")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"--proto_path={PROTOS}",
            f"--proto_path={sysconfig.get_path('purelib')}",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_out={out}",
            f"--mypy_grpc_out={out}",
            *sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("greatseal/v1/*.proto")),
        ],
        check=True,
        cwd=PROTOS,
        env=os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}"},
    )
    (out / PACKAGE / "__init__.py").write_text(INIT)


def differences(generated: Path, committed: Path) -> list[str]:
    """Name the files that are missing, stale or too many in `committed`."""
    ours = {path.name for path in committed.iterdir() if path.is_file()}
    theirs = {path.name for path in generated.iterdir()}
    changed = [name for name in ours & theirs if not filecmp.cmp(generated / name, committed / name, shallow=False)]
    return sorted(changed + list(ours ^ theirs))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the stubs are not current")
    if not parser.parse_args().check:
        for path in (TARGET / PACKAGE).glob("*_pb2*"):
            path.unlink()
        generate(TARGET)
        return 0
    with tempfile.TemporaryDirectory() as directory:
        generate(Path(directory))
        stale = differences(Path(directory) / PACKAGE, TARGET / PACKAGE)
    if stale:
        print(f"the generated stubs are not current: {', '.join(stale)}; run: make proto", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
