"""`/reports/spend` as JSON, CSV or FOCUS, and `/models` and `/plans`: what was bought, what can be."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import UUID
from zoneinfo import available_timezones

from litestar import Controller, Response, get
from litestar.openapi import ResponseSpec
from litestar.params import Parameter
from msgspec import UNSET

from proxy.domain.control import CallFilter
from proxy.domain.ledger import Operation, State
from proxy.domain.reporting import GROUPS, TAG
from proxy.web.admin.access import Principal
from proxy.web.admin.calls import CallQuery, ProjectSlug, Since, Slug, Until, call_filter
from proxy.web.admin.core import Office, Page
from proxy.web.admin.exports import FOCUS_COLUMNS, FOCUS_GROUPS, as_csv, focus_rows
from proxy.web.admin.problems import Problem, invalid
from proxy.web.admin.shapes import ModelOut, PlanOut, SpendOut, SpendReportOut
from proxy.web.admin.store import Session
from proxy.web.schemas import OutcomeName, usd

ROWS_MAX = 10_000
#: files may be longer; a longer one is refused, never cut
FILE_ROWS_MAX = 300_000
#: days of a zone that is not the tenants' own are summed from the ledger, over at most so many days
OTHER_ZONE_DAYS = 92
MONEY = ("cost", "upstream_cost", "saved")
COUNTS = ("attempts", "hits", "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
_TAG = re.compile(r"tag:[^&=,\x00-\x1f]{1,256}")


@dataclass(frozen=True, slots=True)
class ReportDesk:
    office: Office

    async def spend(
        self, who: Principal, group_by: str, query: CallQuery, time_zone: str | None, most: int = ROWS_MAX
    ) -> tuple[tuple[str, ...], SpendReportOut]:
        """The report, and the columns it is grouped by. The dearest group comes first."""
        groups = groups_of(group_by)
        if time_zone is not None and time_zone not in available_timezones():
            raise invalid("time_zone", f"there is no time zone {time_zone!r} in the IANA database")
        async with self.office.store.reading() as db:
            where = await call_filter(db, who, query)
            foreign = "day" in groups and time_zone is not None
            if not foreign or set((await db.time_zones(where.tenant)).values()) <= {time_zone}:
                return groups, await spend_report(db, groups, where, most)
        return groups, await self._of_another_zone(groups, where, str(time_zone), most)

    async def _of_another_zone(
        self, groups: tuple[str, ...], where: CallFilter, zone: str, most: int
    ) -> SpendReportOut:
        """From the ledger itself, one row at a time."""
        wide = where.since is None or where.until is None
        if where.since is None or where.until is None or (where.until - where.since).days > OTHER_ZONE_DAYS:
            told = "give since and until" if wide else f"at most {OTHER_ZONE_DAYS} days"
            raise invalid("time_zone", f"days of another zone than the tenants' own: {told}, or leave it out")
        known = ("tenant", "project", "key", "model", "day", "outcome", "operation", "tags")
        if not set(groups) <= set(known):
            raise invalid("time_zone", f"with days of another zone, group_by takes {', '.join(known)}")
        rows = await self.office.store.spend(groups, where, zone=zone, limit=most + 1)
        total = sum(row["cost"] for row in rows)
        return _report(groups, [row | {"total": total} for row in rows], most)

    async def focus(self, who: Principal, query: CallQuery) -> str:
        """Every charge of the range, a row per day. Raises a 400 `Problem` when there are too many."""
        async with self.office.store.reading() as db:
            where = await call_filter(db, who, query)
            rows = await db.usage(FOCUS_GROUPS, where, limit=FILE_ROWS_MAX + 1)
            zones = await db.time_zones(where.tenant)
        if len(rows) > FILE_ROWS_MAX:
            raise _too_long()
        charges = focus_rows((row for row in rows if row["attempts"]), zones, self.office.policies().models)
        return as_csv(FOCUS_COLUMNS, charges)

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


def groups_of(group_by: str) -> tuple[str, ...]:
    """Names separated by commas, each once. Raises a 400 `Problem` for any other."""
    names = tuple(dict.fromkeys(name.strip() for name in group_by.split(",") if name.strip()))
    tags = [name for name in names if name.startswith(TAG)]
    wrong = [name for name in names if name not in GROUPS and not _TAG.fullmatch(name)]
    if wrong or not names or len(tags) > 1:
        raise invalid(
            "group_by", f"group_by takes {', '.join(GROUPS)} and one tag:<name>, with commas between"
        )
    # a project's slug says nothing without its tenant's
    return ("tenant", *names) if "project" in names and "tenant" not in names else names


def _too_long() -> Problem:
    return invalid("since", f"more than {FILE_ROWS_MAX:,} rows; ask for a shorter time or one tenant")


async def spend_report(
    db: Session, groups: tuple[str, ...], where: CallFilter, most: int = ROWS_MAX
) -> SpendReportOut:
    return _report(groups, await db.usage(groups, where, limit=most + 1), most)


def _report(groups: tuple[str, ...], rows: list[dict[str, Any]], most: int) -> SpendReportOut:
    return SpendReportOut(
        items=[_spend_out(groups, row) for row in rows[:most]],
        total_usd=usd(rows[0]["total"] if rows else 0),
        truncated=len(rows) > most,
    )


def _spend_out(groups: tuple[str, ...], row: dict[str, Any]) -> SpendOut:
    fields: dict[str, Any] = {"tag" if group.startswith(TAG) else group: str(row[group]) for group in groups}
    if "outcome" in fields:
        fields["outcome"] = State(int(fields["outcome"])).name
    if "operation" in fields:
        fields["operation"] = Operation(int(fields["operation"])).label
    fields |= {f"{name}_usd": usd(row[name]) for name in MONEY} | {name: row[name] for name in COUNTS}
    return SpendOut(**fields)


def _sheet(groups: tuple[str, ...], report: SpendReportOut) -> str:
    columns = [*groups, *(f"{name}_usd" for name in MONEY), *COUNTS]
    rows = (
        {c: _plain(getattr(item, "tag" if c.startswith(TAG) else c)) for c in columns}
        for item in report.items
    )
    return as_csv(columns, rows)


def _plain(value: object) -> object:
    return "" if value is UNSET else value


_REPORT = ResponseSpec(
    SpendReportOut,
    generate_examples=False,
    description="as JSON; with `format=csv` one line per group, with `format=focus` FOCUS 1.0 as CSV",
)


class ReportController(Controller):
    path = "/"
    tags = ("reports",)

    @get("/reports/spend", summary="Sum what resolved calls cost", responses={200: _REPORT})
    async def spend(
        self,
        desk_of_reports: ReportDesk,
        who: Principal,
        group_by: Annotated[
            str, Parameter(description=f"some of {', '.join(GROUPS)}, tag:<name>")
        ] = "tenant",
        tenant: Slug = None,
        project: ProjectSlug = None,
        key: UUID | None = None,
        model: str | None = None,
        outcome: OutcomeName | None = None,
        since: Since = None,
        until: Until = None,
        time_zone: Annotated[
            str | None, Parameter(description="zone of `day`; each tenant's own when absent")
        ] = None,
        format_: Annotated[Literal["json", "csv", "focus"], Parameter(query="format")] = "json",
    ) -> Response[SpendReportOut] | Response[str]:
        query = CallQuery(
            tenant=tenant, project=project, key=key, model=model, outcome=outcome, since=since, until=until
        )
        if format_ == "focus":
            return as_file("focus", await desk_of_reports.focus(who, query))
        most = ROWS_MAX if format_ == "json" else FILE_ROWS_MAX
        groups, report = await desk_of_reports.spend(who, group_by, query, time_zone, most)
        if format_ == "json":
            return Response(report, headers={"Cache-Control": "no-store"})
        if report.truncated:
            raise _too_long()
        return as_file("spend", _sheet(groups, report))

    @get("/models", summary="List base models", sync_to_thread=False)
    def models(self, desk_of_reports: ReportDesk, who: Principal) -> Page[ModelOut]:  # noqa: ARG002
        return desk_of_reports.models()

    @get("/plans", summary="List plans", sync_to_thread=False)
    def plans(self, desk_of_reports: ReportDesk, who: Principal) -> Page[PlanOut]:  # noqa: ARG002
        return desk_of_reports.plans()


def as_file(name: str, content: str) -> Response[str]:
    """A CSV for downloading."""
    name = f"{name}-{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%SZ}.csv"
    headers = {"Cache-Control": "no-store", "Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type="text/csv", headers=headers)
