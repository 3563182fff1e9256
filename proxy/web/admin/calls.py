"""`/calls`, `/refusals` and `/audit`: what happened, and who changed what."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from typing import Annotated, Any, cast
from uuid import UUID

from litestar import Controller, get
from litestar.params import Parameter

from proxy.domain.control import CallFilter, CallRecord
from proxy.domain.ledger import State
from proxy.domain.usage import NOTHING, Usage
from proxy.web.admin import paging
from proxy.web.admin.access import Principal, of_own_tenant
from proxy.web.admin.core import PAGE, Cursor, Limit, Office, Page, aware, utc, utc_or_none
from proxy.web.admin.problems import invalid, not_found
from proxy.web.admin.shapes import AuditOut, CallOut, EntryOut, RefusalOut, TrailCheckOut, UsageOut
from proxy.web.admin.store import Session
from proxy.web.admin.tenants import own_tenant
from proxy.web.schemas import OutcomeName, usd

Since = Annotated[dt.datetime | None, Parameter(description="RFC 3339, inclusive")]
Until = Annotated[dt.datetime | None, Parameter(description="RFC 3339, exclusive")]
Slug = Annotated[str | None, Parameter(description="slug of a tenant")]
ProjectSlug = Annotated[str | None, Parameter(description="slug of a project; needs `tenant`")]
Head = Annotated[
    str | None,
    Parameter(description="`<seq>:<hash>` of a record that was kept elsewhere; finds a tail that was cut"),
]
_HEAD = re.compile(r"([1-9][0-9]{0,17}):([0-9a-f]{64})")
REFUSAL_KEYS = ("tenant", "key", "reason", "model", "day")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallQuery:
    """Filters as callers name them."""

    tenant: str | None = None
    project: str | None = None
    key: UUID | None = None
    call: UUID | None = None
    model: str | None = None
    outcome: OutcomeName | None = None
    since: dt.datetime | None = None
    until: dt.datetime | None = None


@dataclass(frozen=True, slots=True)
class CallDesk:
    office: Office

    async def list(self, who: Principal, query: CallQuery, limit: int, cursor: str | None) -> Page[CallOut]:
        before = paging.decode_id(cursor)
        async with self.office.store.reading() as db:
            where = await call_filter(db, who, query)
        found = await self.office.store.calls(where, limit=limit + 1, before=before)
        return Page(
            items=[call_out(row) for row in found[:limit]],
            next=paging.encode(str(found[limit - 1].attempt)) if len(found) > limit else None,
        )

    async def read(self, who: Principal, attempt: UUID) -> CallOut:
        """With every entry about its money."""
        found = await self.office.store.call(attempt, tenant=who.tenant)
        if found is None:
            raise not_found("call")
        call, entries = found
        out = call_out(call)
        out.entries = [
            EntryOut(
                kind=entry.kind.name, amount_usd=usd(entry.amount), why=entry.why.name, at=utc(entry.at),
                evidence=entry.evidence,
            )
            for entry in entries
        ]  # fmt: skip
        return out

    async def refusals(
        self, who: Principal, tenant: str | None, group_by: str, since: Since, until: Until, limit: int
    ) -> Page[RefusalOut]:
        groups = split(group_by, REFUSAL_KEYS)
        async with self.office.store.reading() as db:
            tenant_id = who.tenant if tenant is None else (await own_tenant(db, who, tenant)).id
            found = await db.refusals(cast("Any", groups), tenant=tenant_id, since=aware("since", since),
                until=aware("until", until), limit=limit,
            )  # fmt: skip
        return Page(items=[RefusalOut(**row) for row in found])

    async def trail(
        self, who: Principal, thing: str | None, limit: int, cursor: str | None
    ) -> Page[AuditOut]:
        who.need_all_tenants()
        before = paging.decode(cursor, int)
        async with self.office.store.reading() as db:
            found = await db.trail(thing=thing, before=before, limit=limit + 1)
        return Page(
            items=[
                AuditOut(
                    seq=row.seq, at=utc(row.at), actor=row.actor, action=row.action, object=row.object,
                    before=row.before, after=row.after, hash=row.hash.hex(),
                )
                for row in found[:limit]
            ],
            next=paging.encode(found[limit - 1].seq) if len(found) > limit else None,
        )  # fmt: skip

    async def verify_trail(self, who: Principal, head: str | None) -> TrailCheckOut:
        who.need_all_tenants()
        kept = None if head is None else _head(head)
        async with self.office.store.reading() as db:
            first_bad = await db.trail_first_bad()
            if kept is not None and (first_bad is None or first_bad > kept[0]):
                found = await db.trail(thing=None, before=kept[0] + 1, limit=1)
                if [(row.seq, row.hash.hex()) for row in found] != [kept]:
                    first_bad = kept[0]
        return TrailCheckOut(intact=first_bad is None, first_bad=first_bad)


def _head(text: str) -> tuple[int, str]:
    """`<seq>:<hash>` as the worker's log has it. Raises a 400 `Problem`."""
    found = _HEAD.fullmatch(text)
    if found is None:
        raise invalid("head", "head is `<seq>:<hash>` of a record of the trail")
    return int(found[1]), found[2]


async def call_filter(db: Session, who: Principal, query: CallQuery) -> CallFilter:
    """Names made into ids. Raises the 404 of whatever does not exist for this principal."""
    tenant, project = who.tenant, None
    if query.tenant is not None:
        tenant = (await own_tenant(db, who, query.tenant)).id
    if query.project is not None:
        slug = query.tenant or who.tenant_slug
        if slug is None:
            raise invalid("project", "name the project's tenant too")
        project = (await db.get_project(slug, query.project)).id
    if query.key is not None:
        key = await db.get_key(query.key)
        of_own_tenant(who, key.tenant, "key")
        if tenant is None:
            tenant = key.tenant  # the index is by tenant
    return CallFilter(
        tenant=tenant,
        project=project,
        key=query.key,
        call=query.call,
        model=query.model,
        outcome=None if query.outcome is None else State[query.outcome],
        since=aware("since", query.since),
        until=aware("until", query.until),
    )


def split(group_by: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """Names separated by commas, each once. Raises a 400 `Problem` for any other."""
    names = tuple(dict.fromkeys(name.strip() for name in group_by.split(",") if name.strip()))
    wrong = [name for name in names if name not in allowed]
    if wrong or not names:
        raise invalid("group_by", f"group_by takes {', '.join(allowed)}, separated by commas")
    return names


def usage_out(usage: Usage) -> UsageOut:
    return UsageOut(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        cache_write_5m_tokens=usage.cache_write_5m_tokens,
        cache_write_1h_tokens=usage.cache_write_1h_tokens,
        images=usage.images,
        guardrail_units=usage.guardrail_units,
    )


def call_out(row: CallRecord) -> CallOut:
    out = CallOut(
        id=row.call,
        attempt=row.attempt,
        tenant=row.tenant_slug or str(row.tenant),
        project=row.project_slug,
        key=row.key,
        operation=row.operation.label,
        kind="probe" if row.operation.probe else "call",
        model=row.model,
        target=row.target,
        outcome=cast("OutcomeName", row.outcome.name),
        why=None if row.why is None else row.why.name,
        usage=usage_out(row.usage or NOTHING),
        ceiling_usd=usd(row.ceiling),
        cost_usd=None if row.cost is None else usd(row.cost),
        saved_usd=usd(row.saved),
        price_version=row.price_version or None,
        upstream_request_id=row.upstream_request_id,
        status=row.status,
        tags=row.tags or None,
        admitted_at=utc(row.admitted_at),
        finished_at=utc_or_none(row.finished_at),
        latency_ms=row.latency_ms,
        first_byte_ms=row.first_byte_ms,
    )
    if row.upstream_cost is not None and row.upstream_cost != row.cost:
        out.upstream_cost_usd = usd(row.upstream_cost)
    return out


class CallController(Controller):
    path = "/calls"
    tags = ("calls",)

    @get(summary="List calls, one item per attempt, newest first")
    async def list(
        self,
        desk_of_calls: CallDesk,
        who: Principal,
        tenant: Slug = None,
        project: ProjectSlug = None,
        key: UUID | None = None,
        model: Annotated[str | None, Parameter(description="base model id")] = None,
        outcome: OutcomeName | None = None,
        since: Since = None,
        until: Until = None,
        call: Annotated[UUID | None, Parameter(description="as `x-tollhouse-call-id` named it")] = None,
        limit: Limit = PAGE,
        cursor: Cursor = None,
    ) -> Page[CallOut]:
        query = CallQuery(
            tenant=tenant, project=project, key=key, call=call, model=model, outcome=outcome, since=since,
            until=until,
        )  # fmt: skip
        return await desk_of_calls.list(who, query, limit, cursor)

    @get("/{attempt:uuid}", summary="Show one attempt with every entry about its money")
    async def read(self, desk_of_calls: CallDesk, who: Principal, attempt: UUID) -> CallOut:
        return await desk_of_calls.read(who, attempt)


class RecordController(Controller):
    path = "/"
    tags = ("records",)

    @get("/refusals", summary="Count refused calls; rolled up by the hour, seconds behind")
    async def refusals(
        self,
        desk_of_calls: CallDesk,
        who: Principal,
        tenant: Slug = None,
        group_by: Annotated[str, Parameter(description="some of tenant, key, reason, model, day")] = "reason",
        since: Since = None,
        until: Until = None,
        limit: Limit = 200,
    ) -> Page[RefusalOut]:
        return await desk_of_calls.refusals(who, tenant, group_by, since, until, limit)

    @get("/audit", summary="List administrators' writes, newest first")
    async def trail(
        self,
        desk_of_calls: CallDesk,
        who: Principal,
        thing: Annotated[str | None, Parameter(query="object", description="such as `key:<id>`")] = None,
        limit: Limit = PAGE,
        cursor: Cursor = None,
    ) -> Page[AuditOut]:
        return await desk_of_calls.trail(who, thing, limit, cursor)

    @get("/audit/verify", summary="Check the hash chain of the audit trail")
    async def verify_trail(self, desk_of_calls: CallDesk, who: Principal, head: Head = None) -> TrailCheckOut:
        return await desk_of_calls.verify_trail(who, head)
