"""`/me`: what an issued key may know of itself. It never sees another key's figures."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from litestar import Controller, get
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.types import Guard

from proxy.domain.control import CallFilter
from proxy.domain.policy import Limit
from proxy.domain.tenant import Caller
from proxy.errors import Unavailable
from proxy.web.admin.access import refuse_unknown_parameters
from proxy.web.admin.budgets import budget_out
from proxy.web.admin.calls import Since, Until
from proxy.web.admin.core import Office, Page, aware, utc
from proxy.web.admin.reports import spend_report
from proxy.web.admin.shapes import MeOut, MyLimitOut, MyUsageOut
from proxy.web.auth import KeyAuthenticator

_BUDGETS_MAX = 200


class Freshness(Protocol):
    @property
    def stale(self) -> bool: ...


class KeyDeps(Protocol):
    @property
    def authenticator(self) -> KeyAuthenticator: ...

    @property
    def directory(self) -> Freshness: ...


def key_gate(deps: KeyDeps) -> Guard:
    """The guard of `/me`: proves an issued key. `deps` is asked for its parts when they are needed."""

    async def guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        scope = connection.scope
        raw_path = scope.get("raw_path") or scope["path"].encode()
        presented = deps.authenticator.present(
            str(scope.get("method", "GET")), raw_path, scope["query_string"], list(scope["headers"])
        )
        presented.verify(b"")
        if deps.directory.stale:
            raise Unavailable("the directory of keys is stale; please retry", reason="directory_stale")
        refuse_unknown_parameters(connection, handler)
        connection.state.caller = presented.caller

    return guard


@dataclass(frozen=True, slots=True)
class MyDesk:
    office: Office

    async def me(self, caller: Caller) -> MeOut:
        policy = caller.policy
        scopes = [one for one in (caller.tenant, caller.project, caller.key) if one is not None]
        async with self.office.store.reading() as db:
            found = await db.list_budgets(tenant=caller.tenant, subjects=scopes, limit=_BUDGETS_MAX)
        return MeOut(
            tenant=caller.tenant_slug,
            project=caller.project_slug,
            key=caller.key,
            name=caller.key_name,
            expires_at=None
            if caller.expires_at is None
            else dt.datetime.fromtimestamp(caller.expires_at, dt.UTC),
            plan=policy.plan,
            models_allowed=list(policy.models_allowed),
            models_denied=list(policy.models_denied),
            default_output_tokens=policy.default_output_tokens,
            max_output_tokens=policy.max_output_tokens,
            budgets=[budget_out(row) for row in found],
            limits=[_limit_out(limit) for limit in policy.limits],
        )

    async def usage(self, caller: Caller, since: dt.datetime | None, until: dt.datetime | None) -> MyUsageOut:
        now = dt.datetime.fromtimestamp(self.office.clock(), dt.UTC)
        until = aware("until", until) or now
        since = aware("since", since) or await self._month_began(caller, now)
        where = CallFilter(tenant=caller.tenant, key=caller.key, since=since, until=until)
        async with self.office.store.reading() as db:
            report = await spend_report(db, ("model",), where)
        return MyUsageOut(since=since, until=until, cost_usd=report.total_usd, items=report.items)

    def limits(self, caller: Caller) -> Page[MyLimitOut]:
        return Page(items=[_limit_out(limit) for limit in caller.policy.limits])

    async def _month_began(self, caller: Caller, now: dt.datetime) -> dt.datetime:
        async with self.office.store.reading() as db:
            zone = await db.time_zone_of(caller.tenant)
        local = now.astimezone(ZoneInfo(zone))
        return utc(local.replace(day=1, hour=0, minute=0, second=0, microsecond=0, fold=0))


def _limit_out(limit: Limit) -> MyLimitOut:
    return MyLimitOut(
        id=limit.id,
        scope=limit.scope,
        requests_per_minute=limit.requests_per_minute,
        tokens_per_minute=limit.tokens_per_minute,
        burst_seconds=limit.burst_seconds,
        concurrency=limit.concurrency,
        models=None if limit.models is None else sorted(limit.models),
        mode=limit.mode,
    )


class MeController(Controller):
    path = "/me"
    tags = ("me",)

    @get(summary="What this key is and may do")
    async def me(self, my_desk: MyDesk, caller: Caller) -> MeOut:
        return await my_desk.me(caller)

    @get("/usage", summary="What this key used, by model; this month unless asked otherwise")
    async def usage(
        self, my_desk: MyDesk, caller: Caller, since: Since = None, until: Until = None
    ) -> MyUsageOut:
        return await my_desk.usage(caller, since, until)

    @get("/limits", summary="Limits in force for this key", sync_to_thread=False)
    def limits(self, my_desk: MyDesk, caller: Caller) -> Page[MyLimitOut]:
        return my_desk.limits(caller)
