"""Peers: a log that is not what another front, a mirror or an export has seen signs nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import grpc
import pytest

from deployment import Deployment
from front_site import connected, logged, pipeline, reason_of, sign, wait_for
from outside_site import table

pytestmark = pytest.mark.softhsm


@pytest.fixture
def daemon(tmp_path: Path):
    daemon = Deployment.create(tmp_path)
    daemon.edit(r"^reserve_bytes", "peer_interval = 0.2\nreserve_bytes")
    yield daemon
    daemon.close()


def have_signed(daemon: Deployment, text: str) -> None:
    with connected(daemon, pipeline(daemon)) as channel:
        sign(channel, text)


def start_refused(daemon: Deployment) -> str:
    daemon.start(wait=False)
    assert daemon.wait_exit() == 6, daemon.stderr
    return daemon.stderr.splitlines()[-1]


def forget(daemon: Deployment) -> None:
    """Remove what the machine itself remembers of the log."""
    for path in (daemon.directory / "anchor").iterdir():
        path.unlink()
    for path in daemon.database.parent.glob("log.db-*"):
        path.unlink()


def test_an_exported_checkpoint_catches_a_rollback_at_the_start_and_a_fork_while_it_runs(daemon, tmp_path):
    mirror = tmp_path / "mirror"
    daemon.append(table("peers", name="mirror", url=f"file://{mirror}"))
    daemon.start()
    have_signed(daemon, "first")
    assert wait_for(lambda: logged(daemon, "anchor_unreachable"))[0]["kind"] == "peer"  # nothing was exported yet
    daemon.stop()
    copy = tmp_path / "copy.db"
    shutil.copy(daemon.database, copy)
    daemon.start()
    have_signed(daemon, "second")
    assert daemon.client("audit", "checkpoint", "--output", mirror).returncode == 0
    wait_for(lambda: logged(daemon, "anchor_reached_again"))
    have_signed(daemon, "third")  # the mirror is behind, and a beginning of the log
    daemon.stop()

    shutil.copy(copy, daemon.database)
    told = start_refused(daemon)
    assert "the anchor" in told
    (daemon.directory / "anchor" / "released").unlink()
    told = start_refused(daemon)  # by what was remembered of the peer
    assert "peer mirror has seen" in told
    forget(daemon)
    told = start_refused(daemon)  # by the peer
    assert "peer mirror has seen" in told
    assert "the database is an older copy" in told

    # The mirror is away, the copy is signed on, and the mirror comes back.
    mirror.rename(tmp_path / "away")
    forget(daemon)
    daemon.start()
    for number in range(4):
        have_signed(daemon, f"another branch {number}")
    (tmp_path / "away").rename(mirror)
    wait_for(lambda: logged(daemon, "anchor_disagrees"))
    with pytest.raises(grpc.RpcError) as caught:
        have_signed(daemon, "refused")
    assert reason_of(caught.value) == (grpc.StatusCode.FAILED_PRECONDITION, "ANCHOR_DISAGREES")
    assert "peer mirror has seen other entries" in caught.value.details()
    wait_for(lambda: logged(daemon, "not_serving"))


def test_another_daemon_is_asked_as_a_client_asks(daemon, tmp_path):
    """Here it is the daemon itself, which agrees with itself; and one of another log, which is an alarm and no disagreement."""
    other = Deployment.create(tmp_path, name="other")
    other.start()
    files = {
        "ca": daemon.directory / "pki" / "ca.pem",
        "client_cert": daemon.directory / "pki" / "pipeline.pem",
        "client_key": daemon.directory / "pki" / "pipeline.key",
    }
    daemon.start()
    address = daemon.address
    daemon.stop()
    daemon.append(table("peers", name="itself", address=address, server_name="localhost", timeout=2, **files))
    pki = other.directory / "pki"
    others = {"ca": pki / "ca.pem", "client_cert": pki / "pipeline.pem", "client_key": pki / "pipeline.key"}
    daemon.append(table("peers", name="stranger", address=other.address, server_name="localhost", timeout=2, **others))
    daemon.start("--listen", address)
    wait_for(lambda: any(line["anchor"] == "itself" for line in logged(daemon, "anchor_reached_again")))
    strange = {str(line["why"]) for line in logged(daemon, "anchor_unreachable") if line["anchor"] == "stranger"}
    assert any("is not signed by greatseal.local/log" in why for why in strange), strange
    have_signed(daemon, "all the same")
    other.close()
