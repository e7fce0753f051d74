"""Who may do what in the database, and how the way to it is secured: roles, passwords, TLS."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from front_site import Ca
from greatseald.adapters.store import postgres_admin
from greatseald.adapters.store.options import DEFAULTS, StoreOptions
from greatseald.adapters.store.postgres import PostgresStore
from greatseald.adapters.store.postgres_connection import Place
from greatseald.adapters.store.postgres_schema import MIGRATIONS
from greatseald.ports.store import Store, StoreError, StoreUnusable
from postgres_server import BOOT, OTHER, PostgresServer, database_of
from store_writing import StoreWriter, check_log

pytestmark = pytest.mark.postgres


@pytest.fixture
def roles(postgres: PostgresServer, postgres_url: str) -> Iterator[str]:
    """Roles without rights, and one that may make a schema; the database's name."""
    name = database_of(postgres_url)
    for role in ("greatseal_owner", "greatseal_front", "greatseal_reader"):
        postgres.run(f"CREATE ROLE {role} LOGIN")
    postgres.run(f"GRANT CREATE ON DATABASE {name} TO greatseal_owner")
    yield name
    for role in ("greatseal_front", "greatseal_reader", "greatseal_owner"):
        postgres.run(f"DROP OWNED BY {role} CASCADE", name)
        postgres.run(f"DROP ROLE {role}", name)


def prepare(postgres: PostgresServer, name: str, *, must_be_empty: bool = True) -> tuple[int, int, list[str]]:
    return postgres_admin.prepare(
        postgres.url(name, "greatseal_owner"),
        DEFAULTS,
        front="greatseal_front",
        reader="greatseal_reader",
        must_be_empty=must_be_empty,
    )


def use_as_front(postgres: PostgresServer, name: str) -> None:
    """Everything that a daemon does."""
    front = postgres.url(name, "greatseal_front")
    with closing(PostgresStore(front, BOOT)) as store:
        writer = StoreWriter(store, BOOT)
        writer.write([b"%d" % number for number in range(256)], opens=True)
        writer.write([b"o"], closes=[0])
        store.check_alive()
        assert store.forget_requests(10_000, 10) == 0
    with closing(PostgresStore(front, OTHER)) as store:
        assert len(store.open_intents()) == 255
        check_log(store)


FORBIDDEN = [
    "UPDATE greatseal.commits SET size = 9",
    "DELETE FROM greatseal.commits",
    "TRUNCATE greatseal.commits",
    "UPDATE greatseal.tiles SET idx = 9",
    "DELETE FROM greatseal.tiles",
    "INSERT INTO greatseal.head VALUES (false, 0, '', '', '')",
    "DELETE FROM greatseal.head",
    "UPDATE greatseal.open_intents SET idx = 0",
    "UPDATE greatseal.requests SET intent = 0",
    "UPDATE greatseal.outcomes SET outcome = 0",
    "UPDATE greatseal.schema_version SET version = 0",
    "ALTER TABLE greatseal.commits DISABLE TRIGGER ALL",
    "DROP TABLE greatseal.head",
    "CREATE TABLE greatseal.mine (x integer)",
]


def test_the_fronts_role_does_all_of_a_daemons_work_and_cannot_touch_what_is_written(
    postgres: PostgresServer, roles: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert prepare(postgres, roles)[:2] == (0, len(MIGRATIONS))
    use_as_front(postgres, roles)
    assert "store_role_may_do_too_much" not in capfd.readouterr().out
    for statement in FORBIDDEN:
        with (
            psycopg.connect(postgres.url(roles, "greatseal_front")) as front,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            front.execute(statement.encode())


def test_a_reader_reads_and_no_more(postgres: PostgresServer, roles: str) -> None:
    prepare(postgres, roles)
    use_as_front(postgres, roles)
    with psycopg.connect(postgres.url(roles, "greatseal_reader"), autocommit=True) as reader:
        assert reader.execute("SELECT size FROM greatseal.head").fetchone() == (257,)
        for statement in (
            *FORBIDDEN,
            "INSERT INTO greatseal.outcomes VALUES (0, 0)",
            "UPDATE greatseal.head SET size = 1",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                reader.execute(statement.encode())


def test_the_sql_for_administrators_makes_what_init_makes(postgres: PostgresServer, roles: str) -> None:
    with psycopg.connect(postgres.url(roles, "greatseal_owner"), autocommit=True) as owner:
        owner.execute(postgres_admin.script("greatseal_front", "greatseal_reader").encode())
    use_as_front(postgres, roles)
    assert prepare(postgres, roles, must_be_empty=False)[:2] == (len(MIGRATIONS),) * 2, "and the commands go on from it"
    found = postgres_admin.status(postgres.url(roles, "greatseal_reader"), DEFAULTS)
    assert (found.version, found.size, found.fronts, found.excess_rights) == (len(MIGRATIONS), 257, 0, [])


def test_a_daemon_with_too_many_rights_is_told_which(postgres_url: str, opened: Callable[..., Store]) -> None:
    with closing(opened(postgres_url)):
        found = postgres_admin.status(postgres_url, DEFAULTS)
    assert "DELETE on commits" in found.excess_rights
    assert found.fronts == 1


def test_a_role_without_rights_is_told_what_to_do(postgres: PostgresServer, roles: str) -> None:
    with pytest.raises(StoreUnusable, match=r"may not make, read or migrate .*store init"):
        PostgresStore(postgres.url(roles, "greatseal_front"), BOOT)


def test_init_and_migrate_say_where_they_do_not_fit(postgres: PostgresServer, roles: str) -> None:
    with pytest.raises(StoreError, match="has no log yet: `store init`"):
        prepare(postgres, roles, must_be_empty=False)
    prepare(postgres, roles)
    with pytest.raises(StoreError, match=f"schema version {len(MIGRATIONS)} already: `store migrate`"):
        prepare(postgres, roles)


def test_a_role_that_does_not_exist_leaves_nothing_behind(postgres: PostgresServer, roles: str) -> None:
    owner = postgres.url(roles, "greatseal_owner")
    with pytest.raises(StoreError, match=r'role "nobody_here" does not exist.*CREATE ROLE'):
        postgres_admin.prepare(owner, DEFAULTS, front="nobody_here", reader="", must_be_empty=True)
    assert postgres.run("SELECT to_regnamespace('greatseal')", roles) == [(None,)]


@pytest.mark.parametrize("role", ["a; DROP SCHEMA greatseal", 'quo"ted', "PUBLIC"])
def test_a_role_is_a_name_and_never_sql(role: str) -> None:
    assert f'TO "{role.replace(chr(34), chr(34) * 2)}";' in postgres_admin.script(role, "")


# ------------------------------------------------------------------------------- passwords and TLS


PASSWORD = "hunter2 & ümlaut/:@"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PostgresServer, int, Path]]:
    """A server that wants a password of `keeper`, also over TLS on loopback; its port and its CA's file."""
    directory = tmp_path_factory.mktemp("tls")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ca = Ca.foreign("the database's CA")
    (directory / "ca.pem").write_bytes(ca.pem())
    hba = "local all keeper scram-sha-256\nhostssl all all 127.0.0.1/32 scram-sha-256\n"
    with PostgresServer.start(hba=hba) as server:
        from cryptography import x509

        chain, key = ca.issue(x509.DNSName("db.greatseal.test"), server=True)
        for name, data in (("server.crt", chain), ("server.key", key)):
            (server.directory / name).write_bytes(data)
            server.give(server.directory / name)
        quoted = PASSWORD.replace("'", "''")
        server.run(f"CREATE ROLE keeper LOGIN SUPERUSER PASSWORD '{quoted}'")
        server.empty_database()
        server.down()
        server.settings = (
            "listen_addresses=127.0.0.1",
            f"port={port}",
            "ssl=on",
            f"ssl_cert_file={server.directory}/server.crt",
            f"ssl_key_file={server.directory}/server.key",
        )
        server.port = port
        server.up()
        yield server, port, directory / "ca.pem"


def over_tls(port: int, parameters: str, host: str = "db.greatseal.test") -> str:
    """The server by a name that no resolver has, which counts as another machine."""
    return f"postgresql://keeper@{host}:{port}/log?hostaddr=127.0.0.1{parameters}"


def test_a_password_comes_from_a_file_or_libpqs_own(
    guarded: tuple[PostgresServer, int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, port, _ = guarded
    url = server.url("log", "keeper")
    with pytest.raises(StoreUnusable, match="no password supplied"):
        PostgresStore(url, BOOT)
    PostgresStore(url, BOOT, StoreOptions(password=PASSWORD)).close()
    escaped = PASSWORD.replace("\\", "\\\\").replace(":", "\\:")
    passfile = tmp_path / "pgpass"
    passfile.write_text(f"*:*:*:keeper:{escaped}\n")
    passfile.chmod(0o600)
    PostgresStore(f"{url}&passfile={passfile}", BOOT).close()
    services = tmp_path / "services"
    services.write_text(f"[seal]\nhost={server.directory}\nport={port}\ndbname=log\nuser=keeper\npassfile={passfile}\n")
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    PostgresStore("postgresql://?service=seal", BOOT).close()


def test_no_message_and_no_representation_shows_a_password(guarded: tuple[PostgresServer, int, Path]) -> None:
    server, _, _ = guarded
    options = StoreOptions(password="wrong-and-secret")
    place = Place.parse(server.url("log", "keeper"), options)
    assert "wrong-and-secret" not in repr((options, place))
    with pytest.raises(StoreUnusable, match="password authentication failed") as refused:
        PostgresStore(server.url("log", "keeper"), BOOT, options)
    assert "secret" not in str(refused.value)
    for url in (
        "postgresql://keeper:s3cret@[::1/log",
        "postgresql://keeper:s3cret@db:notaport/log",
        "postgresql://keeper:s3cret@db/log?sslmodus=s3cret",
        "postgresql://keeper:s3cret%zz@db/log",
        "postgresql://keeper@db/log?password=s3cret&sslmode=disable",
    ):
        with pytest.raises(StoreUnusable) as refused:
            PostgresStore(url, BOOT, StoreOptions(connect_timeout=2))
        assert "s3cret" not in str(refused.value), url


def test_a_server_over_a_network_must_prove_who_it_is(
    guarded: tuple[PostgresServer, int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, port, ca = guarded
    monkeypatch.setenv("HOME", str(tmp_path))  # libpq looks for roots in ~/.postgresql
    options = StoreOptions(password=PASSWORD)
    with closing(PostgresStore(over_tls(port, f"&sslrootcert={ca}"), BOOT, options)) as store:
        StoreWriter(store, BOOT).write([b"over TLS"])
    foreign = tmp_path / "foreign.pem"
    foreign.write_bytes(Ca.foreign().pem())
    for url, says in (
        (over_tls(port, f"&sslrootcert={foreign}"), "certificate verify failed"),
        (over_tls(port, f"&sslrootcert={ca}", host="other.greatseal.test"), "does not match host name"),
        (over_tls(port, ""), "root certificate file"),
        (over_tls(port, "&sslmode=require"), "sslmode=require does not verify the server"),
        (over_tls(port, "&sslmode=disable"), "sslmode=disable does not verify the server"),
    ):
        with pytest.raises(StoreUnusable, match=says):
            PostgresStore(url, OTHER, options)


def test_a_service_file_cannot_weaken_tls(
    guarded: tuple[PostgresServer, int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, port, ca = guarded
    services = tmp_path / "services"
    place = f"host=db.greatseal.test\nhostaddr=127.0.0.1\nport={port}\ndbname=log\nuser=keeper\n"
    services.write_text(f"[weak]\n{place}sslmode=require\n[good]\n{place}sslmode=verify-full\nsslrootcert={ca}\n")
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    options = StoreOptions(password=PASSWORD)
    PostgresStore("postgresql://?service=good", BOOT, options).close()
    with pytest.raises(StoreUnusable, match="does not verify the server"):
        PostgresStore("postgresql://?service=weak", BOOT, options)


def test_a_start_waits_for_a_server_that_comes_up(postgres: PostgresServer, postgres_url: str) -> None:
    PostgresStore(postgres_url, BOOT).close()
    postgres.down()
    try:
        with pytest.raises(StoreUnusable, match="cannot be reached"):
            PostgresStore(postgres_url, BOOT, StoreOptions(wait_for_server=0.7))
    finally:
        postgres.up()
    # Final refusals are not waited for: a wrong name does not become right.
    with pytest.raises(StoreUnusable, match="does not exist"):
        PostgresStore(postgres_url.replace("/log?", "/absent?"), BOOT, StoreOptions(wait_for_server=600))
