"""The demo: a model signed by a key in a token, verified by others, and proven to stand in a log.

Works in a temporary directory, on loopback, and stops everything at the end, whatever happens.
Every line after a `$` is a command that you can type yourself.
"""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NoReturn

BIN: Final = Path(sys.executable).parent
READY: Final = re.compile(r"^greatseald ready: listening on (\S+)$", re.MULTILINE)
COLOUR: Final = sys.stdout.isatty() and "NO_COLOR" not in os.environ
START_SECONDS: Final = 60


def main() -> int:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="greatseal-demo-") as directory:
        story = Story(Path(directory))
        try:
            story.tell()
        except DemoFailed as failure:
            print(f"\nThe demo failed: {failure}", file=sys.stderr)
            return 1
        finally:
            story.stop()
    title(f"That was all, in {time.monotonic() - began:.0f} s; nothing is left behind.")
    print("To keep an installation:   .venv/bin/greatseald init ./seal   (README.md goes on from there)")
    return 0


class DemoFailed(Exception):
    """A step did not go as it must."""


class Story:
    """The steps, in a directory of their own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.daemon: subprocess.Popen[bytes] | None = None
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("GREATSEAL", "SOFTHSM2_"))
        } | {"PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}", "COLUMNS": "110", "PYTHONWARNINGS": "ignore"}

    def tell(self) -> None:
        profile = ["greatseal", "--profile", "seal/client.toml"]

        title("1. Make an installation: a local PKI, a log key, a SoftHSM token with two keys")
        self.run("greatseald", "init", "seal", "--listen", "127.0.0.1:0", "--metrics-listen", "")

        title("2. Start the daemon: gRPC over mTLS; the keys live in a process of their own")
        self.start()
        self.run(*profile, "whoami")
        self.run(*profile, "keys", "list")

        title("3. A model: safetensors shards, a tokenizer, a configuration")
        size, count = make_model(self.directory / "tiny-lm")
        print(f"tiny-lm: {count} files, {size / 1e6:.1f} MB")

        title("4. Sign it: the daemon reads the statement, logs its intent, calls the token, logs the outcome")
        self.run(*profile, "sign", "model", "tiny-lm", "--key", "keys/release", "--receipt", "tiny-lm.receipt")

        title("5. What the release key refuses: a digest that nobody can read")
        self.run(*profile, "sign", "digest", "--sha256", "00" * 32, "--key", "keys/release", expect=3)

        title("6. The audit log has all of it, the refusal too")
        self.run(*profile, "audit", "list")
        self.run(*profile, "audit", "verify")

        title("7. The daemon stops. What follows needs no daemon and no network")
        self.stop()
        print("stopped")

        title("8. The signature verifies, here and with OpenSSF's own tool")
        verify_ours = ["greatseal", "verify", "model", "tiny-lm", "--signature", "tiny-lm/model.sig"]
        verify_ours += ["--public-key", "seal/keys/release.pem"]
        verify_upstream = ["model_signing", "verify", "key", "tiny-lm", "--signature", "tiny-lm/model.sig"]
        verify_upstream += ["--public_key", "seal/keys/release.pem"]
        self.run(*verify_ours)
        self.run(*verify_upstream)

        title("9. The receipt proves that it stands in the log: intent before, outcome after")
        vkey = (self.directory / "seal/log/log.vkey").read_text().strip()
        receipt = ["greatseal", "receipt", "verify", "tiny-lm.receipt", "--log-key", vkey]
        receipt += ["--public-key", "seal/keys/release.pem", "--model", "tiny-lm"]
        self.run(*receipt)

        title("10. One flipped bit in five million bytes")
        shard = self.directory / "tiny-lm/weights/model-00002-of-00002.safetensors"
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
        self.run(*verify_ours, expect=6)
        self.run(*verify_upstream, expect=1)
        self.run(*receipt, expect=6)

    def start(self) -> None:
        log = self.directory / "serve.stderr"
        print(prompt("greatseald serve --config seal/greatseald.toml &"))
        with log.open("wb") as stderr:
            self.daemon = subprocess.Popen(
                ["greatseald", "serve", "--config", "seal/greatseald.toml"],
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if found := READY.search(log.read_text(errors="replace")):
                print(found[0])
                return
            if self.daemon.poll() is not None:
                break
            time.sleep(0.02)
        raise DemoFailed(f"the daemon did not get ready:\n{log.read_text(errors='replace')}")

    def stop(self) -> None:
        if self.daemon is None:
            return
        if self.daemon.poll() is None:
            self.daemon.terminate()
        try:
            self.daemon.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.daemon.pid, signal.SIGKILL)
            self.daemon.wait()
        self.daemon = None

    def run(self, *command: str, expect: int = 0) -> None:
        """Show a command and what it says; it must exit as expected."""
        print(prompt(shlex.join(command)), flush=True)
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        print(done.stdout.rstrip())
        if done.returncode != expect:
            raise DemoFailed(f"`{shlex.join(command)}` exited {done.returncode}, and {expect} was expected")
        if expect:
            print(faint(f"(exit code {done.returncode}, as it should be)"))


def make_model(directory: Path) -> tuple[int, int]:
    """Write a small language model's files, with weights as safetensors; return its size in bytes and its files."""
    noise = random.Random(2026)  # noqa: S311 - weights, not secrets
    for name in ("weights", "tokenizer"):
        (directory / name).mkdir(parents=True)
    shapes = {"embed.weight": (512, 256), "mlp.up.weight": (1024, 256), "mlp.down.weight": (256, 1024)}
    weight_map = {}
    for number in (1, 2):
        name = f"model-{number:05}-of-00002.safetensors"
        tensors = {f"layers.{number}.{tensor}": shape for tensor, shape in shapes.items()}
        (directory / "weights" / name).write_bytes(safetensors(tensors, noise))
        weight_map |= dict.fromkeys(tensors, name)
    texts = {
        "config.json": {"architectures": ["TinyLM"], "hidden_size": 256, "num_hidden_layers": 2, "vocab_size": 512},
        "weights/model.safetensors.index.json": {"weight_map": weight_map},
        "tokenizer/vocab.json": {f"token{number}": number for number in range(512)},
    }
    for name, value in texts.items():
        (directory / name).write_text(json.dumps(value, indent=1) + "\n")
    (directory / "README.md").write_text("# tiny-lm\n\nRandom weights: it has nothing to say, and says it signed.\n")
    files = [path for path in directory.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files), len(files)


def safetensors(tensors: dict[str, tuple[int, int]], noise: random.Random) -> bytes:
    """Return a safetensors file: u64 little-endian header length, JSON header, 32-bit floats."""
    header, data = {}, bytearray()
    for name, (rows, columns) in tensors.items():
        begin = len(data)
        data += noise.randbytes(rows * columns * 4)
        header[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [begin, len(data)]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded + data


def title(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if COLOUR else f"\n== {text}", flush=True)


def prompt(text: str) -> str:
    return f"\033[36m$ {text}\033[0m" if COLOUR else f"$ {text}"


def faint(text: str) -> str:
    return f"\033[2m{text}\033[0m" if COLOUR else text


def interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupted)  # so that the daemon is stopped then, too
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
