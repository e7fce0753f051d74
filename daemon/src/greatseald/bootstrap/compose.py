"""Choosing the adapters that the configuration means and putting the parts together.

The order matters: the store first, because its lock tells a second daemon; then the checks of the
log, because nothing may be served over a log that is not ours; then everything else.
"""

from __future__ import annotations

import ssl
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Final

from greatseal.checkpoint import Checkpoint
from greatseal.note import NoteSigner
from greatseald.adapters.anchor import FileAnchor
from greatseald.adapters.authn.certificate import CertificateReader
from greatseald.adapters.disk import DiskReserve
from greatseald.adapters.halts import FileHalts
from greatseald.adapters.metrics import PrometheusMetrics
from greatseald.adapters.search_index import SqliteSearchIndex
from greatseald.adapters.sightings import FileSightings
from greatseald.adapters.sinks.cursor import FileCursor
from greatseald.adapters.sinks.opening import FORMATS, open_sink
from greatseald.adapters.store.opening import is_shared, open_store, sqlite_path
from greatseald.adapters.store.options import StoreOptions
from greatseald.adapters.tokens.uris import parse_uri
from greatseald.adapters.tokens.yubikey.slots import SCHEME, parse_slot
from greatseald.adapters.withdrawals import FileWithdrawals
from greatseald.app.access import Access
from greatseald.app.admission import Admission
from greatseald.app.audit import AuditLog
from greatseald.app.indexing import Indexing
from greatseald.app.keys import KeyRing
from greatseald.app.outbox import Outbox
from greatseald.app.placement import Placement
from greatseald.app.publishing import check_published
from greatseald.app.recovery import (
    advance_anchor,
    check_anchor,
    check_sightings,
    close_dead_intents,
    open_tree,
)
from greatseald.app.sign import Signing
from greatseald.app.tokens import TokenControl
from greatseald.app.witnessing import Witnessing
from greatseald.app.writer import LogWriter
from greatseald.bootstrap.tiles import tile_directory
from greatseald.config import FileProblem, Settings, load, read_head_mac_key, read_log_key, read_store_password
from greatseald.domain.heads import HeadSeal
from greatseald.ports.stamps import Stamps
from greatseald.ports.store import Store
from greatseald.ports.tokens import Token
from greatseald.rpc.audit import AuditService
from greatseald.rpc.gate import Gate, Limits
from greatseald.rpc.health import HealthService
from greatseald.rpc.identity import IdentityService
from greatseald.rpc.keys import KeyService
from greatseald.rpc.server import Methods
from greatseald.rpc.signing import SigningService
from greatseald.rpc.tokens import TokenService

VERSION: Final = installed_version("greatseald")
_VERIFIERS: Final = 2
"""Threads that verify signatures: cryptography releases the GIL, and two are as many as pay (performance.md)."""


@dataclass(slots=True)
class OpenLog:
    """The audit log of this boot with what stands behind it."""

    log: AuditLog
    store: Store
    anchor: FileAnchor
    reserve: DiskReserve
    sightings: FileSightings
    recovered: int
    size_before: int
    root_before: bytes
    shared: bool

    def close(self) -> None:
        """Release store and anchor, after the log has stopped."""
        self.store.close()
        self.anchor.close()


@dataclass(slots=True)
class Core:
    """What the services stand on."""

    access: Access
    keys: KeyRing
    tokens: dict[str, Token]
    control: TokenControl
    signing: Signing
    verifiers: ThreadPoolExecutor


def read_settings(config: Path, environment: Mapping[str, str]) -> Settings:
    """Read the configuration as the daemon will use it.

    Raises:
        ConfigError: with every problem found.
    """
    return load(config, environment, _check_uri)


def _check_uri(text: str, names_object: bool) -> None:
    if text.lower().startswith(SCHEME):
        parse_slot(text)
        return
    uri = parse_uri(text)
    if names_object and not uri.names_object:
        raise ValueError("must name the key in its token: add object=LABEL or id=%01")
    if not names_object and not uri.names_token:
        raise ValueError("must name the token: token=LABEL, serial=NUMBER or slot-id=NUMBER")


def store_options(settings: Settings) -> StoreOptions:
    """Return what `[store]` says beside the URL, the password read from where it lies.

    Raises:
        FileProblem: the password cannot be read.
    """
    table = settings.store
    return StoreOptions(
        password=read_store_password(table),
        connect_timeout=table.connect_timeout,
        statement_timeout=table.statement_timeout,
        lock_timeout=table.lock_timeout,
        idle_timeout=table.idle_timeout,
        readers=table.readers,
        wait_for_server=table.wait_for_server,
    )


def open_log(settings: Settings, metrics: PrometheusMetrics, on_broken: Callable[[BaseException], None]) -> OpenLog:
    """Open the store, prove that the log is ours and whole, and close what a dead boot left open.

    Raises:
        StoreUnusable, AnchorError, LogRefused: each says what disagrees with what, and what to do.
    """
    boot = uuid.uuid4()
    table = settings.log
    seal = HeadSeal(read_head_mac_key(table.head_mac_key_file))
    signer = NoteSigner(table.origin, read_log_key(table.key_file))
    sightings = FileSightings(table.sightings)
    shared = is_shared(settings.store.url)
    store = open_store(settings.store.url, boot.bytes, store_options(settings))
    reserve = _reserve(settings)
    reserve.shortage()  # on a full volume this lets the reserve go, so that recovery can write
    try:
        anchor = FileAnchor(str(table.anchor))
        try:
            tree = open_tree(store, seal)
            size_before, root_before = tree.size, tree.root()
            anchored = check_anchor(tree, anchor)
            check_sightings(tree, sightings, signer.verifier)
            if (place := tile_directory(table)) is not None:
                check_published(tree, place)
            recovered = close_dead_intents(
                store, tree, seal, boot=boot.bytes, instance=str(boot), origin=table.origin, clock=time.time
            )
            if not shared:
                advance_anchor(anchor, tree)
                anchored = tree.size
            writer = LogWriter(
                store=store,
                tree=tree,
                seal=seal,
                sign_head=lambda size, root: Checkpoint(table.origin, size, root).sign(signer),
                anchor=anchor,
                anchored=anchored,
                boot=boot.bytes,
                clock=time.time,
                metrics=metrics,
                on_broken=on_broken,
                local=not shared,
            )
        except BaseException:
            anchor.close()
            raise
    except BaseException:
        store.close()
        raise
    log = AuditLog(
        writer=writer,
        store=store,
        tree=tree,
        reserve=reserve,
        origin=table.origin,
        instance=str(boot),
        clock=time.time,
        shared=shared,
    )
    return OpenLog(log, store, anchor, reserve, sightings, recovered, size_before, root_before, shared)


def build_core(
    settings: Settings,
    log: AuditLog,
    metrics: PrometheusMetrics,
    tokens: dict[str, Token],
    witnessing: Witnessing | None = None,
) -> Core:
    """Put the use cases together over the log and the tokens; `witnessing` where there are witnesses to wait for.

    Raises:
        HaltsUnusable: which keys are halted cannot be read.
        WithdrawalsUnusable: which tokens are out of service cannot be read.
    """
    access = Access(settings.rules(), log, metrics)
    keys = KeyRing.build(settings.key_settings(), tokens, FileHalts(settings.log.halted_keys))
    control = TokenControl(tokens, FileWithdrawals(settings.log.withdrawn_tokens), log)
    control.recall()
    verifiers = ThreadPoolExecutor(_VERIFIERS, thread_name_prefix="verify")
    signing = Signing(
        admission=Admission(access, keys),
        access=access,
        log=log,
        verifiers=verifiers,
        metrics=metrics,
        max_waiting_items=settings.server.max_waiting_items,
        placement=Placement(keys),
        witnessing=witnessing or None,
    )
    return Core(access, keys, tokens, control, signing, verifiers)


def build_gate(settings: Settings, access: Access, metrics: PrometheusMetrics) -> Gate:
    """Make the way into every method."""
    server = settings.server
    return Gate(
        read_caller=CertificateReader(time.time).caller,
        access=access,
        limits=Limits(server.max_concurrent_calls, server.max_message_bytes, server.default_deadline),
        metrics=metrics,
        call_metrics=metrics,
    )


def build_indexing(settings: Settings, opened: OpenLog) -> Indexing | None:
    """Return what keeps the search index, where one is wanted: beside the database, or beside the anchor."""
    if not settings.log.index:
        return None
    return Indexing(index=SqliteSearchIndex(index_file(settings)), log=opened.log, shortage=opened.reserve.shortage)


def index_file(settings: Settings) -> Path:
    """The file of the search index."""
    place = str(settings.log.anchor) if is_shared(settings.store.url) else sqlite_path(settings.store.url)
    return Path(f"{place}.index")


def build_methods(
    settings: Settings,
    core: Core,
    log: AuditLog,
    witnessing: Witnessing,
    stamps: Stamps,
    gate: Gate,
    health: HealthService,
    metrics: PrometheusMetrics,
    index: Indexing | None = None,
) -> Methods:
    """Return every method of the network's port by its path."""
    reflection: Methods = {}
    if settings.server.reflection:
        from greatseald.rpc.reflection import ReflectionService

        reflection = ReflectionService(core.access).handlers(gate)
    return {
        **SigningService(core.signing, core.access, metrics).handlers(gate),
        **KeyService(core.keys, core.access).handlers(gate),
        **TokenService(core.tokens, core.keys, core.access, core.control).handlers(gate),
        **AuditService(log, core.access, witnessing, stamps, index).handlers(gate),
        **IdentityService(core.access, version=VERSION, origin=log.origin).handlers(gate),
        **health.handlers(gate),
        **reflection,
    }


def build_outboxes(settings: Settings, log: AuditLog, metrics: PrometheusMetrics) -> list[Outbox]:
    """Return an outbox for each table, ready to run.

    Raises:
        SinkError: a cursor cannot be used.
        FileProblem: a certificate, key or header cannot be used.
    """
    outboxes = []
    for table in settings.outbox:
        assert table.cursor is not None  # noqa: S101 - the loader resolved it
        try:
            sink = open_sink(table, log.origin)
        except (ssl.SSLError, OSError) as error:
            message = f"names certificates that cannot be used for {table.name}: {error}"
            raise FileProblem(message) from error
        outbox = Outbox(
            name=table.name,
            sink=sink,
            cursor=FileCursor(table.cursor),
            format_entry=FORMATS[table.format](log.origin),
            log=log,
            metrics=metrics,
            types=table.types,
            batch=table.batch,
        )
        outbox.begin()
        outboxes.append(outbox)
    return outboxes


def _reserve(settings: Settings) -> DiskReserve:
    """Watch the log's volume where it is ours: PostgreSQL's is its server's business."""
    if not is_shared(settings.store.url):
        return DiskReserve(sqlite_path(settings.store.url), settings.log.reserve_bytes)
    return DiskReserve(str(settings.log.anchor), 0)
