"""`tollhouse worker`: what must be done by somebody, at any time, but not on the path of a call.

Any number may run: each duty is idempotent or elects its doer by an advisory lock in Postgres.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from prometheus_client import start_http_server
from sqlalchemy.ext.asyncio import AsyncEngine

from proxy import policyfile, telemetry
from proxy.bedrock.evidence import Clients, CloudWatchLog, CloudWatchTokens, S3Log
from proxy.domain.delivery import allowed_networks
from proxy.domain.evidence import EvidenceAwayError
from proxy.domain.reconciling import Line
from proxy.errors import BankAway
from proxy.keys import Keyring, parse_master_key
from proxy.postgres.alerts import PostgresAlerts
from proxy.postgres.bank import PostgresBank
from proxy.postgres.engine import check_server, create_engine
from proxy.postgres.evidence import PostgresEvidence
from proxy.postgres.keeper import Keeper
from proxy.postgres.labels import PostgresLabels
from proxy.postgres.repeats import PostgresRepeats
from proxy.postgres.templated import PostgresTemplated
from proxy.postgres.upkeep import PostgresUpkeep
from proxy.server import check, no_core_dumps
from proxy.settings import Settings
from proxy.worker.alerts import Watchman
from proxy.worker.deliveries import Courier
from proxy.worker.evidence import Investigator, LogReader
from proxy.worker.reconciliation import Reconciler
from proxy.worker.reports import Bookkeeper
from proxy.worker.templates import Gardener

log = logging.getLogger("tollhouse.worker")

SWEEP_SECONDS = 10.0
UPKEEP_SECONDS = 600.0
GAUGE_SECONDS = 10.0
INVARIANT_SECONDS = 300.0
EXPIRING_SECONDS = 60.0
HOUR_SECONDS = 3600.0
DAY_SECONDS = 86_400.0
ROLL_SECONDS = 15.0
WATCH_SECONDS = 15.0
SPEND_SECONDS = 300.0
DELIVER_SECONDS = 2.0
TEMPLATE_SECONDS = 10.0
MONTHS_AHEAD = 4
_BUDGETS_SHOWN = 500
#: a duty rests so many times as long as its last round took: each of those that grow with the ledger or the number of
#: budgets keeps its connection busy for a twentieth of the time at most
REST_TIMES = 20.0
#: after a round that failed it rests so many seconds at most, or its own time: Postgres may be back soon
FAILED_REST_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Duty:
    name: str
    every: float
    act: Callable[[], Awaitable[None]]
    #: False: it waits for others than Postgres, or money waits for it
    paced: bool = True

    def rest(self, took: float, *, failed: bool = False) -> float:
        """Seconds until the next round, after one of `took` seconds."""
        if not self.paced:
            return self.every
        rest = REST_TIMES * took
        return max(self.every, min(rest, FAILED_REST_SECONDS) if failed else rest)


def work(settings: Settings) -> int:
    """Blocks until SIGTERM or SIGINT."""
    check(settings)
    no_core_dumps()
    telemetry.configure_logging(settings.log_level)
    if settings.metrics_port:
        start_http_server(settings.metrics_port, settings.host)
    asyncio.run(_work(settings))
    return 0


async def _work(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    engine = create_engine(
        settings.database_url,
        pool_size=6,
        application_name="tollhouse-worker",
        pooler=settings.database_pooler,
    )
    await check_server(engine, require_durable=settings.require_durable)
    bank = PostgresBank(engine, lanes=1)
    tasks = [asyncio.create_task(_repeat(duty)) for duty in duties(settings, engine, bank, Keeper(engine))]
    await stop.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await engine.dispose()


def duties(settings: Settings, engine: AsyncEngine, bank: PostgresBank, keeper: Keeper) -> list[Duty]:
    """Everything a worker does, with how often."""

    async def sweep() -> None:
        more = True
        while more:
            swept = await bank.sweep(settings.call_seconds)
            more = swept.leader and swept.more
            if not swept.swept:
                continue
            telemetry.SWEPT.inc(swept.swept)
            log.warning("%d attempts were open for too long and are charged their ceiling", swept.swept)

    async def upkeep() -> None:
        await bank.ensure_partitions(MONTHS_AHEAD)
        await bank.roll_periods()
        telemetry.PARTITION_DAYS.set(await keeper.partition_days())

    async def gauges() -> None:
        count, oldest = await keeper.open_attempts()
        telemetry.OPEN_ATTEMPTS.set(count)
        telemetry.OLDEST_OPEN.set(oldest)
        for b in await keeper.standings(_BUDGETS_SHOWN):
            telemetry.BUDGET_LIMIT.labels(b.tenant, b.scope, b.budget).set(b.limit)
            telemetry.BUDGET_RESERVED.labels(b.tenant, b.scope, b.budget).set(b.reserved)
            telemetry.BUDGET_SETTLED.labels(b.tenant, b.scope, b.budget).set(b.settled)

    async def invariants() -> None:
        broken = await keeper.broken_invariants(settings.invariants_seconds)
        for name in ("I1", "I2", "I3", "I4"):
            telemetry.INVARIANT.labels(name).set(broken.get(name, 0))
        telemetry.INVARIANTS_CHECKED.set(time.time())
        if broken:
            log.critical("invariants of the ledger are broken: %s", broken)

    async def expiring() -> None:
        for within, count in (await keeper.keys_expiring()).items():
            telemetry.KEYS_EXPIRING.labels(within).set(count)

    async def head() -> None:
        """Logs leave the database: a tail of the trail that is cut later shows against this."""
        found = await keeper.audit_head()
        if found is not None:
            log.info("the audit trail ends at %s", found)

    async def prune() -> None:
        await PostgresRepeats(engine).prune()

    return [
        *desk_duties(settings, engine),
        *evidence_duties(settings, engine, bank),
        Duty("prune", DAY_SECONDS, prune),
        Duty("audit head", HOUR_SECONDS, head),
        Duty("sweep", SWEEP_SECONDS, sweep, paced=False),
        Duty("upkeep", UPKEEP_SECONDS, upkeep),
        Duty("gauges", GAUGE_SECONDS, gauges),
        Duty("invariants", INVARIANT_SECONDS, invariants),
        Duty("expiring keys", EXPIRING_SECONDS, expiring),
    ]


def desk_duties(settings: Settings, engine: AsyncEngine) -> list[Duty]:
    """Reports and alerts."""
    store = PostgresAlerts(engine)
    watchman = Watchman(store)
    bookkeeper = Bookkeeper(PostgresUpkeep(engine), settings.ledger_keep_months)
    networks = allowed_networks(settings.webhook_networks)
    previous = settings.previous_master_key
    keyring = Keyring(
        parse_master_key(settings.master_key),
        previous=parse_master_key(previous) if previous else None,
        environment=settings.key_environment,
    )
    courier = Courier(store, keyring, networks)

    watch = policyfile.Watch(settings.policies_dir, region=settings.aws_region)
    gardener = Gardener(PostgresTemplated(engine), lambda: watch.current)

    async def deliver() -> None:
        while await courier.round():
            pass

    async def templates() -> None:
        await asyncio.to_thread(watch.reload_if_changed)
        await gardener.round()

    return [
        Duty("roll", ROLL_SECONDS, bookkeeper.roll),
        Duty("doubt", DAY_SECONDS, bookkeeper.doubt),
        Duty("retain", DAY_SECONDS, bookkeeper.retain),
        Duty("watch", WATCH_SECONDS, watchman.budgets_and_keys),
        Duty("watch spend", SPEND_SECONDS, watchman.spend_and_ceilings),
        Duty("forget alerts", DAY_SECONDS, watchman.prune),
        Duty("deliver", DELIVER_SECONDS, deliver, paced=False),
        Duty("templates", TEMPLATE_SECONDS, templates),
    ]


def evidence_duties(settings: Settings, engine: AsyncEngine, bank: PostgresBank) -> list[Duty]:
    """What Bedrock's own records say of our charges; nothing where no record is named. Raises
    `ConfigurationError`.
    """
    found: list[Duty] = []
    clients, store = Clients(settings.evidence_endpoint_url or None), PostgresEvidence(engine)
    logs = log_readers(settings, clients)
    if logs:
        watch = policyfile.Watch(settings.policies_dir, region=settings.aws_region)
        investigator = Investigator(
            store, bank, logs, lambda: watch.current, PostgresLabels(engine), settings.evidence_days
        )

        async def investigate() -> None:
            await asyncio.to_thread(watch.reload_if_changed)
            await investigator.round()

        found.append(Duty("evidence", max(1.0, settings.evidence_seconds), investigate, paced=False))
    if settings.reconcile_days:
        reconciler = Reconciler(store, CloudWatchTokens(clients), settings.reconcile_days)
        found.append(Duty("reconcile", DAY_SECONDS, reconciler.nightly, paced=False))
    return found


def log_readers(settings: Settings, clients: Clients) -> list[LogReader]:
    """The invocation logs that the settings name."""
    readers: list[LogReader] = []
    if settings.evidence_log_group:
        readers.append(CloudWatchLog(clients, settings.evidence_log_group))
    if settings.evidence_s3:
        bucket, _, prefix = settings.evidence_s3.removeprefix("s3://").partition("/")
        prefix = f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""
        readers.append(S3Log(clients, bucket, prefix, settings.aws_region))
    return readers


async def reconcile(settings: Settings, days: int) -> list[Line]:
    """The last `days` whole days. Raises `BankAway` and `EvidenceAwayError`."""
    engine = create_engine(
        settings.database_url,
        pool_size=2,
        application_name="tollhouse-reconcile",
        pooler=settings.database_pooler,
    )
    try:
        meter = CloudWatchTokens(Clients(settings.evidence_endpoint_url or None))
        return await Reconciler(PostgresEvidence(engine), meter, days).report()
    finally:
        await engine.dispose()


async def _repeat(duty: Duty) -> None:
    while True:
        began, failed = time.monotonic(), True
        try:
            await duty.act()
            failed = False
        except (BankAway, EvidenceAwayError) as error:
            log.warning("%s: %s", duty.name, error)
        except Exception:
            log.exception("%s failed", duty.name)
        await asyncio.sleep(duty.rest(time.monotonic() - began, failed=failed))
