"""The outbox with real receivers: every entry arrives, whatever happens to sink or daemon, and signing never waits."""

from __future__ import annotations

import json
import socket
import sqlite3
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from deployment import Deployment, DeploymentError, greatseald
from front_site import connected, pipeline, sign, wait_for
from greatseal.tlog import leaf_hash

pytestmark = pytest.mark.softhsm
RSYSLOGD = "/usr/sbin/rsyslogd"


@pytest.fixture
def site(new_deployment: Any) -> Deployment:
    return new_deployment()


def table(target: str, **more: object) -> str:
    lines = [f'\n[[outbox]]\nname = "siem"\ntarget = "{target}"']
    return "\n".join([*lines, *(f"{key} = {json.dumps(value)}" for key, value in more.items())]) + "\n"


def log_size(site: Deployment) -> int:
    """How many entries the daemon itself says there are."""
    answer = site.client("audit", "checkpoint")
    assert answer.returncode == 0, answer.stderr
    return int(answer.stdout.splitlines()[1])


def metric(site: Deployment, name: str) -> float:
    import urllib.request

    address = (site.directory / "run" / "metrics_address").read_text().strip()
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return next(
        float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f'{name}{{outbox="siem"}}')
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line] if path.exists() else []


def indexes(lines: list[dict[str, Any]]) -> list[int]:
    return [line["index"] for line in lines]


def sign_some(site: Deployment, count: int = 3) -> None:
    with connected(site, pipeline(site)) as channel:
        for _ in range(count):
            sign(channel)


def test_a_file_gets_every_entry_once_across_a_restart(site: Deployment, tmp_path: Path) -> None:
    target = tmp_path / "entries.jsonl"
    site.append(table(f"file://{target}"))
    for _ in range(2):
        with site.running():
            sign_some(site)
            size = log_size(site)
            wait_for(lambda size=size: len(read_lines(target)) >= size)
    lines = read_lines(target)
    assert indexes(lines) == list(range(len(lines)))
    kinds = [line["entry"]["t"] for line in lines]
    assert [kind for kind in kinds if kind != "admin"] == ["intent", "outcome"] * 6
    for line in target.read_bytes().splitlines():
        entry = line.partition(b'"entry":')[2][:-1]
        assert leaf_hash(entry).hex() == json.loads(line)["leaf_hash"], "the entry is not verbatim"
    assert target.stat().st_mode & 0o777 == 0o640


def test_a_killed_daemon_delivers_again_and_leaves_nothing_out(site: Deployment, tmp_path: Path) -> None:
    target = tmp_path / "entries.jsonl"
    site.append(table(f"file://{target}", batch=2))
    site.start()
    sign_some(site, 10)
    site.kill()
    with target.open("ab") as file:
        file.write(b'{"torn":')  # what a crash may leave
    with site.running():
        size = log_size(site)
        wait_for(lambda: size - 1 in indexes([line for line in tolerant(target) if "index" in line]))
    found = indexes([line for line in tolerant(target) if "index" in line])
    assert sorted(set(found)) == list(range(max(found) + 1))


def tolerant(path: Path) -> list[dict[str, Any]]:
    lines = []
    for text in path.read_text().splitlines():
        with suppress(ValueError):
            lines.append(json.loads(text))
    return lines


def test_a_rotated_file_is_begun_anew(site: Deployment, tmp_path: Path) -> None:
    target = tmp_path / "entries.jsonl"
    site.append(table(f"file://{target}", format="ocsf", types=["outcome", "denied"]))
    with site.running():
        sign_some(site)
        wait_for(lambda: len(read_lines(target)) == 3)
        target.rename(tmp_path / "entries.1")
        sign_some(site)
        wait_for(lambda: len(read_lines(target)) == 3)
    assert {line["class_uid"] for line in read_lines(target)} == {6003}
    assert all(line["actor"]["user"]["uid"].endswith("/pipeline") for line in read_lines(target))


@contextmanager
def rsyslog(tmp_path: Path, port: int, site: Deployment, *, tls: bool) -> Iterator[Path]:
    """A real rsyslogd that writes the messages it gets to a file, as `index` and message."""
    target, pki = tmp_path / "received", site.directory / "pki"
    module = (
        f'global(defaultNetstreamDriverCAFile="{pki / "ca.pem"}" defaultNetstreamDriverCertFile="{pki / "server.pem"}" '
        f'defaultNetstreamDriverKeyFile="{pki / "server.key"}")\n'
        'module(load="imtcp" StreamDriver.Name="ossl" StreamDriver.Mode="1" StreamDriver.AuthMode="anon")\n'
        if tls
        else 'module(load="imtcp")\n'
    )
    conf = tmp_path / "rsyslog.conf"
    conf.write_text(
        f'global(workDirectory="{tmp_path}" maxMessageSize="64k")\n{module}'
        'template(name="line" type="string" string="%pri%|%app-name%|%structured-data%|%msg%\\n")\n'
        f'input(type="imtcp" port="{port}" address="127.0.0.1")\n'
        f'action(type="omfile" file="{target}" template="line")\n'
    )
    process = subprocess.Popen(
        [RSYSLOGD, "-n", "-f", conf, "-i", tmp_path / "rsyslog.pid"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        wait_for(lambda: listening(port) or process.poll() is not None)
        assert process.poll() is None, process.communicate()[0]
        yield target
    finally:
        process.terminate()
        process.communicate(timeout=10)


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def received(path: Path) -> list[tuple[str, str, dict[str, Any]]]:
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        priority, app, data, message = line.split("|", 3)
        assert app == "greatseald"
        rows.append((priority, data, json.loads(message)))
    return rows


@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
def test_a_real_syslog_receiver_gets_everything_though_it_was_away(site: Deployment, tmp_path: Path, tls: bool) -> None:
    port = free_port()
    more = {"ca": str(site.directory / "pki" / "ca.pem")} if tls else {}
    site.append(table(f"syslog+{'tls' if tls else 'tcp'}://localhost:{port}", **more))
    with site.running():
        sign_some(site)
        wait_for(lambda: metric(site, "greatseald_outbox_failing") == 1)  # nobody listens yet, and signing went on
        assert metric(site, "greatseald_outbox_behind_entries") >= 7
        with rsyslog(tmp_path, port, site, tls=tls) as target:
            wait_for(lambda: len(received(target)) >= 7, 30)
            sign_some(site, 1)
            wait_for(lambda: len(received(target)) >= 9)
            assert metric(site, "greatseald_outbox_failing") == 0
            rows = received(target)
    assert sorted({row[2]["index"] for row in rows}) == list(range(len({row[2]["index"] for row in rows})))
    assert {row[0] for row in rows} == {"109"}, "facility log audit, severity notice"
    assert all(f'index="{row[2]["index"]}"' in row[1] and row[1].startswith("[greatseal@32473 ") for row in rows)
    assert "outbox_failing" in site.stderr


def test_a_receiver_with_a_foreign_certificate_gets_nothing(site: Deployment, tmp_path: Path) -> None:
    port = free_port()
    site.append(table(f"syslog+tls://localhost:{port}"))  # the system's CAs do not know it
    with site.running(), rsyslog(tmp_path, port, site, tls=True) as target:
        wait_for(lambda: metric(site, "greatseald_outbox_failing") == 1)
        assert "its certificate is not trusted" in site.stderr
        assert received(target) == []


class Receiver:
    """An HTTPS endpoint that answers as it is told and keeps what it took."""

    def __init__(self, pki: Path) -> None:
        self.status = 200
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.headers.append(dict(self.headers))
                if receiver.status == 200:
                    receiver.bodies.append(body)
                self.send_response(receiver.status)
                self.send_header("Location", "https://elsewhere.example/")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pki / "server.pem", pki / "server.key")
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"https://localhost:{self._server.server_port}/services/collector?channel=7"

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for body in self.bodies for line in body.splitlines()]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def receiver(site: Deployment) -> Iterator[Receiver]:
    receiver = Receiver(site.directory / "pki")
    yield receiver
    receiver.close()


def test_an_endpoint_that_refuses_for_a_while_loses_nothing(
    site: Deployment, receiver: Receiver, tmp_path: Path
) -> None:
    header = tmp_path / "header"
    header.touch(0o600)
    header.write_text("Authorization: Splunk s3cret-token\n")
    ca = str(site.directory / "pki" / "ca.pem")
    site.append(table(receiver.url, ca=ca, header_file=str(header), batch=3))
    receiver.status = 302  # a redirect is a refusal: it would carry the credential elsewhere
    with site.running():
        sign_some(site)
        wait_for(lambda: metric(site, "greatseald_outbox_failures_total") >= 1)
        receiver.status = 200
        wait_for(lambda: indexes(receiver.lines)[:7] == list(range(7)), 30)
        first = receiver.headers[-1]
        assert first["Authorization"] == "Splunk s3cret-token"
        assert int(first["X-Greatseal-Last-Index"]) - int(first["X-Greatseal-First-Index"]) < 3
    assert "s3cret" not in site.stderr


def test_a_black_hole_holds_up_nothing_but_itself(site: Deployment, tmp_path: Path) -> None:
    """A receiver that accepts and never reads: signing goes on, a stop does not wait for it."""
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen(8)
        site.append(table(f"syslog+tcp://127.0.0.1:{hole.getsockname()[1]}"))
        site.append(table(f"file://{tmp_path / 'other'}").replace('"siem"', '"other"'))
        site.start()
        sign_some(site, 20)
        wait_for(lambda: len(read_lines(tmp_path / "other")) >= 42)
        assert site.stop() == 0


@pytest.mark.parametrize("edit", [('"t":"intent"', '"x":"intent"'), ('"ts":"20', '"ts":"xx')], ids=["type", "time"])
def test_an_entry_that_somebody_edited_stops_the_delivery_and_not_the_signing(
    site: Deployment, tmp_path: Path, edit: tuple[str, str]
) -> None:
    """Nothing is left out: the outbox waits for the entry to be restored, says so, and goes on from there."""
    port = free_port()
    site.append(table(f"syslog+tcp://localhost:{port}", format="ocsf", batch=1))
    with site.running():
        sign_some(site)
        wait_for(lambda: metric(site, "greatseald_outbox_failing") == 1)  # nobody listens yet
        replace_in_intents(site, *edit)
        with rsyslog(tmp_path, port, site, tls=False) as target:
            wait_for(lambda: "the database was altered" in site.stderr, 30)
            before = log_size(site)
            sign_some(site, 1)
            assert log_size(site) > before
            assert metric(site, "greatseald_outbox_failing") == 1
            replace_in_intents(site, *reversed(edit))
            wait_for(lambda: len({row[2]["unmapped"]["log_index"] for row in received(target)}) >= before, 60)


def replace_in_intents(site: Deployment, old: str, new: str) -> None:
    """Edit the database under the running daemon."""
    with closing(sqlite3.connect(site.database)) as database, database:
        rows = database.execute("SELECT size, entries FROM commits").fetchall()
        for size, entries in rows:
            if b'"t":"intent"' in entries or b'"x":"intent"' in entries:
                database.execute(
                    "UPDATE commits SET entries = ? WHERE size = ?", (entries.replace(old.encode(), new.encode()), size)
                )


@pytest.mark.parametrize("content", [b"", b"seven\n", b"7", b"-1\n", b"99999999999999999999\n", b"1000000\n"])
def test_a_cursor_that_is_none_or_another_logs_is_not_gone_by(site: Deployment, tmp_path: Path, content: bytes) -> None:
    site.append(table(f"file://{tmp_path / 'entries'}"))
    cursor = site.directory / "outbox" / "siem.cursor"
    cursor.parent.mkdir()
    cursor.write_bytes(content)
    with pytest.raises(DeploymentError, match=r"siem\.cursor|outbox siem"):
        site.start()
    assert cursor.read_bytes() == content


@pytest.mark.parametrize(
    ("target", "more", "says"),
    [
        ("ftp://siem.example", {}, "must begin with"),
        ("file://relative/path", {}, "three slashes"),
        ("https://user:pw@siem.example", {}, "header_file"),
        ("http://siem.example/x", {}, "https"),
        ("syslog+tls://siem.example:99999", {}, "port"),
        ("file:///x", {"ca": "/nowhere.pem"}, "means nothing"),
        ("https://siem.example", {"ca": "/nowhere.pem"}, "nowhere.pem"),
        ("https://siem.example", {"client_cert": "/nowhere.pem"}, "both or neither"),
        ("file:///x", {"batch": 100_000}, "at most 1000"),
        ("file:///x", {"format": "cef"}, "ocsf"),
        ("file:///x", {"types": ["signature"]}, "outcome"),
    ],
)
def test_wrong_tables_are_named_with_their_key(
    site: Deployment, target: str, more: dict[str, object], says: str
) -> None:
    site.append(table(target, **more))
    result = greatseald("check-config", site.config)
    assert result.returncode == 2
    assert says in result.stdout + result.stderr
    assert "outbox" in result.stdout + result.stderr
