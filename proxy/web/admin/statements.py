"""`/tenants/{id}/statements`: what a tenant owes for a calendar month of its time zone.

A statement is a draft until it is issued, and never changes afterwards. What the ledger learns later
about an issued month (refunds, corrected prices) stands as `corrections_usd` on the next one, so the
totals of all issued statements are what the ledger says of their months.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from litestar import Controller, Response, get, post
from litestar.openapi import ResponseSpec
from litestar.params import Parameter

from proxy.domain.control import TenantRecord
from proxy.domain.reporting import Draft, Issued
from proxy.web.admin.access import Principal
from proxy.web.admin.core import Office, Page, record, utc
from proxy.web.admin.exports import as_csv
from proxy.web.admin.problems import conflict, invalid
from proxy.web.admin.reports import as_file
from proxy.web.admin.shapes import StatementLineOut, StatementOut
from proxy.web.admin.tenants import own_tenant
from proxy.web.schemas import NothingIn, usd

LISTED_MAX = 200
_LINE = (
    *("project", "key", "model", "cost_usd", "attempts", "hits", "input_tokens", "output_tokens"),
    *("cache_read_tokens", "cache_write_tokens", "saved_usd"),
)


@dataclass(frozen=True, slots=True)
class StatementDesk:
    office: Office

    async def read(self, who: Principal, slug: str, month: str) -> StatementOut:
        """As it was issued, else as it would be now."""
        async with self.office.store.reading() as db:
            tenant = await own_tenant(db, who, slug)
            first = _first(month)
            found = await db.find_statement(tenant.id, first)
            if found is not None:
                return _issued_out(found)
            return _draft_out(tenant, await db.draft_statement(tenant.id, first))

    async def list(self, who: Principal, slug: str) -> Page[StatementOut]:
        """Without their lines."""
        async with self.office.store.reading() as db:
            tenant = await own_tenant(db, who, slug)
            found = await db.list_statements(tenant.id, limit=LISTED_MAX)
        items = [_issued_out(one) for one in found]
        for item in items:
            item.lines = []
        return Page(items=items)

    async def issue(self, who: Principal, slug: str, month: str) -> StatementOut:
        """Refused while the month runs, while one of its calls is open, and after a later month's."""
        async with self.office.store.writing() as db:
            tenant = await own_tenant(db, who, slug)
            who.need_all_tenants()
            first = _first(month)
            made = await db.draft_statement(tenant.id, first, lock=True)
            later = await db.list_statements(tenant.id, limit=1)
            if not made.month.over:
                raise conflict(f"{month} has not ended in {tenant.time_zone}")
            if later and later[0].month > first:
                raise conflict(f"the statement of {later[0].month:%Y-%m} was issued already")
            if made.open_attempts:
                raise conflict(f"{made.open_attempts} calls of {month} are still open; the sweeper ends them")
            body = msgspec.to_builtins(_draft_out(tenant, made))
            out = _issued_out(await db.issue_statement(tenant.id, made, body, f"{who.role}:{who.name}"))
            brief = msgspec.structs.replace(out, lines=[])
            await record(db, who, "statement.issue", f"statement:{slug}/{month}", after=brief)
        return out


def _first(month: str) -> dt.date:
    try:
        first = dt.date.fromisoformat(f"{month}-01")
    except ValueError:
        raise invalid("month", "a month is written as 2026-11") from None
    if len(month) != 7 or not 2000 <= first.year < 2200:
        raise invalid("month", "a month is written as 2026-11")
    return first


def _draft_out(tenant: TenantRecord, made: Draft) -> StatementOut:
    month = made.month
    return StatementOut(
        tenant=tenant.slug, month=f"{month.first:%Y-%m}", status="draft", currency="USD",
        time_zone=tenant.time_zone, period_start=utc(month.since), period_end=utc(month.until),
        charged_usd=usd(_sum(made.lines, "cost") - sum(_sum(made.lines, n) for n in _AFTER)),
        refunded_usd=usd(_sum(made.lines, "refunded")), adjusted_usd=usd(_sum(made.lines, "adjusted")),
        overrun_usd=usd(_sum(made.lines, "overrun")), usage_usd=usd(made.usage),
        corrections_usd=usd(made.corrections), total_usd=usd(made.total),
        upstream_cost_usd=usd(_sum(made.lines, "upstream_cost")), open_attempts=made.open_attempts,
        open_ceiling_usd=usd(made.open_ceiling), lines=[_line(row) for row in made.lines if row["attempts"]],
    )  # fmt: skip


_AFTER = ("refunded", "adjusted", "overrun")


def _sum(lines: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(row[name] for row in lines)


def _line(row: Mapping[str, Any]) -> StatementLineOut:
    return StatementLineOut(
        project=row["project"] or None, key=row["key"], model=row["model"], cost_usd=usd(row["cost"]),
        saved_usd=usd(row["saved"]), attempts=row["attempts"], hits=row["hits"],
        input_tokens=row["input_tokens"], output_tokens=row["output_tokens"],
        cache_read_tokens=row["cache_read_tokens"], cache_write_tokens=row["cache_write_tokens"],
    )  # fmt: skip


def _issued_out(row: Issued) -> StatementOut:
    out = msgspec.convert(row.body, StatementOut)
    out.status, out.issued_at, out.issued_by = "issued", utc(row.issued_at), row.issued_by
    return out


def _sheet(out: StatementOut) -> str:
    """One line per project, key and model; then corrections, so that the column adds up to the total."""
    rows = [{name: getattr(line, name) for name in _LINE} for line in out.lines]
    empty = dict.fromkeys(_LINE, None)
    rows.append(empty | {"project": "corrections of earlier months", "cost_usd": out.corrections_usd})
    rows.append(empty | {"project": "total", "cost_usd": out.total_usd})
    return as_csv(_LINE, rows)


_SHOWN = ResponseSpec(
    StatementOut, generate_examples=False, description="as JSON; with `format=csv` its lines"
)
MonthPath = Annotated[str, Parameter(description="such as 2026-11")]


class StatementController(Controller):
    path = "/tenants/{tenant:str}/statements"
    tags = ("reports",)

    @get(summary="List issued statements, newest first, without their lines")
    async def list(
        self, desk_of_statements: StatementDesk, who: Principal, tenant: str
    ) -> Page[StatementOut]:
        return await desk_of_statements.list(who, tenant)

    @get("/{month:str}", summary="Show a month's statement, as issued or as a draft", responses={200: _SHOWN})
    async def read(
        self,
        desk_of_statements: StatementDesk,
        who: Principal,
        tenant: str,
        month: MonthPath,
        format_: Annotated[Literal["json", "csv"], Parameter(query="format")] = "json",
    ) -> Response[StatementOut] | Response[str]:
        out = await desk_of_statements.read(who, tenant, month)
        if format_ == "csv":
            return as_file(f"statement-{tenant}-{month}", _sheet(out))
        return Response(out, headers={"Cache-Control": "no-store"})

    @post("/{month:str}", summary="Issue a month's statement; it never changes afterwards")
    async def issue(
        self,
        desk_of_statements: StatementDesk,
        who: Principal,
        tenant: str,
        month: MonthPath,
        data: NothingIn,  # noqa: ARG002 (it refuses fields)
    ) -> StatementOut:
        return await desk_of_statements.issue(who, tenant, month)
