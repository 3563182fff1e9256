"""`/budgets`: money per calendar period, and adjustments to it. Reads show the bank's own rows."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

from litestar import Controller, Response, delete, get, patch, post

from proxy.clock import uuid7
from proxy.domain.control import AdjustmentRecord, BudgetRecord, NewBudget
from proxy.web.admin import paging
from proxy.web.admin.access import Principal, of_own_tenant
from proxy.web.admin.core import (
    PAGE,
    Cursor,
    IfMatch,
    Limit,
    Office,
    Page,
    aware,
    expected,
    given,
    record,
    shown,
    utc,
    utc_or_none,
)
from proxy.web.admin.limits import ScopeFilter, TenantFilter, filters, may_govern, own_scope
from proxy.web.admin.problems import invalid
from proxy.web.admin.store import Session
from proxy.web.schemas import (
    USD_MAX,
    AdjustmentIn,
    AdjustmentOut,
    BudgetIn,
    BudgetOut,
    BudgetPatch,
    OnShort,
    Period,
    nanos,
    usd,
)


@dataclass(frozen=True, slots=True)
class BudgetDesk:
    office: Office

    async def create(self, who: Principal, body: BudgetIn) -> tuple[BudgetOut, int]:
        """It starts at 0 now; money spent before is no concern of it."""
        new = NewBudget(
            period=body.period,
            limit_nano=_money("limit_usd", body.limit_usd),
            models=self.office.known_models(body.models),
            on_short=body.on_short,
            floor_output_tokens=body.floor_output_tokens,
            thresholds=_thresholds(body.thresholds),
        )
        async with self.office.store.writing() as db:
            scope = await own_scope(db, who, body.scope)
            may_govern(who, scope.kind)
            made = await db.insert_budget(uuid7(), scope, new)
            out = budget_out(made)
            await record(db, who, "budget.create", f"budget:{made.id}", after=out)
        return out, made.version

    async def read(self, who: Principal, ident: UUID) -> tuple[BudgetOut, int]:
        async with self.office.store.reading() as db:
            found = await _own_budget(db, who, ident)
        return budget_out(found), found.version

    async def list(
        self, who: Principal, scope: str | None, tenant: str | None, limit: int, cursor: str | None
    ) -> Page[BudgetOut]:
        after = paging.decode_id(cursor)
        async with self.office.store.reading() as db:
            tenant_id, subject = await filters(db, who, scope, tenant)
            found = await db.list_budgets(
                tenant=tenant_id,
                subjects=None if subject is None else [subject],
                after=after,
                limit=limit + 1,
            )
        return Page(
            items=[budget_out(row) for row in found[:limit]],
            next=paging.encode(str(found[limit - 1].id)) if len(found) > limit else None,
        )

    async def change(
        self, who: Principal, ident: UUID, body: BudgetPatch, version: int | None
    ) -> tuple[BudgetOut, int]:
        """What it has counted stays. A limit below that refuses new calls until the period ends."""
        changes: dict[str, Any] = given(body)
        if "limit_usd" in changes:
            changes["limit_nano"] = _money("limit_usd", changes.pop("limit_usd"))
        if "thresholds" in changes:
            changes["thresholds"] = _thresholds(changes["thresholds"])
        async with self.office.store.writing() as db:
            before = await self._locked(db, who, ident, version)
            after = await db.update_budget(ident, changes)
            out = budget_out(after)
            await record(db, who, "budget.change", f"budget:{ident}", before=budget_out(before), after=out)
        return out, after.version

    async def delete(self, who: Principal, ident: UUID, version: int | None) -> None:
        async with self.office.store.writing() as db:
            before = await self._locked(db, who, ident, version)
            await db.delete_budget(ident)
            await record(db, who, "budget.delete", f"budget:{ident}", before=budget_out(before))

    async def adjust(self, who: Principal, ident: UUID, body: AdjustmentIn) -> AdjustmentOut:
        amount = _money("amount_usd", body.amount_usd)
        if amount == 0:
            raise invalid("amount_usd", "an adjustment of 0 changes nothing")
        until = aware("until", body.until)
        if until is not None and until.timestamp() <= self.office.clock():
            raise invalid("until", "until is not in the future")
        async with self.office.store.writing() as db:
            await self._locked(db, who, ident, None)
            made = await db.insert_adjustment(ident=uuid7(), budget=ident, amount=amount, until=until, reason=body.reason,
                actor=f"{who.role}:{who.name}",
            )  # fmt: skip
            out = adjustment_out(made)
            await record(db, who, "budget.adjust", f"budget:{ident}", after=out)
        return out

    async def adjustments(
        self, who: Principal, ident: UUID, limit: int, cursor: str | None
    ) -> Page[AdjustmentOut]:
        after = paging.decode_id(cursor)
        async with self.office.store.reading() as db:
            await _own_budget(db, who, ident)
            found = await db.list_adjustments(ident, after=after, limit=limit + 1)
        return Page(
            items=[adjustment_out(row) for row in found[:limit]],
            next=paging.encode(str(found[limit - 1].id)) if len(found) > limit else None,
        )

    async def _locked(self, db: Session, who: Principal, ident: UUID, version: int | None) -> BudgetRecord:
        await _own_budget(db, who, ident)
        found = await db.lock_budget(ident, version=version)
        may_govern(who, found.scope.partition(":")[0])
        return found


async def _own_budget(db: Session, who: Principal, ident: UUID) -> BudgetRecord:
    """Raises `MissingError`, also for another tenant's budget."""
    found = await db.get_budget(ident)
    of_own_tenant(who, found.tenant, "budget")
    return found


def _money(field: str, text: str) -> int:
    amount = nanos(text)
    if abs(amount) > USD_MAX * 1_000_000_000:
        raise invalid(field, f"{field} is more than {USD_MAX:,} USD")
    return amount


def _thresholds(shares: list[str]) -> list[str]:
    """Ascending and each once, in the spelling they were given. Raises a 400 `Problem` for 0."""
    unique = {Decimal(share): share for share in shares}
    if Decimal(0) in unique:
        raise invalid("thresholds", "a threshold of 0 is always crossed")
    return [unique[value] for value in sorted(unique)]


def budget_out(row: BudgetRecord) -> BudgetOut:
    return BudgetOut(
        id=row.id,
        scope=row.scope,
        period=cast("Period", row.period),
        time_zone=row.time_zone,
        limit_usd=usd(row.limit_nano),
        effective_limit_usd=usd(row.effective_nano),
        settled_usd=usd(row.settled),
        reserved_usd=usd(row.reserved),
        overrun_usd=usd(row.overrun),
        remaining_usd=usd(row.remaining),
        period_start=utc_or_none(row.starts_at),
        resets_at=utc_or_none(row.ends_at),
        models=row.models,
        on_short=cast("OnShort", row.on_short),
        floor_output_tokens=row.floor_output_tokens,
        thresholds=row.thresholds,
        origin=row.origin,
        created_at=utc(row.created_at),
    )


def adjustment_out(row: AdjustmentRecord) -> AdjustmentOut:
    return AdjustmentOut(
        id=row.id,
        budget=row.budget,
        amount_usd=usd(row.amount),
        until=utc_or_none(row.until),
        reason=row.reason,
        created_at=utc(row.created_at),
        created_by=row.actor,
    )


class BudgetController(Controller):
    path = "/budgets"
    tags = ("budgets",)

    @post(summary="Make a budget")
    async def create(
        self, desk_of_budgets: BudgetDesk, who: Principal, data: BudgetIn
    ) -> Response[BudgetOut]:
        out, version = await desk_of_budgets.create(who, data)
        return shown(out, version, status=201, location=f"/admin/v1/budgets/{out.id}")

    @get(summary="List budgets as the bank has them now")
    async def list(
        self,
        desk_of_budgets: BudgetDesk,
        who: Principal,
        scope_: ScopeFilter = None,
        tenant: TenantFilter = None,
        limit: Limit = PAGE,
        cursor: Cursor = None,
    ) -> Page[BudgetOut]:
        return await desk_of_budgets.list(who, scope_, tenant, limit, cursor)

    @get("/{ident:uuid}", summary="Show a budget as the bank has it now")
    async def read(self, desk_of_budgets: BudgetDesk, who: Principal, ident: UUID) -> Response[BudgetOut]:
        return shown(*await desk_of_budgets.read(who, ident))

    @patch("/{ident:uuid}", summary="Change a budget: limit, thresholds, on_short, its floor")
    async def change(
        self,
        desk_of_budgets: BudgetDesk,
        who: Principal,
        ident: UUID,
        data: BudgetPatch,
        if_match: IfMatch = None,
    ) -> Response[BudgetOut]:
        return shown(*await desk_of_budgets.change(who, ident, data, expected(if_match)))

    @delete("/{ident:uuid}", summary="End a budget; running calls still settle on it")
    async def remove(
        self, desk_of_budgets: BudgetDesk, who: Principal, ident: UUID, if_match: IfMatch = None
    ) -> None:
        await desk_of_budgets.delete(who, ident, expected(if_match))

    @post("/{ident:uuid}/adjustments", summary="Add to the limit, for this period or until a time")
    async def adjust(
        self, desk_of_budgets: BudgetDesk, who: Principal, ident: UUID, data: AdjustmentIn
    ) -> AdjustmentOut:
        return await desk_of_budgets.adjust(who, ident, data)

    @get("/{ident:uuid}/adjustments", summary="List adjustments")
    async def adjustments(
        self,
        desk_of_budgets: BudgetDesk,
        who: Principal,
        ident: UUID,
        limit: Limit = PAGE,
        cursor: Cursor = None,
    ) -> Page[AdjustmentOut]:
        return await desk_of_budgets.adjustments(who, ident, limit, cursor)
