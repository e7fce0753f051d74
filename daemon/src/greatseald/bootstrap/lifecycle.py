"""The life of the process: start, serve, reload, drain, end.

- SIGTERM, SIGINT: stop taking calls, finish those under way, record `stop`, exit 0; again: at once.
- SIGHUP: read the configuration again; a file with errors keeps the old settings.
- A broken log: the reason on the first line of stderr, exit 1 at once; a restart recovers.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, Final

import structlog
import uvloop

from greatseald.adapters import logs, service_manager
from greatseald.adapters.metrics import CONTENT_TYPE, PrometheusMetrics
from greatseald.adapters.status_http import StatusServer
from greatseald.app.audit import AuditLog
from greatseald.app.housekeeping import follow_others, keep_house
from greatseald.app.indexing import Indexing
from greatseald.app.outbox import Outbox
from greatseald.app.recovery import LogRefused
from greatseald.app.retention import PruneBegun, Retention
from greatseald.bootstrap import compose
from greatseald.bootstrap.gauges import watch_state
from greatseald.bootstrap.outside import Outside, build_outside
from greatseald.bootstrap.process import die, forbid_core_dumps
from greatseald.bootstrap.reload import Reloader
from greatseald.bootstrap.retention import build_retention
from greatseald.bootstrap.tiles import Tiles
from greatseald.bootstrap.tokens import TokenWatch
from greatseald.config import FileProblem, Settings, split_endpoint
from greatseald.domain.errors import ArgumentInvalid, GreatsealError
from greatseald.ports.anchor import AnchorError
from greatseald.ports.halts import HaltsUnusable
from greatseald.ports.sinks import SinkError
from greatseald.ports.store import StoreError
from greatseald.ports.withdrawals import WithdrawalsUnusable
from greatseald.rpc.admin import AdminService
from greatseald.rpc.gate import Gate
from greatseald.rpc.health import HealthService
from greatseald.rpc.server import AdminServer, CannotListenError, NetworkServer, private_directory
from greatseald.rpc.tls import ServerCertificates

_log = structlog.get_logger("greatseald.daemon")

_HEALTH_SECONDS: Final = 1.0


class StartRefused(Exception):
    """The daemon cannot start. `exit_code` is that of the command; the message says why and what to do."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def serve(config: Path, listen: str) -> int:
    """Run the daemon until a signal ends it; return its exit code. `listen` overrides the configuration.

    Raises:
        ConfigError: the configuration has problems, all of them listed.
        StartRefused: something that it names cannot be used.
    """
    environment = dict(os.environ)
    if listen:
        environment["GREATSEALD_SERVER_LISTEN"] = listen
    settings = compose.read_settings(config, environment)
    forbid_core_dumps()
    logs.configure(settings.server.log_level)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_Daemon(settings, environment).run())


class _Daemon:
    """One run of the daemon."""

    def __init__(self, settings: Settings, environment: Mapping[str, str]) -> None:
        self.settings = settings
        self.environment = environment
        self.metrics = PrometheusMetrics(compose.VERSION)
        self.stopping = asyncio.Event()
        self.stop_reason = ""
        self.tasks: set[asyncio.Task[Any]] = set()
        self.tailers: list[asyncio.Task[Any]] = []
        self.tiles: Tiles | None = None
        self.indexing: Indexing | None = None
        self.following: asyncio.Task[Any] | None = None
        self.why_not_serving = "starting"

    async def run(self) -> int:
        """Start, serve until told to stop, end."""
        settings = self.settings
        certificates, opened, outboxes = self._open()
        self._remove_addresses()  # what a killed daemon left would lead clients astray
        log = opened.log
        watch = TokenWatch(settings, self.metrics, self._token_broke)
        try:
            outside = build_outside(settings, opened, self.metrics)
            core = compose.build_core(settings, log, self.metrics, dict(watch.tokens), outside.witnessing)
        except (HaltsUnusable, WithdrawalsUnusable, FileProblem) as error:
            opened.close()
            raise StartRefused(5, str(error)) from error
        self.health = HealthService(core.tokens, core.access)
        watch.on_change = self.health.tokens_changed
        gate = compose.build_gate(settings, core.access, self.metrics)
        self.metrics.watch_in_flight(lambda: gate.in_flight)
        self.metrics.watch_serving(lambda: self.health.serving)
        watch_state(self.metrics.state, settings, opened, core, certificates)
        self.indexing = compose.build_indexing(settings, opened)
        if (index := self.indexing) is not None:
            self.metrics.state.watch_value("greatseald_index_behind_entries", lambda: index.behind)
        methods = compose.build_methods(
            settings, core, log, outside.witnessing, outside.stamps, gate, self.health, self.metrics, self.indexing
        )
        server = NetworkServer(settings.server, certificates, methods)
        reloader = Reloader(settings, self.environment, core, certificates, log, self.metrics)
        self.tiles = Tiles.build(settings, log, core.access, self.metrics.state)
        retention = build_retention(settings.log, opened, outboxes, self.tiles)
        operations = _Operations(opened, reloader, core, retention, self.indexing)
        admin = AdminServer(settings.server.admin_socket, AdminService(operations).handlers())
        status = self._status_server()
        address = await self._listen(server, status, opened)

        log.start()
        self._listen_to_signals(reloader)
        await self._open_for_entries(opened, outside, address)
        await self._unless_stopped(watch.start(core.keys, log, self._spawn))
        try:
            await admin.start()
        except CannotListenError as error:
            die(f"cannot start: {error}", exit_code=5)
        self._begin_beside(core, log, outside)
        self._follow_log(opened, outboxes, retention)
        if not self.stopping.is_set():
            self._check_health(opened)
            self._spawn(self._watch_health(opened))
            await server.start()
            self._announce(address)
            gc.collect()
            gc.freeze()

        await self.stopping.wait()
        await self._drain(server, gate, core, opened, watch)
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await admin.stop()
        if status is not None:
            await status.stop()
        if self.tiles is not None:
            await self.tiles.stop()
        outside.close()
        self._remove_addresses()
        return 0

    # ------------------------------------------------------------------------------------ start

    def _open(self) -> tuple[ServerCertificates, compose.OpenLog, list[Outbox]]:
        settings = self.settings
        try:
            private_directory(settings.server.run_dir)
            certificates = ServerCertificates(settings.server)
            opened = compose.open_log(settings, self.metrics, self._log_broke)
        except LogRefused as error:
            raise StartRefused(6, str(error)) from error
        except (StoreError, AnchorError, CannotListenError, FileProblem) as error:
            raise StartRefused(5, str(error)) from error
        try:
            return certificates, opened, compose.build_outboxes(settings, opened.log, self.metrics)
        except (SinkError, FileProblem) as error:
            opened.close()
            raise StartRefused(5, str(error)) from error

    async def _open_for_entries(self, opened: compose.OpenLog, outside: Outside, address: str) -> None:
        """Compare the log with what everybody outside has seen, and record the start."""
        if not opened.shared:
            await self._ask_outside(outside, opened)
        await self._record_start(opened, address)
        if opened.shared:  # only now can a checkpoint be signed, which witnesses want to see
            await self._ask_outside(outside, opened)

    async def _record_start(self, opened: compose.OpenLog, address: str) -> None:
        info: dict[str, str | int] = {
            "version": compose.VERSION,
            "config_sha256": self.settings.digest(),
            "rules_sha256": self.settings.rules().digest,
            "previous_size": opened.size_before,
            "previous_root": opened.root_before.hex(),
            "recovered_intents": opened.recovered,
        }
        await opened.log.record_admin("start", **info)
        if opened.shared:
            # Only now: what a server showed when it was connected to is certain once a commit of our own is.
            await opened.log.checkpoint()
            self.following = self._spawn(follow_others(opened.log))
        for warning in self.settings.warnings:
            _log.warning("configuration", warning=warning)
        _log.info("starting", address=address, instance=opened.log.instance, pid=os.getpid(), **info)

    async def _ask_outside(self, outside: Outside, opened: compose.OpenLog) -> None:
        """Compare the log with what everybody outside has seen; whoever disagrees ends the start, before anything is signed."""
        await self._unless_stopped(outside.ask_all())
        if opened.log.standing.against:
            die(f"cannot start: {opened.log.standing.why}", exit_code=6)

    def _announce(self, address: str) -> None:
        host, port = split_endpoint(address)
        reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host)  # noqa: S104 - compared, not bound
        _write_atomically(self._address_file, (f"{reachable}:{port}" if reachable else address) + "\n")
        print(f"greatseald ready: listening on {address}", file=sys.stderr, flush=True)  # noqa: T201 - the promise of `serve`
        service_manager.notify("READY=1", f"STATUS=listening on {address}")

    def _remove_addresses(self) -> None:
        for name in ("address", "metrics_address", "tiles_address"):
            (self.settings.server.run_dir / name).unlink(missing_ok=True)

    @property
    def _address_file(self) -> Path:
        return self.settings.server.run_dir / "address"

    def _status_server(self) -> StatusServer | None:
        listen = self.settings.server.metrics_listen
        if not listen:
            return None
        return StatusServer(
            listen,
            metrics=self.metrics.text,
            content_type=CONTENT_TYPE,
            ready=lambda: (self.health.serving, self.why_not_serving or "serving"),
        )

    async def _start_status(self, status: StatusServer) -> str:
        try:
            address = await status.start()
        except OSError as error:
            message = f"cannot listen on {self.settings.server.metrics_listen} for metrics: {error.strerror}"
            raise CannotListenError(message) from error
        _write_atomically(self.settings.server.run_dir / "metrics_address", address + "\n")
        return address

    def _begin_beside(self, core: compose.Core, log: AuditLog, outside: Outside) -> None:
        """Begin what is done now and then beside the requests, and who is asked outside."""
        days = self.settings.log.request_retention_days
        self._spawn(keep_house(core.access, log, request_retention_days=days))
        for work in outside.works():
            self._spawn(work)

    def _follow_log(self, opened: compose.OpenLog, outboxes: list[Outbox], retention: Retention) -> None:
        """Begin what works behind the log, off the release path."""
        tailers = [outbox.run() for outbox in outboxes]
        if not opened.shared:
            tailers.append(retention.run())
        if self.tiles is not None:
            tailers.append(self.tiles.publishing.run())
        if self.indexing is not None:
            tailers.append(self.indexing.run())
        self.tailers = [self._spawn(tailer) for tailer in tailers]

    async def _listen(self, server: NetworkServer, status: StatusServer | None, opened: compose.OpenLog) -> str:
        """Take every address; the network's is served later. Return it."""
        try:
            address = server.bind()
            if status is not None:
                _log.info("metrics_listening", address=await self._start_status(status))
            if self.tiles is not None:
                await self._start_tiles(self.tiles)
        except CannotListenError as error:
            opened.close()
            raise StartRefused(5, str(error)) from error
        return address

    async def _start_tiles(self, tiles: Tiles) -> None:
        try:
            address = await tiles.listen()
        except OSError as error:
            raise CannotListenError(f"cannot listen for [log.tiles]: {error.strerror}") from error
        if address:
            _write_atomically(self.settings.server.run_dir / "tiles_address", address + "\n")

    # ------------------------------------------------------------------------------ while it runs

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait for a step of the start, but no longer than until a signal asks to stop."""
        step = asyncio.get_running_loop().create_task(work)
        stopped = asyncio.get_running_loop().create_task(self.stopping.wait())
        await asyncio.wait((step, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if step.done():
            step.result()
        else:
            step.cancel()

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something in the background whose failure ends the daemon: a silent gap is worse than a restart."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            die(f"a background task failed: {type(error).__name__}: {error}", error=error)

    def _log_broke(self, error: BaseException) -> None:
        """Called from the writer's thread: nothing more may leave this process."""
        die(f"the audit log cannot be written, so nothing more is signed: {error}", error=error)

    def _token_broke(self, error: BaseException) -> None:
        die(f"the supervisor of a token failed: {type(error).__name__}: {error}", error=error)

    def _listen_to_signals(self, reloader: Reloader) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self._reload(reloader)))

    def _stop(self, number: signal.Signals) -> None:
        if self.stopping.is_set():
            die(
                f"stopped at once by a second {number.name}; what was under way is closed at the next start",
                exit_code=1,
            )
        self.stop_reason = number.name
        self.stopping.set()

    async def _reload(self, reloader: Reloader) -> None:
        service_manager.reloading()
        try:
            await reloader.reload()
        except GreatsealError:
            pass  # the reloader has said why in the log
        except Exception:  # noqa: BLE001 - a fault of the reload must not end the signing
            _log.exception("reload_failed", kept="the settings in force")
        finally:
            service_manager.notify("READY=1")

    async def _watch_health(self, opened: compose.OpenLog) -> None:
        while True:
            await asyncio.sleep(_HEALTH_SECONDS)
            self._check_health(opened)

    def _check_health(self, opened: compose.OpenLog) -> None:
        try:
            opened.log.require_writable()
        except GreatsealError as error:
            why = error.message
        else:
            why = ""
        if self.stopping.is_set():
            why = "stopping"
        if why != self.why_not_serving and why:
            _log.error("not_serving", why=why)
        self.why_not_serving = why
        self.health.set_serving(not why)

    # -------------------------------------------------------------------------------------- end

    async def _drain(
        self, server: NetworkServer, gate: Gate, core: compose.Core, opened: compose.OpenLog, watch: TokenWatch
    ) -> None:
        timeout = self.settings.server.drain_timeout
        service_manager.notify("STOPPING=1", f"STATUS=draining after {self.stop_reason}")
        until = time.monotonic() + timeout
        _log.info("draining", signal=self.stop_reason, in_flight=gate.in_flight, timeout=timeout)
        self.why_not_serving = "stopping"
        self.health.close()
        await gate.drain(timeout)
        await server.stop(max(0.0, until - time.monotonic()))
        finished = True
        try:
            async with asyncio.timeout(max(1.0, until - time.monotonic())):
                await core.signing.drain()
        except TimeoutError:
            finished = False
            _log.warning("drain_timed_out", open_intents=opened.log.open_count)
        try:
            await core.access.summarise()
            await opened.log.record_admin("stop", signal=self.stop_reason, drained=str(finished).lower())
            await opened.log.checkpoint()  # so that the anchor knows of the last entry: a log cut there is refused
        except GreatsealError as error:
            _log.error("stop_not_recorded", why=error.message)
        for tailer in self.tailers:
            tailer.cancel()  # what it has not delivered, the next start delivers
        await asyncio.gather(*self.tailers, return_exceptions=True)
        if self.indexing is not None:
            await asyncio.to_thread(self.indexing.close)
        if self.following is not None:
            self.following.cancel()  # it reads the store, which is about to close
        await asyncio.to_thread(opened.log.stop)
        await watch.stop()
        core.verifiers.shutdown(wait=False, cancel_futures=True)
        opened.close()
        _log.info("stopped", log_size=opened.log.size)


class _Operations:
    """`rpc.admin.Operations` of this daemon."""

    def __init__(
        self,
        opened: compose.OpenLog,
        reloader: Reloader,
        core: compose.Core,
        retention: Retention,
        indexing: Indexing | None,
    ) -> None:
        self._opened = opened
        self._indexing = indexing
        self._retention = retention
        self._keys = core.keys
        self._reloader = reloader

    async def backup(self, path: str) -> tuple[int, int]:
        """Copy the store. The log goes on: the copy has at least the entries that it has now."""
        target = Path(path)
        if not target.is_absolute():
            raise ArgumentInvalid("path must be absolute", field="path")
        size = self._opened.log.size
        try:
            await asyncio.to_thread(self._opened.store.backup, path)
        except StoreError as error:
            raise ArgumentInvalid(f"no backup was made: {error}", field="path") from error
        await self._opened.log.record_admin("backup", path=path[:1024], size=size)
        return size, await asyncio.to_thread(lambda: target.stat().st_size)

    async def reload(self) -> list[str]:
        """As SIGHUP does."""
        service_manager.reloading()
        try:
            return await self._reloader.reload()
        finally:
            service_manager.notify("READY=1")

    async def release_key(self, name: str, reason: str) -> tuple[str, str]:
        """Put a halted key back to work."""
        return await self._keys.release(name, reason, self._opened.log)

    async def reindex(self) -> int:
        """Build the search index anew; return how many entries there are to read."""
        if self._indexing is None:
            raise ArgumentInvalid("there is no search index: [log] index is false", field="index")
        self._indexing.rebuild()
        return self._indexing.behind

    async def prune(self, *, before: int | None, older_than: float | None, directory: str, note: str) -> PruneBegun:
        """Drop entries that an export holds."""
        return await self._retention.prune(before=before, older_than=older_than, directory=directory, note=note)


def _write_atomically(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text)
    part.replace(path)
