"""`make fuzz`: every target under atheris for its share of FUZZ_SECONDS, two at a time.

    python tests/fuzz [--seconds S | --runs N] [--seed N] [--only TARGET ...] [--keep]

New inputs go to build/fuzz/corpus, what fails to build/fuzz/finds; the exit code is 1 if anything does.
`--keep` then takes those new inputs into tests/fuzz/corpus that reach code which nothing there reaches.
A find is repeated by `python tests/fuzz/one.py TARGET FILE`; mend it, and put the file into the corpus.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from targets import MAX_BYTES, Target, load_all  # noqa: E402

ROOT = HERE.parent.parent
CORPUS = HERE / "corpus"
MEMORY_MB = 768
"""Of a whole process with its instrumented modules, which take about 100."""
SECONDS_FOR_ONE = 10


def fuzz(target: Target, build: Path, *options: str) -> tuple[bool, str]:
    """Run one target; whether it found nothing, and what libFuzzer said."""
    new, finds = build / "corpus" / target.name, build / "finds"
    for directory in (new, finds):
        directory.mkdir(parents=True, exist_ok=True)
    words = build / f"{target.name}.dict"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
    command = [sys.executable, str(HERE / "one.py"), target.name, str(new), str(CORPUS / target.name)]
    limits = [f"-rss_limit_mb={MEMORY_MB}", f"-timeout={SECONDS_FOR_ONE}", f"-max_len={MAX_BYTES}"]
    paths = [f"-dict={words}", f"-artifact_prefix={finds}/{target.name}-"]
    done = subprocess.run([*command, *limits, *paths, *options], capture_output=True, text=True, check=False)
    said = [
        line for line in (done.stdout + done.stderr).splitlines() if not re.match(r"INFO|WARNING|#\d.*(NEW|RED)", line)
    ]
    return done.returncode == 0, "\n".join(said)


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def keep(target: Target, build: Path) -> None:
    """Merge what is new into the committed corpus, as little as reaches the same code."""
    command = [sys.executable, str(HERE / "one.py"), target.name, str(CORPUS / target.name)]
    new = build / "corpus" / target.name
    subprocess.run([*command, str(new), "-merge=1", "-max_len=4096"], capture_output=True, check=True)


def main() -> int:
    targets = load_all()
    parser = argparse.ArgumentParser(description="Fuzz every parser of foreign bytes, guided by coverage.")
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("FUZZ_SECONDS", "180")), help="in sum")
    parser.add_argument("--runs", type=int, help="so many inputs a target instead: the same ones for the same seed")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 1 << 31))
    parser.add_argument("--only", action="append", choices=list(targets), help="this target (may be repeated)")
    parser.add_argument("--keep", action="store_true", help="take what reaches new code into tests/fuzz/corpus")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "fuzz", help="where new inputs and finds go")
    arguments = parser.parse_args()
    chosen = [target for name, target in targets.items() if arguments.only is None or name in arguments.only]
    workers = min(2, os.cpu_count() or 1)
    share = max(1, round(arguments.seconds * workers / len(chosen)))
    length = f"{arguments.runs} inputs" if arguments.runs else f"{share} s"
    print(f"{len(chosen)} targets, {length} each, seed {arguments.seed}", flush=True)
    limit = f"-runs={arguments.runs}" if arguments.runs else f"-max_total_time={share}"
    options = (limit, f"-seed={arguments.seed}")
    failed = 0
    with ThreadPoolExecutor(workers) as pool:
        for target, (good, said) in zip(
            chosen, pool.map(lambda each: fuzz(each, arguments.build, *options), chosen), strict=True
        ):
            done = re.search(r"#(\d+)\s+DONE\s+cov: (\d+)", said)
            if good and done:
                print(f"  ok      {target.name:16} {done[1]:>9} inputs, coverage {done[2]}", flush=True)
                continue
            failed += 1
            print(f"  FAILED  {target.name}\n{said[-6000:]}", flush=True)
    if arguments.keep and not failed:
        for target in chosen:
            keep(target, arguments.build)
    print(
        f"fuzz: {failed} of {len(chosen)} targets failed, see {arguments.build}/finds"
        if failed
        else "fuzz: nothing found"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
