"""Starting, reloading, draining and ending; certificates that change; limits; what operators see."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import threading
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from deployment import Deployment, greatseald
from front_site import (
    TIMEOUT,
    Ca,
    connected,
    digest_request,
    logged,
    pipeline,
    read_address,
    reason_of,
    reload,
    sign,
    wait_for,
    who_am_i,
)
from greatseal.v1 import admin_pb2, admin_pb2_grpc, audit_pb2, audit_pb2_grpc, signing_pb2, signing_pb2_grpc

pytestmark = pytest.mark.softhsm
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """One installation for the tests that start and stop a daemon of their own."""
    deployment = Deployment.create(tmp_path_factory.mktemp("life"))
    yield deployment
    deployment.close()


@pytest.fixture
def fresh(site):
    """The installation, not started, put back afterwards."""
    pristine = site.config.read_text()
    certificates = {path: path.read_bytes() for path in (site.directory / "pki").iterdir()}
    yield site
    site.close()
    site.config.write_text(pristine)
    for path, data in certificates.items():
        path.write_bytes(data)


@pytest.fixture
def daemon(fresh):
    """The daemon of the installation, started."""
    with fresh.running():
        yield fresh


def limited(site, settings: str) -> None:
    site.edit(r"^\[store\]", f"{settings}\n[store]")


def http(site, path: str) -> tuple[int, str]:
    address = read_address(site.directory / "run" / "metrics_address")
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def entries(channel: grpc.Channel, count: int = 10) -> list[dict]:
    request = audit_pb2.ListEntriesRequest(descending=True, page_size=count)
    page = audit_pb2_grpc.AuditServiceStub(channel).ListEntries(request, timeout=TIMEOUT)
    return [json.loads(entry.data) for entry in page.entries]


# ------------------------------------------------------------------------------------------- start


def test_the_ready_line_and_the_address_file_say_where_it_listens(daemon):
    run = daemon.directory / "run"
    assert read_address(run / "address") == daemon.address
    assert not daemon.address.endswith(":0")
    mode = (run / "admin.sock").stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    assert daemon.stop() == 0
    assert not (run / "address").exists()
    assert not (run / "admin.sock").exists()


def test_a_second_daemon_on_the_same_log_is_refused(daemon):
    second = greatseald("serve", "--config", daemon.config)
    assert second.returncode == 5
    assert str(daemon.database) in second.stderr
    with connected(daemon, pipeline(daemon)) as channel:
        assert sign(channel).signature
    assert read_address(daemon.directory / "run" / "address") == daemon.address


def test_a_port_in_use_is_refused_and_never_shared(fresh):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = greatseald("serve", "--config", fresh.config, "--listen", address)
    assert done.returncode == 5
    assert f"cannot listen on {address}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_configuration_with_problems_does_not_start_and_names_them_all(fresh):
    fresh.edit(r"^listen = .*$", 'listen = "nowhere"')
    fresh.edit(r"^origin = .*$", 'origin = "no path"')
    fresh.edit(r"pkcs11:object=release", "pkcs11:obiect=release")
    for done in (greatseald("serve", "--config", fresh.config), greatseald("check-config", fresh.config)):
        assert done.returncode == 2
        assert re.search(r"greatseald\.toml:\d+: server\.listen: must be HOST:PORT", done.stderr)
        assert re.search(r"greatseald\.toml:\d+: log\.origin: must be HOST/NAME", done.stderr)
        assert re.search(r"greatseald\.toml:\d+: keys\[0\]\.uri: .*'obiect'", done.stderr)
    as_json = greatseald("check-config", fresh.config, "--json")
    assert {problem["key"] for problem in json.loads(as_json.stdout)["problems"]} == {
        "server.listen",
        "log.origin",
        "keys[0].uri",
    }


def test_a_metrics_port_in_use_is_refused_before_anything_is_logged(fresh):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        fresh.edit(r"^metrics_listen = .*$", f'metrics_listen = "{address}"')
        done = greatseald("serve", "--config", fresh.config)
    assert done.returncode == 5
    assert f"cannot listen on {address} for metrics" in done.stderr
    assert '"starting"' not in done.stderr


def test_metrics_beyond_loopback_do_not_start(fresh):
    fresh.edit(r"^metrics_listen = .*$", 'metrics_listen = "0.0.0.0:0"')
    done = greatseald("serve", "--config", fresh.config)
    assert done.returncode == 2
    assert "server.metrics_listen: must be on loopback" in done.stderr


def test_a_run_directory_that_others_can_enter_is_refused(fresh):
    run = fresh.directory / "run"
    run.chmod(0o755)
    try:
        done = greatseald("serve", "--config", fresh.config)
    finally:
        run.chmod(0o700)
    assert done.returncode == 5
    assert f"chmod 700 {run}" in done.stderr


def test_no_secret_reaches_the_log_the_arguments_or_a_core_file(daemon):
    with connected(daemon, pipeline(daemon)) as channel:
        sign(channel)
    pin = (daemon.directory / "tokens" / "soft" / "pin").read_text().strip()
    assert pin not in daemon.stderr
    assert daemon.process is not None
    front = Path("/proc") / str(daemon.process.pid)
    children = [
        Path("/proc") / pid for task in (front / "task").iterdir() for pid in (task / "children").read_text().split()
    ]
    assert children  # the token's host
    for process in (front, *children):
        assert re.search(r"Max core file size\s+0\s+0", (process / "limits").read_text())
        for name in ("cmdline", "environ"):
            assert pin.encode() not in (process / name).read_bytes()


# ------------------------------------------------------------------------------------------ reload


def test_an_invalid_file_keeps_the_old_settings_and_says_why(daemon):
    daemon.edit(r"^listen = .*$", 'lisen = "127.0.0.1:0"')
    daemon.append('[[deny]]\ncomment = "denies nobody"')
    before = len(logged(daemon, "reload_refused"))
    reload(daemon, "reload_refused")
    wait_for(lambda: len(logged(daemon, "reload_refused")) >= before + 3)
    problems = "\n".join(str(record["problem"]) for record in logged(daemon, "reload_refused"))
    assert "did you mean 'listen'?" in problems
    assert "server.listen: is required" in problems
    assert "deny[0]: denies nobody" in problems
    with connected(daemon, pipeline(daemon)) as channel:
        assert sign(channel).signature


def test_a_rule_takes_effect_on_open_connections_and_is_in_the_log(daemon):
    with connected(daemon, pipeline(daemon)) as channel:
        assert sign(channel).signature
        daemon.edit(r'^actions = \["sign", "signBlind", "readKeys"\]$', 'actions = ["readKeys"]')
        reload(daemon)
        with pytest.raises(grpc.RpcError) as caught:
            sign(channel)
        assert reason_of(caught.value) == (Code.PERMISSION_DENIED, "ACCESS_DENIED")
        kinds = [(entry["t"], entry.get("what", "")) for entry in entries(channel)]
        assert ("admin", "reload") in kinds


def test_what_waits_for_a_restart_is_named(daemon):
    daemon.edit(r"^\[store\]", 'max_concurrent_calls = 9\nlog_level = "debug"\n[store]')
    daemon.edit(r"^operation_timeout = 30", "operation_timeout = 29")
    (record,) = reload(daemon)
    notes = "\n".join(record["notes"])
    assert "server.max_concurrent_calls has changed and waits for a restart" in notes
    assert "tokens: soft.operation_timeout has changed and waits for a restart" in notes
    assert "log_level is debug" in notes
    assert "server.log_level" not in notes


def test_the_admin_socket_reloads_and_backs_up(daemon, tmp_path):
    with grpc.insecure_channel(f"unix:{daemon.directory / 'run' / 'admin.sock'}") as channel:
        admin = admin_pb2_grpc.AdminServiceStub(channel)
        assert any("in force" in note for note in admin.Reload(admin_pb2.ReloadRequest(), timeout=TIMEOUT).notes)
        copy = tmp_path / "copy.db"
        answer = admin.Backup(admin_pb2.BackupRequest(path=str(copy)), timeout=TIMEOUT)
        assert copy.stat().st_size == answer.bytes > 0
        assert answer.log_size > 0
        with pytest.raises(grpc.RpcError) as caught:
            admin.Backup(admin_pb2.BackupRequest(path=str(copy)), timeout=TIMEOUT)
        assert reason_of(caught.value)[1] == "ARGUMENT_INVALID"
        with pytest.raises(grpc.RpcError) as caught:
            admin.Backup(admin_pb2.BackupRequest(path="relative.db"), timeout=TIMEOUT)
        assert "absolute" in (caught.value.details() or "")
        daemon.append('[[deny]]\ncomment = "denies nobody"')
        with pytest.raises(grpc.RpcError) as caught:
            admin.Reload(admin_pb2.ReloadRequest(), timeout=TIMEOUT)
        assert "denies nobody" in (caught.value.details() or "")


# ------------------------------------------------------------------------------------ certificates


def replace_server(site, ca: Ca) -> None:
    cert, key = ca.issue(x509.DNSName("localhost"), server=True)
    for name, data in (("server.key", key), ("server.pem", cert)):
        part = site.directory / "pki" / f"{name}.new"
        part.write_bytes(data)
        part.chmod(0o600)
        part.replace(site.directory / "pki" / name)


def test_a_new_server_certificate_is_served_without_a_restart(daemon):
    ca = Ca.foreign("New server CA")
    with connected(daemon, pipeline(daemon)) as old:
        who_am_i(old)
        replace_server(daemon, ca)
        wait_for(lambda: reachable(daemon, roots=ca.pem()))
        assert who_am_i(old).client  # what is connected stays connected
    assert not reachable(daemon)


def reachable(site, *, roots: bytes | None = None, identity=None) -> bool:
    with connected(site, identity or pipeline(site), roots=roots) as channel:
        try:
            who_am_i(channel)
        except grpc.RpcError:
            return False
        return True


def test_certificates_that_do_not_fit_keep_the_old_ones(daemon):
    pki = daemon.directory / "pki"
    (pki / "server.pem").write_bytes(Ca.foreign().issue(x509.DNSName("localhost"), server=True)[0])
    time.sleep(1.1)  # files are looked at once a second
    assert reachable(daemon)
    wait_for(lambda: logged(daemon, "certificates_unusable"))
    assert "is not the certificate of the key" in str(logged(daemon, "certificates_unusable")[0]["why"])
    (pki / "server.pem").unlink()
    time.sleep(1.1)
    assert reachable(daemon)


def test_a_client_ca_that_was_replaced_ends_old_connections_and_admits_the_new(fresh):
    limited(fresh, "max_connection_age = 1\nmax_connection_age_grace = 1")
    new = Ca.foreign("New client CA")
    theirs = new.issue(x509.UniformResourceIdentifier("spiffe://greatseal.local/pipeline"))
    roots = (fresh.directory / "pki" / "ca.pem").read_bytes()
    with fresh.running(), connected(fresh, pipeline(fresh)) as old:
        assert sign(old).signature
        assert not reachable(fresh, identity=theirs)
        (fresh.directory / "pki" / "ca.pem").write_bytes(new.pem())
        wait_for(lambda: reachable(fresh, identity=theirs, roots=roots))
        wait_for(lambda: not still_served(old))
        assert not reachable(fresh, roots=roots)


def still_served(channel: grpc.Channel) -> bool:
    try:
        who_am_i(channel)
    except grpc.RpcError:
        return False
    return True


# ------------------------------------------------------------------------------------------ limits


def test_what_is_too_much_is_shed_with_a_time_to_come_back(fresh):
    limited(fresh, "max_concurrent_calls = 2")
    outcomes: list[tuple] = []

    def worker(channel: grpc.Channel) -> None:
        stub = signing_pb2_grpc.SigningServiceStub(channel)
        items = [signing_pb2.BatchItem(digest=digest_request(str(number))) for number in range(200)]
        try:
            stub.BatchSign(signing_pb2.BatchSignRequest(items=items), timeout=60)
            outcomes.append(("ok",))
        except grpc.RpcError as error:
            outcomes.append(reason_of(error))

    with fresh.running(), connected(fresh, pipeline(fresh)) as channel:
        threads = [threading.Thread(target=worker, args=(channel,)) for _ in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(outcomes) == {("ok",), (Code.UNAVAILABLE, "OVERLOADED")}
        status, text = http(fresh, "/metrics")
    assert status == 200
    assert re.search(r'^greatseald_refusals_total\{reason="OVERLOADED"\} [1-9]', text, re.MULTILINE)


def test_items_beyond_the_limit_are_shed_before_anything_is_logged(fresh):
    limited(fresh, "max_waiting_items = 100")
    outcomes: list[tuple] = []

    def worker(channel: grpc.Channel) -> None:
        items = [signing_pb2.BatchItem(digest=digest_request(str(number))) for number in range(90)]
        try:
            signing_pb2_grpc.SigningServiceStub(channel).BatchSign(
                signing_pb2.BatchSignRequest(items=items), timeout=60
            )
            outcomes.append(("ok",))
        except grpc.RpcError as error:
            outcomes.append(reason_of(error))

    with fresh.running(), connected(fresh, pipeline(fresh)) as channel:
        threads = [threading.Thread(target=worker, args=(channel,)) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        _, text = http(fresh, "/metrics")
    assert (Code.UNAVAILABLE, "OVERLOADED") in outcomes
    accepted = outcomes.count(("ok",))
    assert accepted >= 1
    # The log has the daemon's start, the token's and two entries for each item of an accepted batch: nothing of the rest.
    before = int(logged(fresh, "starting")[0]["previous_size"])
    assert f"\ngreatseald_log_entries {float(before + 2 + 2 * 90 * accepted)}\n" in text


def test_a_connection_that_never_finishes_its_handshake_is_cut_off(fresh):
    limited(fresh, "handshake_timeout = 1")
    with fresh.running():
        host, port = fresh.address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=15) as silent:
            assert silent.recv(1) == b""
        assert reachable(fresh)


def test_junk_on_the_port_harms_nobody(daemon):
    host, port = daemon.address.rsplit(":", 1)
    for data in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\xff\xff" + b"\0" * 70000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ):
        with socket.create_connection((host, int(port)), timeout=15) as junk:
            try:
                junk.sendall(data)
                junk.recv(100)
            except OSError:
                pass
    assert reachable(daemon)


# --------------------------------------------------------------------------------------- operators


def test_metrics_and_probes_answer_without_a_certificate(daemon):
    with connected(daemon, pipeline(daemon)) as channel:
        sign(channel)
        with pytest.raises(grpc.RpcError):
            sign(channel, key="keys/release")
    assert http(daemon, "/healthz") == (200, "ok\n")
    assert http(daemon, "/readyz") == (200, "serving\n")
    assert http(daemon, "/elsewhere")[0] == 404
    status, text = http(daemon, "/metrics")
    assert status == 200
    for line in (
        r'greatseald_signatures_total\{algorithm="ecdsa-p256-sha256",key="scratch"\} 1\.0',
        r'greatseald_refusals_total\{reason="ACCESS_DENIED"\} 1\.0',
        r'greatseald_token_state\{state="ready",token="soft"\} 1\.0',
        r"greatseald_serving 1\.0",
        r"greatseald_open_intents 0\.0",
        r'greatseald_rpc_seconds_count\{code="OK",method="SignDigest"\} 1\.0',
    ):
        assert re.search(f"^{line}$", text, re.MULTILINE), line


def test_the_probe_server_survives_what_is_no_http(daemon):
    host, port = read_address(daemon.directory / "run" / "metrics_address").rsplit(":", 1)
    for data in (b"\xff" * 10_000, b"POST /metrics HTTP/1.1\r\n\r\n", b""):
        with socket.create_connection((host, int(port)), timeout=15) as raw:
            raw.sendall(data)
            raw.shutdown(socket.SHUT_WR)
            try:
                answer = raw.recv(100)
            except ConnectionResetError:
                answer = b""
            assert answer == b"" or b"405" in answer
    assert http(daemon, "/healthz")[0] == 200


# --------------------------------------------------------------------------------------------- end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_drains_and_leaves_no_intent_open(fresh, number):
    acknowledged: list[str] = []
    endings: list[grpc.StatusCode] = []

    def worker() -> None:
        with connected(fresh, pipeline(fresh)) as channel:
            while True:
                request_id = str(uuid.uuid4())
                try:
                    sign(channel, request_id=request_id)
                except grpc.RpcError as error:
                    endings.append(error.code())
                    return
                acknowledged.append(request_id)

    fresh.start()
    threads = [threading.Thread(target=worker) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(acknowledged) > 100)
    fresh.signal(number)
    assert fresh.wait_exit() == 0
    for thread in threads:
        thread.join()
    assert set(endings) == {Code.UNAVAILABLE}
    (stopped,) = logged(fresh, "stopped")
    with fresh.running(), connected(fresh, pipeline(fresh)) as channel:
        (starting,) = logged(fresh, "starting")
        assert starting["recovered_intents"] == 0
        assert starting["previous_size"] == stopped["log_size"]
        audit = audit_pb2_grpc.AuditServiceStub(channel)
        requests = {}
        outcomes = set()
        token = ""
        while True:
            page = audit.ListEntries(audit_pb2.ListEntriesRequest(page_size=1000, page_token=token), timeout=TIMEOUT)
            for entry in page.entries:
                value = json.loads(entry.data)
                if value["t"] == "intent":
                    requests[value["req"]] = entry.index
                elif value["t"] == "outcome":
                    outcomes.add(value["intent"]["index"])
                elif value.get("what") == "stop":
                    last_stop = value
            token = page.next_page_token
            if not token:
                break
        assert last_stop["info"]["signal"] == number.name
        assert {requests[request_id] for request_id in acknowledged} <= outcomes
        assert set(requests.values()) == outcomes


def test_health_says_not_serving_to_those_who_watch_when_the_daemon_drains(fresh):
    fresh.start()
    seen: list[bytes] = []
    with connected(fresh, pipeline(fresh)) as channel:
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=60)
        seen.append(next(watch))
        fresh.signal(signal.SIGTERM)
        seen += list(watch)
    assert seen == [b"\x08\x01", b"\x08\x02"]
    assert fresh.wait_exit() == 0


def test_a_second_signal_ends_at_once_and_the_next_start_closes_what_was_open(fresh):
    fresh.start()
    assert fresh.process is not None
    (host,) = [
        int(pid)
        for task in (Path("/proc") / str(fresh.process.pid) / "task").iterdir()
        for pid in (task / "children").read_text().split()
    ]
    endings: list[grpc.StatusCode] = []

    def worker() -> None:
        with connected(fresh, pipeline(fresh)) as channel:
            try:
                sign(channel)
            except grpc.RpcError as error:
                endings.append(error.code())

    os.kill(host, signal.SIGSTOP)
    thread = threading.Thread(target=worker)
    thread.start()
    wait_for(lambda: "\ngreatseald_open_intents 1.0\n" in http(fresh, "/metrics")[1])
    fresh.signal(signal.SIGTERM)
    wait_for(lambda: logged(fresh, "draining"))
    began = time.monotonic()
    fresh.signal(signal.SIGTERM)
    assert fresh.wait_exit() == 1
    assert time.monotonic() - began < 10  # not the drain's time, nor the token's
    thread.join()
    assert endings == [Code.UNAVAILABLE]
    assert "greatseald: stopped at once by a second SIGTERM" in fresh.stderr
    wait_for(lambda: not (Path("/proc") / str(host)).exists())
    with fresh.running():
        assert logged(fresh, "starting")[0]["recovered_intents"] == 1


def test_a_daemon_that_was_killed_leaves_nothing_in_the_way_of_the_next(fresh):
    fresh.start()
    fresh.kill()
    assert (fresh.directory / "run" / "admin.sock").exists()
    with fresh.running(), connected(fresh, pipeline(fresh)) as channel:
        assert read_address(fresh.directory / "run" / "address") == fresh.address
        assert sign(channel).signature
        with grpc.insecure_channel(f"unix:{fresh.directory / 'run' / 'admin.sock'}") as admin:
            assert admin_pb2_grpc.AdminServiceStub(admin).Reload(admin_pb2.ReloadRequest(), timeout=TIMEOUT).notes
