"""The composition root of one worker process. The only module that knows all the others.

`create` is what granian calls: it reads the settings and returns the ASGI application, whose
lifespan builds every collaborator, recovers what a dead process left, and opens for business.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from litestar import Litestar, asgi
from litestar.exceptions import MethodNotAllowedException, NotFoundException
from litestar.types import Receive, Scope, Send
from sqlalchemy.ext.asyncio import AsyncEngine

from proxy import exemplars, failpoints, policyfile, tally, telemetry
from proxy import settings as settings_module
from proxy.advice import PrefixLog
from proxy.bedrock.client import BedrockUpstream
from proxy.bedrock.control import ControlPlane
from proxy.bedrock.dialects import FAMILIES
from proxy.bedrock.inbound import InboundSignatures
from proxy.bedrock.interventions import intervened
from proxy.bedrock.roles import TenantRoles
from proxy.bedrock.wires import BedrockWires, classify
from proxy.breaker import Breakers
from proxy.call import Bounds, Kit
from proxy.counting import Counter
from proxy.directory import Directory
from proxy.discovery import Discovery
from proxy.domain.estimate import Estimator
from proxy.domain.rates import Rates
from proxy.domain.routing import Tolerance
from proxy.errors import Refusal
from proxy.hits import Hits
from proxy.keys import Keyring, parse_master_key
from proxy.pipeline import Pipeline, Request
from proxy.policyfile import PolicySet, Watch
from proxy.ports import PRICE
from proxy.postgres.bank import PostgresBank
from proxy.postgres.engine import check_server, create_engine
from proxy.postgres.labels import PostgresLabels
from proxy.postgres.refusals import PostgresRefusals
from proxy.postgres.roster import PostgresRoster
from proxy.postgres.session import PostgresControl
from proxy.postgres.shares import PostgresShares
from proxy.recorder import FlightRecorder
from proxy.redis.cache import RedisCache
from proxy.redis.client import RedisClient, connect
from proxy.redis.limiter import RedisLimiter
from proxy.redis.prefixes import RedisPrefixes
from proxy.ruling import Ruler, Shares, reads_budgets
from proxy.server import rest_collector
from proxy.settings import Settings
from proxy.settler import HeldQueue, Settler
from proxy.sharing import Sharing
from proxy.tracing import wiring
from proxy.web.admin import admin_routes, problems_or
from proxy.web.auth import KeyAuthenticator
from proxy.web.door import Door
from proxy.web.health import health_routes
from proxy.web.inference import MOUNTS, Inference, no_route
from proxy.web.models import ModelList
from proxy.worker import lookout, recovery
from proxy.worker.rollups import RefusalCounter

if TYPE_CHECKING:
    from proxy.tracing.otlp import Exporter

log = logging.getLogger("tollhouse.app")

_PR_SET_PDEATHSIG = 1
_RECORDERS_SECONDS = 2.0


def create() -> Any:
    """The ASGI application of one worker process."""
    settings = settings_module.load()
    telemetry.configure_logging(settings.log_level)
    failpoints.arm(settings.fail_point)
    # A server process that was killed must not leave a worker that nobody supervises.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    worker = Worker(settings)
    inference = worker.inference if settings.surface != "admin" else None
    return Door(worker.application(), inference, settings.body_seconds)


@dataclass(slots=True)
class Worker:
    """Everything one process has. Built in `start`, in the order in which things need each other."""

    settings: Settings
    engine: AsyncEngine = field(init=False)
    control: PostgresControl = field(init=False)
    policies: PolicySet = field(init=False)
    policy_files: Watch = field(init=False)
    keyring: Keyring = field(init=False)
    directory: Directory = field(init=False)
    authenticator: KeyAuthenticator = field(init=False)
    kit: Kit = field(init=False)
    pipeline: Pipeline = field(init=False)
    model_list: ModelList = field(init=False)
    redis: RedisClient = field(init=False)
    cache_redis: RedisClient = field(init=False)
    cache: RedisCache = field(init=False)
    prefixes: PrefixLog = field(init=False)
    limiter: RedisLimiter = field(init=False)
    upstream: BedrockUpstream = field(init=False)
    bank: PostgresBank = field(init=False)
    flight: FlightRecorder = field(init=False)
    refusals: RefusalCounter = field(init=False)
    #: why no call may be admitted now; None when open
    closed: str | None = "starting"
    stopping: bool = False
    labels: PostgresLabels | None = None
    shares: Shares | None = None
    discovery: Discovery | None = None
    #: where traces leave from, None when there are none
    traces: Exporter | None = None
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _inference: Inference | None = None

    # ---- start and stop ----------------------------------------------------------------------

    async def start(self) -> None:
        """Raises `ConfigurationError` for what must not be run with, `BankAway` without Postgres."""
        s = self.settings
        self.policy_files = Watch(s.policies_dir, region=s.aws_region)
        self.policies = self.policy_files.current
        self.engine = create_engine(s.database_url, pool_size=s.bank_lanes + 8, pooler=s.database_pooler)
        self.control = PostgresControl(self.engine)
        await check_server(self.engine, require_durable=s.require_durable)
        self.keyring = Keyring(
            parse_master_key(s.master_key),
            previous=parse_master_key(s.previous_master_key) if s.previous_master_key else None,
            environment=s.key_environment,
        )
        self.directory = Directory(PostgresRoster(self.engine), self.keyring, self.policies)
        self.authenticator = KeyAuthenticator(self.directory, InboundSignatures(time.time))
        self.cache_redis = connect(s.redis_url, client_name="tollhouse-cache")
        self.cache = RedisCache(
            self.cache_redis,
            key_of=self.keyring.cache_key if s.cache_encryption else None,
            on_failure=telemetry.CACHE_FAILURES.inc,
        )
        self.prefixes = PrefixLog(RedisPrefixes(self.cache_redis), self._rates_of)
        self.bank = PostgresBank(self.engine, lanes=s.bank_lanes, admit_timeout_s=s.admit_timeout_ms / 1000)
        await self.bank.start()
        await self.directory.start()
        if s.surface != "admin":
            await self._start_data_plane()
        self._tasks.append(asyncio.create_task(policyfile.follow(self.policy_files, self._use)))
        self.closed = None

    async def _start_data_plane(self) -> None:
        s = self.settings
        self.labels = labels = PostgresLabels(self.engine)
        await labels.load()
        await self._intern_prices(self.policies)
        await recovery.recover(self.bank, s.state_path)
        self.flight = FlightRecorder(s.state_path)
        self.redis = connect(s.redis_url)
        self.limiter = RedisLimiter(
            self.redis, away=s.limiter_fallback, replicas=s.replicas * s.workers or None
        )
        await self.limiter.start()
        self.upstream = BedrockUpstream(
            endpoint_url=s.bedrock_endpoint_url or None,
            connect_timeout=s.connect_ms / 1000,
            roles=TenantRoles(s.tenant_role_arn, s.aws_region) if s.tenant_role_arn else None,
        )
        await self.upstream.start()
        self.kit = self._kit()
        self.refusals = RefusalCounter(PostgresRefusals(self.engine), s.metrics_tenants)
        sharing = self._sharing()
        self.shares = Shares(PostgresShares(self.engine), lambda: reads_budgets(self.policies.rules))
        await self._read_shares(self.policies)
        self.traces = wiring.exporter(s.otlp_endpoint, s.otlp_headers)
        self.pipeline = wiring.pipeline_of(self.traces, s.trace_sample, self.upstream.address)(
            rules=Ruler(lambda: self.policies.rules, self.shares.used),
            kit=self.kit,
            sharing=sharing,
            authenticator=self.authenticator,
            book=lambda: self.policies,
            wires=BedrockWires(first_byte=s.first_byte_seconds, idle=s.idle_seconds),
            labels=labels,
            estimator=Estimator(),
            refusals=self.refusals,
            horizon=s.call_seconds,
            max_calls=s.max_calls,
            closed=self.why_closed,
            prefixes=self.prefixes if s.prefix_advice else None,
            by_tenant=bool(s.tenant_role_arn),
        )
        keep = exemplars.keeper(settings_module.multiprocess_dir()) if s.exemplars else None
        self._tasks = [
            asyncio.create_task(tally.run(keep)),
            asyncio.create_task(recovery.watch(self.bank, s.state_path, _RECORDERS_SECONDS)),
            asyncio.create_task(self.refusals.run()),
            asyncio.create_task(sharing.run()),
            asyncio.create_task(self.shares.run()),
            asyncio.create_task(self.prefixes.run()),
            asyncio.create_task(lookout.renew_leases(self.kit, self.limiter.renew)),
            asyncio.create_task(self._look_out()),
        ]
        self._discover()

    def _kit(self) -> Kit:
        s, queue = self.settings, HeldQueue()
        return Kit(
            queue=queue,
            bank=self.bank,
            recorder=self.flight,
            upstream=self.upstream,
            limiter=self.limiter,
            settler=Settler(self.bank, self.flight, queue),
            bounds=_bounds(s),
            classify=classify,
            counts=Counter(s.counts_per_second),
            breakers=Breakers(Tolerance(faults=s.breaker_faults, ceilings=s.breaker_ceilings)),
        )

    def _discover(self) -> None:
        """Ask the control plane for the ARNs that policy files do not name, where there is one."""
        s = self.settings
        self.model_list = ModelList(
            lambda: self.policies,
            FAMILIES,
            lambda: self.discovery.found.lifecycles if self.discovery is not None else {},
        )
        if s.control_seconds and (s.bedrock_control_endpoint_url or not s.bedrock_endpoint_url):
            self.discovery = Discovery(
                ControlPlane(endpoint_url=s.bedrock_control_endpoint_url or None),
                lambda: self.policies.regions_used,
                lambda: self._use(self.policy_files.current),
                s.control_seconds,
            )
            self._tasks.append(asyncio.create_task(self.discovery.run()))

    async def _use(self, policies: PolicySet) -> None:
        """Put changed policies in force. Raises `BankAway`; then nothing has changed."""
        if self.discovery is not None:
            policies = policies.with_arns(self.discovery.found.arns)
        await self._intern_prices(policies)
        await self._read_shares(policies)
        self.policies = policies
        self.directory.use_policies(policies)

    async def _read_shares(self, policies: PolicySet) -> None:
        """Before rules that read budgets come into force."""
        if self.shares is not None and reads_budgets(policies.rules):
            await self.shares.refresh()

    async def _intern_prices(self, policies: PolicySet) -> None:
        """Settlements look price versions up without waiting."""
        if self.labels is not None:
            for version in policies.prices.versions:
                await self.labels.intern(PRICE, version.id)

    def _rates_of(self, model: str) -> Rates | None:
        """Rates in force of a base model on the first target of its route."""
        try:
            route = self.policies.resolve(model)
            return self.policies.priced(route.model, route.targets[0]).rates(time.time()).rates
        except Refusal:
            return None

    def _sharing(self) -> Sharing:
        s = self.settings
        return Sharing(
            hits=Hits(kit=self.kit, stale=lambda: self.directory.stale),
            cache=self.cache,
            intervened=intervened,
            keep_interventions=s.cache_interventions,
            patience=s.cache_wait_ms / 1000,
        )

    async def stop(self) -> None:
        """Drain: running calls end within the grace; what is left is in the flight recorder."""
        self.stopping = True
        if self.settings.surface != "admin":
            await self._drain(self.settings.shutdown_seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.settings.surface != "admin":
            await self.refusals.flush()
            await self.prefixes.flush()
            await self.kit.settler.drain(5.0)
            if self.traces is not None:
                await self.traces.close()
            self.flight.shut()
            await self.limiter.aclose()
            await self.redis.aclose()
            await self.upstream.aclose()
        await self.cache_redis.aclose()
        await self.directory.stop()
        await self.bank.aclose()
        await self.engine.dispose()

    async def _drain(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.kit.running and time.monotonic() < deadline:
            await asyncio.sleep(0.05)

    async def _look_out(self) -> None:
        def close(why: str | None) -> None:
            self.closed = why

        await lookout.watch(
            self.kit,
            directory_age=lambda: self.directory.age_seconds,
            limiter_mode=lambda: self.limiter.mode,
            clock_skew=self.bank.clock_skew_seconds,
            skew_seconds=self.settings.clock_skew_seconds,
            close=close,
        )

    # ---- the application ---------------------------------------------------------------------

    def application(self) -> Litestar:
        """Routes by surface. Inference paths are raw mounts; a path that is no route of any kind is
        refused in the dialect it looks like.
        """
        handlers: list[Any] = list(health_routes(self.why_not_ready))
        split = self.settings.admin_port and self.settings.surface == "all"
        if self.settings.surface != "inference" and not split:
            handlers += admin_routes(self)
        if self.settings.surface != "admin":
            handlers.append(self._mount())
        return Litestar(
            route_handlers=handlers,
            lifespan=[self._lifespan],
            exception_handlers=dict.fromkeys(
                (NotFoundException, MethodNotAllowedException), problems_or(no_route)
            ),
            openapi_config=None,
            logging_config=None,
            request_max_body_size=None,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Litestar) -> AsyncIterator[None]:
        await self.start()
        rest_collector()
        try:
            yield
        finally:
            await self.stop()

    def _mount(self) -> Any:
        @asgi(list(MOUNTS), is_mount=True, copy_scope=False)
        async def mount(scope: Scope, receive: Receive, send: Send) -> None:
            await self.inference(scope, receive, send)

        return mount

    async def inference(self, scope: Any, receive: Any, send: Any) -> None:
        """The inference routes as an ASGI application of their own. Only after `start`."""
        if self._inference is None:
            self._inference = Inference(self.pipeline, self.models, self.settings.body_seconds)
        await self._inference(scope, receive, send)

    def why_closed(self) -> str | None:
        """Why no call may be admitted now."""
        return "shutting down" if self.stopping else self.closed

    def why_not_ready(self) -> str | None:
        """Why no call should be sent here. Those that are sent all the same are served."""
        leaving = self.settings.leaving_mark(os.getppid()).exists()
        return "shutting down" if leaving else self.why_closed()

    def models(self, request: Request, name: str) -> bytes:
        """`GET /v1/models[/{name}]`: what the key behind the request may call, or one of it."""
        presented = self.pipeline.authenticator.present(
            request.method, request.raw_path, request.query, request.raw_headers
        )
        return self.model_list.answer(presented, name, stale=self.directory.stale)


def _bounds(s: Settings) -> Bounds:
    return Bounds(
        call=s.call_seconds,
        first_byte=s.first_byte_seconds,
        idle=s.idle_seconds,
        drain=s.drain_seconds,
        drain_calls=s.drain_calls,
        hold=s.settle_hold_ms / 1000,
        held_wait=s.held_wait_ms / 1000,
    )
