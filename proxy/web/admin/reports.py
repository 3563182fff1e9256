"""`/reports/spend`, as JSON or as CSV, and `/models` and `/plans`: what can be bought, and what was."""

from __future__ import annotations

import csv
import datetime as dt
import io
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast
from uuid import UUID
from zoneinfo import available_timezones

from litestar import Controller, Response, get
from litestar.openapi import ResponseSpec
from litestar.params import Parameter
from msgspec import UNSET

from proxy.domain.control import CallFilter
from proxy.domain.ledger import Operation, State
from proxy.web.admin.access import Principal
from proxy.web.admin.calls import CallQuery, ProjectSlug, Since, Slug, Until, call_filter, split
from proxy.web.admin.core import Office, Page
from proxy.web.admin.problems import invalid
from proxy.web.admin.shapes import ModelOut, PlanOut, SpendOut, SpendReportOut
from proxy.web.admin.store import Store
from proxy.web.schemas import usd

GROUPS = ("tenant", "project", "key", "model", "day", "outcome", "operation", "tags")
ROWS_MAX = 10_000
_MONEY = ("cost", "upstream_cost", "saved")
_COUNTS = ("attempts", "hits", "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
#: a spreadsheet takes a cell that begins so for a formula
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, slots=True)
class ReportDesk:
    office: Office

    async def spend(
        self, who: Principal, group_by: str, query: CallQuery, time_zone: str
    ) -> tuple[tuple[str, ...], SpendReportOut]:
        """The report, and the columns it is grouped by. The dearest group comes first."""
        groups = split(group_by, GROUPS)
        if "project" in groups and "tenant" not in groups:
            groups = ("tenant", *groups)  # a project's slug says nothing without its tenant's
        if time_zone not in available_timezones():
            raise invalid("time_zone", f"there is no time zone {time_zone!r} in the IANA database")
        async with self.office.store.reading() as db:
            where = await call_filter(db, who, query)
        return groups, await spend_report(self.office.store, groups, where, time_zone)

    def models(self) -> Page[ModelOut]:
        models = self.office.policies().models
        return Page(
            items=[
                ModelOut(
                    id=model.id, provider=model.provider, name=model.name, context_tokens=model.context_tokens,
                    max_output_tokens=model.max_output_tokens, modality=model.modality,
                    streaming=model.streaming, end_of_life=model.end_of_life,
                )
                for _, model in sorted(models.items())
            ]
        )  # fmt: skip

    def plans(self) -> Page[PlanOut]:
        plans = self.office.policies().plans
        return Page(
            items=[
                PlanOut(id=plan.name, version=plan.version, description=plan.description)
                for _, plan in sorted(plans.items())
            ]
        )


async def spend_report(
    store: Store, groups: tuple[str, ...], where: CallFilter, time_zone: str
) -> SpendReportOut:
    rows = await store.spend(cast("Any", groups), where, zone=time_zone, limit=ROWS_MAX + 1)
    return SpendReportOut(
        items=[_spend_out(groups, row) for row in rows[:ROWS_MAX]],
        total_usd=usd(sum(row["cost"] for row in rows[:ROWS_MAX])),
        truncated=len(rows) > ROWS_MAX,
    )


def _spend_out(groups: tuple[str, ...], row: dict[str, Any]) -> SpendOut:
    fields: dict[str, Any] = {group: str(row[group]) for group in groups}
    if "outcome" in fields:
        fields["outcome"] = State(int(fields["outcome"])).name
    if "operation" in fields:
        fields["operation"] = Operation(int(fields["operation"])).label
    fields |= {f"{name}_usd": usd(row[name]) for name in _MONEY} | {name: row[name] for name in _COUNTS}
    return SpendOut(**fields)


def as_csv(groups: tuple[str, ...], report: SpendReportOut) -> str:
    """RFC 4180. Text that a spreadsheet would run is quoted by an apostrophe."""
    columns = [*groups, *(f"{name}_usd" for name in _MONEY), *_COUNTS]
    sheet = io.StringIO()
    writer = csv.writer(sheet)
    writer.writerow(columns)
    for item in report.items:
        values = (getattr(item, column) for column in columns)
        writer.writerow(["" if value is UNSET else value for value in map(_cell, values)])
    return sheet.getvalue()


def _cell(value: object) -> object:
    return (
        f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) and not _number(value) else value
    )


def _number(text: str) -> bool:
    return text.lstrip("-").replace(".", "", 1).isdigit()


_REPORT = ResponseSpec(
    SpendReportOut, generate_examples=False, description="as JSON; with `format=csv` one line per group"
)


class ReportController(Controller):
    path = "/"
    tags = ("reports",)

    @get("/reports/spend", summary="Sum what resolved calls cost", responses={200: _REPORT})
    async def spend(
        self,
        desk_of_reports: ReportDesk,
        who: Principal,
        group_by: Annotated[str, Parameter(description=f"some of {', '.join(GROUPS)}")] = "tenant",
        tenant: Slug = None,
        project: ProjectSlug = None,
        key: UUID | None = None,
        model: str | None = None,
        since: Since = None,
        until: Until = None,
        time_zone: Annotated[str, Parameter(description="zone of `day`")] = "UTC",
        format_: Annotated[Literal["json", "csv"], Parameter(query="format")] = "json",
    ) -> Response[SpendReportOut] | Response[str]:
        query = CallQuery(tenant=tenant, project=project, key=key, model=model, since=since, until=until)
        groups, report = await desk_of_reports.spend(who, group_by, query, time_zone)
        headers = {"Cache-Control": "no-store"}
        if format_ == "json":
            return Response(report, headers=headers)
        name = f"spend-{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%SZ}.csv"
        headers |= {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(as_csv(groups, report), media_type="text/csv; charset=utf-8", headers=headers)

    @get("/models", summary="List base models", sync_to_thread=False)
    def models(self, desk_of_reports: ReportDesk, who: Principal) -> Page[ModelOut]:  # noqa: ARG002
        return desk_of_reports.models()

    @get("/plans", summary="List plans", sync_to_thread=False)
    def plans(self, desk_of_reports: ReportDesk, who: Principal) -> Page[PlanOut]:  # noqa: ARG002
        return desk_of_reports.plans()
