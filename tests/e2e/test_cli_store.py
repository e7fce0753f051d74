"""`greatseald store`, as the owner of a database and an operator type it, up to a daemon that runs on it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import greatseal
from deployment import Deployment, greatseald
from greatseald.adapters.store.postgres_schema import MIGRATIONS
from postgres_server import PostgresServer

pytestmark = [pytest.mark.postgres, pytest.mark.softhsm]

OWNER, FRONT = "owner's secret", "front-secret"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer.start(hba="local all seal_owner,seal_front scram-sha-256\n") as running:
        running.run(f"CREATE ROLE seal_owner LOGIN PASSWORD '{OWNER.replace(chr(39), chr(39) * 2)}'")
        running.run(f"CREATE ROLE seal_front LOGIN PASSWORD '{FRONT}'")
        running.run("CREATE ROLE seal_reader LOGIN")
        yield running


def secret_file(path: Path, secret: str) -> Path:
    path.write_text(secret + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def site(deployment: Deployment, server: PostgresServer) -> Deployment:
    """An installation whose store is an empty database, as the role without rights."""
    server.empty_database()
    server.run("GRANT CREATE ON DATABASE log TO seal_owner")
    secret_file(deployment.directory / "front.password", FRONT)
    secret_file(deployment.directory / "owner.password", OWNER)
    url = server.url("log", "seal_front")
    deployment.edit(r"^url = .*", f'url = "{url}"\npassword_file = "front.password"\nwait_for_server = 0')
    return deployment


def store(
    site: Deployment, server: PostgresServer, command: str, *options: str | Path
) -> subprocess.CompletedProcess[str]:
    done = site.daemon(
        "store",
        command,
        "--as",
        server.url("log", "seal_owner"),
        "--as-password-file",
        site.directory / "owner.password",
        *options,
    )
    for secret in (OWNER, FRONT):
        assert secret not in done.stdout + done.stderr
    return done


def test_from_an_empty_database_to_a_signature(site: Deployment, server: PostgresServer) -> None:
    site.start(wait=False)
    assert site.wait_exit() == 5
    assert "greatseald store init" in site.stderr
    made = store(site, server, "init", "--reader-role", "seal_reader", "--json")
    assert made.returncode == 0, made.stderr
    said = json.loads(made.stdout)
    assert (said["version_before"], said["version"]) == (0, len(MIGRATIONS))
    assert any('"seal_front"' in grant for grant in said["grants"])
    assert any('"seal_reader"' in grant for grant in said["grants"])

    with site.running():
        with greatseal.Client.from_profile(site.profile) as client:
            client.sign_digest("keys/scratch", bytes(32))
        status = site.daemon("store", "status", "--json")
        assert status.returncode == 0, status.stderr
        found = json.loads(status.stdout)
        assert (found["fronts"], found["open_intents"], found["role"], found["excess_rights"]) == (
            1,
            0,
            "seal_front",
            [],
        )
        assert "store_role_may_do_too_much" not in site.stderr
        refused = site.daemon("backup", site.directory / "copy.db")
        assert refused.returncode != 0
        assert "pg_basebackup" in refused.stderr

    again = store(site, server, "init")
    assert again.returncode == 1
    assert "store migrate" in again.stderr
    migrated = store(site, server, "migrate")
    assert migrated.returncode == 0, migrated.stderr
    assert f"schema version {len(MIGRATIONS)} already" in migrated.stderr


def test_secrets_in_the_wrong_places_are_refused(site: Deployment, server: PostgresServer) -> None:
    shown = server.url("log", "seal_owner").replace("seal_owner@", "seal_owner:hunter2@")
    done = site.daemon("store", "init", "--as", shown)
    assert done.returncode == 2
    assert "--as-password-file" in done.stderr
    assert "hunter2" not in done.stderr

    (site.directory / "owner.password").chmod(0o644)
    done = store(site, server, "init")
    assert done.returncode == 5
    assert "chmod 600" in done.stderr or "others can read" in done.stderr
    done = site.daemon("store", "init", "--as", server.url("log", "seal_owner"), "--as-password-file", "/absent")
    assert done.returncode == 5
    assert "/absent" in done.stderr

    done = greatseald(
        "check-config", site.config, env={"GREATSEALD_STORE_URL": shown, "GREATSEALD_STORE_PASSWORD_FILE": ""}
    )
    assert done.returncode == 2
    assert "an environment is no place" in done.stderr or "GREATSEALD_STORE" in done.stderr
    assert "hunter2" not in done.stderr


def test_what_does_not_fit_is_said(
    site: Deployment, server: PostgresServer, new_deployment: Callable[..., Deployment]
) -> None:
    done = site.daemon("store", "status")
    assert done.returncode == 5
    assert "store init" in done.stderr
    done = store(site, server, "migrate")
    assert done.returncode == 1
    assert "store init" in done.stderr
    done = store(site, server, "init", "--front-role", "nobody_here")
    assert done.returncode == 1
    assert 'role "nobody_here" does not exist' in done.stderr
    done = site.daemon("store", "init", "--as", "sqlite:///tmp/x.db")
    assert done.returncode == 2

    embedded = new_deployment(name="embedded")
    assert embedded.daemon("store", "migrate").returncode == 0
    assert embedded.daemon("store", "status").returncode == 2
    assert embedded.daemon("store", "init", "--front-role", "x").returncode == 2


def test_the_sql_for_administrators_runs_in_one_transaction(site: Deployment, server: PostgresServer) -> None:
    done = greatseald("store", "sql", "--front-role", "seal_front")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("BEGIN;\n")
    assert done.stdout.endswith("COMMIT;\n")
    server.run(done.stdout, "log")
    with site.running():
        assert site.client("whoami").returncode == 0
