"""The log as the daemon publishes it: a directory of tiles that anybody verifies, over HTTP too, and never a second history."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from deployment import Deployment, DeploymentError, greatseald
from front_site import connected, pipeline, sign, wait_for
from greatseal.checkpoint import Checkpoint
from greatseal.logdirectory import LogDirectory
from greatseal.note import NoteSigner, VerifierKey
from greatseal.tiles import WIDTH
from greatseal.tilewriter import TileWriter

pytestmark = pytest.mark.softhsm


@pytest.fixture
def site(new_deployment: Any) -> Deployment:
    return new_deployment()


def table(directory: Path, **more: object) -> str:
    lines = [
        "\n[log.tiles]",
        f'directory = "{directory}"',
        *(f"{key} = {json.dumps(value)}" for key, value in more.items()),
    ]
    return "\n".join(lines) + "\n"


def publish_to(site: Deployment, directory: Path, **more: object) -> LogDirectory:
    site.append(table(directory, **{"interval": 0.1, **more}))
    return LogDirectory(directory, vkey(site))


def vkey(site: Deployment) -> VerifierKey:
    return VerifierKey.parse(site.log_vkey.read_text().strip())


def published(directory: LogDirectory) -> int:
    return directory.checkpoint().size if (directory.path / "checkpoint").exists() else 0


def log_size(site: Deployment) -> int:
    answer = site.client("audit", "checkpoint")
    assert answer.returncode == 0, answer.stderr
    return int(answer.stdout.splitlines()[1])


def sign_some(site: Deployment, count: int) -> None:
    with connected(site, pipeline(site)) as channel:
        for _ in range(count):
            sign(channel)


def metric(site: Deployment, name: str) -> float:
    address = (site.directory / "run" / "metrics_address").read_text().strip()
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return next(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"{name} "))


def files(directory: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(directory)): (path.stat().st_ino, path.read_bytes())
        for path in directory.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_what_is_published_verifies_and_grows_across_restarts_and_full_tiles_are_written_once(
    site: Deployment, tmp_path: Path
) -> None:
    directory = publish_to(site, tmp_path / "tiles")
    with site.running():
        sign_some(site, 150)
        size = log_size(site)
        wait_for(lambda: published(directory) >= size)
        assert metric(site, "greatseald_tiles_entries") >= size
        assert metric(site, "greatseald_tiles_failing") == 0
    before = files(directory.path)
    assert "tile/0/000" in before
    site.start()
    sign_some(site, 120)
    size = log_size(site)
    wait_for(lambda: published(directory) >= size)
    site.kill()
    with site.running():
        sign_some(site, 1)
        size = log_size(site)
        wait_for(lambda: published(directory) >= size)
        done = site.client("audit", "verify", "--directory", directory.path)
        assert done.returncode == 0, done.stderr
    after = files(directory.path)
    for name in ("tile/0/000", "tile/entries/000"):
        assert after[name] == before[name], "a full tile was written again"
    assert not [name for name in after if name.startswith(("tile/0/000.p/", "tile/entries/000.p/"))]
    checkpoint, check = directory.verify()
    assert checkpoint.size >= size > 2 * WIDTH
    assert check.problem is None


def test_a_log_that_is_older_than_its_published_tiles_is_not_signed_on(site: Deployment, tmp_path: Path) -> None:
    directory = publish_to(site, tmp_path / "tiles")
    with site.running():
        sign_some(site, 1)
    old = tmp_path / "old.db"
    assert site.daemon("backup", old).returncode == 0
    with site.running():
        sign_some(site, 3)
        size = log_size(site)
        wait_for(lambda: published(directory) >= size)
    assert site.daemon("restore", old, "--replace").returncode == 0
    (site.directory / "anchor" / "released").unlink()  # whoever rolls back the log removes what he can
    with pytest.raises(DeploymentError, match="exited 6"):
        site.start()
    assert "published tiles" in site.stderr
    assert "older copy" in site.stderr


def test_a_directory_with_another_history_stops_the_publishing_and_not_the_signing(
    site: Deployment, tmp_path: Path
) -> None:
    directory = publish_to(site, tmp_path / "tiles")
    with site.running():
        sign_some(site, 2)
        size = log_size(site)
        wait_for(lambda: published(directory) >= size)
        key = site.directory / "log" / "log.key"
        signer = NoteSigner.from_pem(vkey(site).name, key.read_bytes())
        forged = Checkpoint(vkey(site).name, 2, b"\7" * 32).sign(signer)
        (directory.path / "checkpoint").write_text(forged)
        sign_some(site, 1)
        wait_for(lambda: metric(site, "greatseald_tiles_disagree") == 1)
        sign_some(site, 1)
        assert (directory.path / "checkpoint").read_text() == forged, "the evidence was written over"
        assert "forked or rewritten" in site.stderr
    with pytest.raises(DeploymentError, match="exited 6"):
        site.start()


def test_a_directory_of_another_log_is_an_alarm_and_is_left_alone(
    site: Deployment, new_deployment: Any, tmp_path: Path
) -> None:
    directory = publish_to(site, tmp_path / "tiles")
    with site.running():
        sign_some(site, 1)
        size = log_size(site)
        wait_for(lambda: published(directory) >= size)
    before = files(directory.path)
    other = new_deployment(name="other")
    other.append(table(directory.path, interval=0.1))
    with other.running():
        sign_some(other, 1)
        wait_for(lambda: metric(other, "greatseald_tiles_disagree") == 1)
    assert files(directory.path) == before


def test_tiles_that_were_edited_are_not_published_over(site: Deployment, tmp_path: Path) -> None:
    directory = publish_to(site, tmp_path / "tiles")
    with site.running():
        sign_some(site, 2)
        size = log_size(site)
        wait_for(lambda: published(directory) >= size)
    size = published(directory)
    edited = directory.path / f"tile/0/000.p/{size}"
    edited.write_bytes(b"\1" * 32 * size)
    with site.running():
        wait_for(lambda: metric(site, "greatseald_tiles_disagree") == 1)
        sign_some(site, 1)
    assert published(directory) == size
    assert "they were changed" in site.stderr


def test_a_directory_that_cannot_be_written_is_an_alarm_and_catches_up(site: Deployment, tmp_path: Path) -> None:
    place = tmp_path / "tiles"
    place.write_text("a file stands in the way")
    directory = publish_to(site, place)
    with site.running():
        sign_some(site, 1)
        wait_for(lambda: metric(site, "greatseald_tiles_failing") == 1)
        assert metric(site, "greatseald_tiles_behind_entries") > 0
        place.unlink()
        wait_for(lambda: published(directory) >= 3)
        wait_for(lambda: metric(site, "greatseald_tiles_failing") == 0)
    assert directory.verify()[0].size >= 3


def test_one_writer_at_a_time(site: Deployment, tmp_path: Path) -> None:
    """An export, or another front, that holds the directory is waited for."""
    directory = publish_to(site, tmp_path / "tiles")
    with TileWriter(directory.path, vkey(site)):
        site.start()
        sign_some(site, 1)
        wait_for(lambda: metric(site, "greatseald_tiles_failing") == 1)
        done = site.client("audit", "export", directory.path)
        assert done.returncode == 2
        assert "another process writes" in done.stderr
        assert published(directory) == 0
    wait_for(lambda: published(directory) >= 3)
    site.close()


def test_an_export_by_the_client_and_the_daemon_go_on_with_each_others_directory(
    site: Deployment, tmp_path: Path
) -> None:
    with site.running():
        sign_some(site, 1)
        assert site.client("audit", "export", tmp_path / "tiles").returncode == 0
    directory = publish_to(site, tmp_path / "tiles")
    with site.running():
        sign_some(site, 1)
        size = log_size(site)
        wait_for(lambda: published(directory) >= size)
    site.edit(r"^directory = .*$", f'directory = "{tmp_path / "elsewhere"}"')
    with site.running():
        assert site.client("audit", "export", tmp_path / "tiles").returncode == 0
        assert site.client("audit", "verify", "--directory", tmp_path / "tiles").returncode == 0


# ------------------------------------------------------------------------------------------- HTTP


def connection(site: Deployment, tls: ssl.SSLContext | None = None) -> http.client.HTTPConnection:
    host, _, port = (site.directory / "run" / "tiles_address").read_text().strip().rpartition(":")
    if tls is not None:
        return http.client.HTTPSConnection(host, int(port), timeout=10, context=tls)
    return http.client.HTTPConnection(host, int(port), timeout=10)


def test_over_http_everything_is_there_with_its_headers_and_nothing_else(site: Deployment, tmp_path: Path) -> None:
    directory = publish_to(site, tmp_path / "tiles", listen="127.0.0.1:0")
    with site.running(), closing(connection(site)) as http_client:
        sign_some(site, 140)
        size = log_size(site)
        wait_for(lambda: published(directory) >= size)
        get = _getter(http_client)
        status, headers, body = get("/checkpoint")
        assert (status, body) == (200, (directory.path / "checkpoint").read_bytes())
        assert headers["Content-Type"] == "text/plain; charset=utf-8"
        assert headers["Cache-Control"] == "public, max-age=5"
        for name in ("tile/0/000", "tile/entries/000", f"tile/0/001.p/{size - WIDTH}", "tile/1/000.p/1"):
            status, headers, body = get(f"/{name}")
            assert (status, body) == (200, (directory.path / name).read_bytes()), name
            assert headers["Content-Type"] == "application/octet-stream"
            assert "immutable" in headers["Cache-Control"]
            again = get(f"/{name}", headers={"If-None-Match": headers["ETag"]})
            assert (again[0], again[2]) == (304, b"")
            head = get(f"/{name}", "HEAD")
            assert (head[0], head[2], head[1]["Content-Length"]) == (200, b"", str(len(body)))
        for path in (
            "/",
            "/tile/0/001",
            "/tile/0/000.p/256",
            "/tile/00/000",
            "/tile/64/000",
            "/tile/0/x000/000",
            "/tile/0/0",
            "/tile/0/../../checkpoint",
            "/tile/0/%2e%2e/000",
            "/../greatseald.toml",
            "//etc/passwd",
            "/.greatseal-lock",
            "/tile/0/.000.part",
            "/tile/entries",
            "/tile/0/000/",
        ):
            assert get(path)[0] == 404, path


def _getter(http_client: http.client.HTTPConnection) -> Any:
    def get(path: str, method: str = "GET", headers: dict[str, str] | None = None) -> Any:
        http_client.putrequest(method, path, skip_accept_encoding=True)
        for name, value in (headers or {}).items():
            http_client.putheader(name, value)
        http_client.endheaders()
        answer = http_client.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()

    return get


def test_a_whole_log_is_mirrored_and_verified_over_http(site: Deployment, tmp_path: Path) -> None:
    """What a monitor does with nothing but the URL and the verifier key."""
    directory = publish_to(site, tmp_path / "tiles", listen="127.0.0.1:0")
    with site.running(), closing(connection(site)) as http_client:
        sign_some(site, 130)
        size = log_size(site)
        wait_for(lambda: published(directory) >= size)
        mirror = tmp_path / "mirror"
        get = _getter(http_client)
        for name in files(directory.path):
            (mirror / name).parent.mkdir(parents=True, exist_ok=True)
            (mirror / name).write_bytes(get(f"/{name}")[2])
    assert LogDirectory(mirror, vkey(site)).verify()[0].size >= size


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /checkpoint HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /checkpoint HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
        b"GET /checkpoint HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /checkpoint\r\n\r\n",
        b"GET checkpoint HTTP/1.1\r\n\r\n",
        b"GET /checkpoint HTTP/1.1\r\nA: 1\r\nA: 2\r\n\r\n",
        b"GET /checkpoint HTTP/1.1\r\nA : 1\r\n\r\n",
        b"\xff\xfe\r\n\r\n",
        b"GET /" + b"x" * 8192 + b" HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_plain_request_is_refused_and_the_next_one_served(
    tiles_site: Deployment, request_bytes: bytes
) -> None:
    host, _, port = (tiles_site.directory / "run" / "tiles_address").read_text().strip().rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        raw.sendall(request_bytes)
        raw.shutdown(socket.SHUT_WR)
        said = b"".join(iter(lambda: raw.recv(65536), b""))
    assert said == b"" or said.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 405 ")), said
    with closing(connection(tiles_site)) as http_client:
        assert _getter(http_client)("/checkpoint")[0] == 200


@pytest.fixture(scope="module")
def tiles_site(tmp_path_factory: pytest.TempPathFactory) -> Any:
    parent = tmp_path_factory.mktemp("tiles-http")
    made = Deployment.create(parent)
    directory = publish_to(made, parent / "tiles", listen="127.0.0.1:0")
    with made.running():
        wait_for(lambda: published(directory) >= 1)
        yield made


def test_connections_beyond_the_limit_are_closed_and_idle_ones_make_room(tiles_site: Deployment) -> None:
    host, _, port = (tiles_site.directory / "run" / "tiles_address").read_text().strip().rpartition(":")
    held = [socket.create_connection((host, int(port)), timeout=20) for _ in range(64)]
    try:
        with socket.create_connection((host, int(port)), timeout=20) as beyond:
            assert beyond.recv(1) == b""
        for each in held:
            assert each.recv(1) == b"", "an idle connection is not closed"
        with closing(connection(tiles_site)) as http_client:
            assert _getter(http_client)("/checkpoint")[0] == 200
    finally:
        for each in held:
            each.close()


def test_with_tls_a_certificate_is_needed_and_the_right_to_read_the_log(site: Deployment, tmp_path: Path) -> None:
    directory = publish_to(site, tmp_path / "tiles", listen="127.0.0.1:0", tls=True)
    site.add_client("auditor", "--actions", "readAudit")
    site.add_client("nobody")
    pki = site.directory / "pki"

    def tls(name: str = "") -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(pki / "ca.pem"))
        context.check_hostname = False
        if name:
            context.load_cert_chain(pki / f"{name}.pem", pki / f"{name}.key")
        return context

    with site.running():
        wait_for(lambda: published(directory) >= 1)
        with closing(connection(site, tls("auditor"))) as http_client:
            status, headers, body = _getter(http_client)("/checkpoint")
            assert (status, body) == (200, (directory.path / "checkpoint").read_bytes())
            assert headers["Cache-Control"].startswith("private")
        with closing(connection(site, tls("nobody"))) as http_client:
            status, _, body = _getter(http_client)("/checkpoint")
            assert status == 403
            assert b"readAudit" in body
        with (
            pytest.raises((ssl.SSLError, OSError, http.client.HTTPException)),
            closing(connection(site, tls())) as http_client,
        ):
            _getter(http_client)("/checkpoint")
        with pytest.raises((OSError, http.client.HTTPException)), closing(connection(site)) as http_client:
            _getter(http_client)("/checkpoint")
        denied = site.client("audit", "list", "--type", "denied", "--json")
        assert "nobody" in denied.stdout


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"listen": "0.0.0.0:8080"}, "beyond loopback"),
        ({"listen": "nowhere"}, "HOST:PORT"),
        ({"tls": True}, "no listen"),
        ({"interval": 0}, "at least 0.1"),
        ({"intervall": 5}, "did you mean 'interval'?"),
    ],
)
def test_wrong_tables_are_named_with_their_key(
    shared_deployment: Deployment, tmp_path: Path, more: dict[str, object], says: str
) -> None:
    config = shared_deployment.directory / "wrong.toml"
    config.write_text(shared_deployment.config.read_text() + table(tmp_path / "tiles", **more))
    result = greatseald("check-config", config)
    assert result.returncode == 2
    assert says in result.stdout + result.stderr
    assert "log.tiles" in result.stdout + result.stderr
