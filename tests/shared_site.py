"""Several fronts over one PostgreSQL log: one installation copied, with keys, PKI and log in common and tokens of the same keys.

    with PostgresServer.start() as server:
        fronts = make_fronts(tmp_path, server.empty_database(), count=3)

Each has a token directory, an anchor and a shim of its own: a network HSM would be one, but SoftHSM's
files bear only one process at a time.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from deployment import Deployment
from fault_site import FaultSite


def make_fronts(parent: Path, url: str, count: int, base: Path | None = None) -> list[FaultSite]:
    """Make `count` fronts that are not started, copies of the installation `base` or of one made for them."""
    base = base or Deployment.create(parent, name="base").directory
    fronts = []
    for number in range(count):
        home = parent / f"front{number}"
        home.mkdir()
        shutil.copytree(base, home / "seal")
        for path in (home / "seal").rglob("*"):
            if path.suffix in {".toml", ".conf"}:
                path.write_text(path.read_text().replace(str(base), str(home / "seal")))
        deployment = Deployment(home / "seal")
        deployment.edit(r"^url = .*", f'url = "{url}"')
        fronts.append(FaultSite(home, deployment=deployment))
    return fronts


def close_all(fronts: list[FaultSite]) -> None:
    """End every front and whatever it started."""
    for front in fronts:
        front.close()
