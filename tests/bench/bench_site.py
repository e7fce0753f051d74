"""The installation that is measured: `greatseald init`, two more keys, and a slow but parallel device.

Everything that protects a signature is on: mTLS, durable log, head MAC, fences, idempotency,
verification before release, anchor, metrics. The bare sides use the very same token.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "shim"))

import pkcs11_shim
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from workers import Worker, children, cpu_seconds

from deployment import Deployment
from greatseald.adapters.tokens.provision import add_keys

TESTS = Path(__file__).resolve().parents[1]
DEVICE_DELAY_MS = 5
DEVICE_SESSIONS = 10
PIPELINE = "spiffe://greatseal.local/pipeline"


@dataclass(frozen=True)
class BenchKey:
    """A key to measure: its name and label, and how the bare side reaches it."""

    name: str
    label: str
    algorithm: str
    digest_size: int
    pem: str
    device: bool = False

    @property
    def resource(self) -> str:
        return f"keys/{self.name}"


class Site:
    """The deployment with its workers. Use as a context manager; everything it started ends with it."""

    def __init__(self, directory: Path, *, daemon_env: dict[str, str] | None = None) -> None:
        self.deployment = Deployment.create(directory)
        self.directory = self.deployment.directory
        self.pki = self.directory / "pki"
        self._soft = self.directory / "tokens" / "soft"
        self._device = self.directory / "tokens" / "device"
        self._shim = pkcs11_shim.Shim(
            directory / "device",
            delay_ms=DEVICE_DELAY_MS,
            max_sessions=DEVICE_SESSIONS + 2,
            ledger=False,
            control=False,
        )
        # What one logs in with beyond the device's sessions is the host's own business: none.
        self._module = pkcs11_shim.softhsm_module()
        self.keys = {"p256": self._existing("scratch"), **self._generate()}
        scratch = self.keys["p256"]
        self.keys["device"] = BenchKey("device", "scratch", scratch.algorithm, 32, scratch.pem, device=True)
        self._configure()
        self.deployment.start(env=daemon_env)
        self._workers: list[Worker] = []

    # -- processes

    @property
    def address(self) -> str:
        return self.deployment.address

    @property
    def daemon_pid(self) -> int:
        assert self.deployment.process is not None
        return self.deployment.process.pid

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far of the front and of its token hosts together."""
        hosts = children(self.daemon_pid)
        return {"front": cpu_seconds(self.daemon_pid), "hosts": sum(cpu_seconds(pid) for pid in hosts)}

    def start(self, script: str, *arguments: str, env: dict[str, str] | None = None) -> Worker:
        worker = Worker(script, *arguments, env=env)
        self._workers.append(worker)
        return worker

    def client(self) -> Worker:
        return self.start("load_client.py", str(self.pki), str(self.deployment.log_vkey))

    def bare_token(self, key: BenchKey) -> Worker:
        module = self._shim.module if key.device else self._module
        return self.start(
            "bare_token.py", module, "greatseal", str(self._soft / "pin"), env=self._token_env(key.device)
        )

    def bare_store(self) -> Worker:
        return self.start("bare_store.py", str(self.directory / "data"))

    def echo(self, sample: Path) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, str(TESTS / "bench" / "echo_server.py"), str(self.pki), str(sample)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        return process, f"localhost:{process.stdout.readline().strip()}"

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
        self.deployment.close()

    # -- keys

    def _token_env(self, device: bool) -> dict[str, str]:
        own = {"SOFTHSM2_CONF": str((self._device if device else self._soft) / "softhsm2.conf")}
        return {**own, **self._shim.environment} if device else own

    def _copy_token(self) -> None:
        """Give the device a token directory of its own: two processes that open one of SoftHSM's at once may fail."""
        shutil.copytree(self._soft, self._device)
        conf = self._device / "softhsm2.conf"
        conf.write_text(conf.read_text().replace(str(self._soft), str(self._device)))

    def _existing(self, name: str) -> BenchKey:
        pem = (self.directory / "keys" / f"{name}.pem").read_text()
        return BenchKey(name, name, "ecdsa-p256-sha256", 32, pem)

    def _generate(self) -> dict[str, BenchKey]:
        """Add keys to the token that `init` made, the way it made its own."""
        kinds = {"p384": ("ec-p384", "ecdsa-p384-sha384", 48), "rsa3072": ("rsa-3072", "rsa-pkcs1-sha256", 32)}
        made = add_keys(
            self._soft, Path(self._module), "greatseal", [(name, kind) for name, (kind, _, _) in kinds.items()]
        )
        keys = {}
        for name, (_, algorithm, digest_size) in kinds.items():
            public = load_der_public_key(made[name])
            pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
            keys[name] = BenchKey(name, name, algorithm, digest_size, pem)
        return keys

    def _configure(self) -> None:
        environment = ", ".join(f'{name} = "{value}"' for name, value in self._token_env(True).items())
        tables = [
            (
                f'[[tokens]]\nname = "device"\ntype = "pkcs11"\nuri = "pkcs11:token=greatseal"\n'
                f'module = "{self._shim.module}"\nenvironment = {{ {environment} }}\npin_file = "tokens/device/pin"\n'
                f'sessions = {DEVICE_SESSIONS}\nlockout = "none"\n'
            )
        ]
        self._copy_token()
        for key in self.keys.values():
            if key.name != "scratch":
                token = "device" if key.device else "soft"
                tables.append(
                    f'[[keys]]\nname = "{key.name}"\ntoken = "{token}"\nuri = "pkcs11:object={key.label};type=private"\n'
                    f'algorithms = ["{key.algorithm}"]\n'
                )
        names = ", ".join(f'"{key.name}"' for key in self.keys.values())
        tables.append(f'[[allow]]\nclient = "{PIPELINE}"\nactions = ["signBlind", "readKeys"]\nkeys = [{names}]\n')
        self.deployment.append("\n".join(tables))
