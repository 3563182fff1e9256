"""Corrections of money after the fact, each audited: refunds of ceilings, singly or for an incident, and
costs priced again.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

from litestar import Controller, get, post
from msgspec import Struct

from proxy.domain.control import CallFilter, Correction, PaidRecord
from proxy.domain.ledger import EntryKind, State
from proxy.policyfile.repricing import Explained, Paid, explain
from proxy.web.admin.access import Principal
from proxy.web.admin.calls import CallQuery, call_filter
from proxy.web.admin.core import Office, record
from proxy.web.admin.problems import conflict, invalid, not_found
from proxy.web.desk_schemas import CorrectedOut, ExplainedOut, RefundIn, ReleaseIn, RepriceIn
from proxy.web.schemas import nanos, usd

_AT_ONCE = 500
#: longest time of one request, days
SPAN_DAYS_MAX = 400


class _Audited(Struct):
    """What the trail keeps of one batch."""

    reason: str
    attempts: int
    amount_usd: str


@dataclass(slots=True)
class _Tally:
    found: int = 0
    corrected: int = 0
    already: int = 0
    unexplained: int = 0
    amount: int = 0

    def out(self, *, dry_run: bool) -> CorrectedOut:
        return CorrectedOut(
            found=self.found, corrected=self.corrected, already=self.already, unexplained=self.unexplained,
            amount_usd=usd(self.amount), dry_run=dry_run,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class CorrectionDesk:
    """Only administrators of all tenants come to this desk."""

    office: Office

    async def refund(self, who: Principal, attempt: UUID, body: RefundIn) -> CorrectedOut:
        """Lower one CEILING. Raises a 409 `Problem` when the bank refuses."""
        who.need_all_tenants()
        amount = nanos(body.amount_usd)
        if amount <= 0:
            raise invalid("amount_usd", "a refund is more than 0")
        async with self.office.store.writing() as db:
            found = await db.paid_one(attempt, None)
            if found is None:
                raise not_found("call")
            paid, state = found
            if state != "CEILING":
                raise conflict(f"only a CEILING is refunded; this call ended as {state}")
            entry = _refund(paid, amount, body.reason)
            [answer] = await db.correct([entry])
            if answer == 4:
                raise conflict(f"more than the {usd(paid.cost)} USD that it was charged")
            tally = _Tally(found=1)
            _count(tally, [entry], [answer])
            await record(db, who, "call.refund", f"call:{attempt}", after=_audited(body.reason, tally))
        return tally.out(dry_run=False)

    async def release(self, who: Principal, body: ReleaseIn) -> CorrectedOut:
        """Refund every CEILING of an incident, but for `keep_share` of it. The incident's name is the
        evidence: doing it again does nothing.
        """
        who.need_all_tenants()
        keep = Decimal(body.keep_share)
        if keep >= 1:
            raise invalid("keep_share", "to keep all of it is no refund")

        def judge(paid: PaidRecord) -> Correction | None:
            amount = int(paid.cost * (1 - keep))
            return _refund(paid, amount, f"incident {body.incident}") if amount > 0 else None

        where = await self._where(who, body, State.CEILING)
        return await self._each(who, "ceilings.release", body.incident, where, body, judge)

    async def reprice(self, who: Principal, body: RepriceIn) -> CorrectedOut:
        """Charge what the price book of today says about the time of each call."""
        who.need_all_tenants()
        policies: Any = self.office.policies()

        def judge(paid: PaidRecord) -> Correction | None:
            found = explain(policies, _as_paid(paid))
            if found is None:
                return None
            moved = found.cost - paid.cost
            if moved == 0:
                return _NOTHING
            upstream = 0 if found.upstream_free else max(moved, -paid.upstream_cost)
            return Correction(
                attempt=paid.attempt, kind=EntryKind.ADJUST, amount=moved, upstream_amount=upstream,
                evidence=f"prices {found.version} of {policies.version}, entry {paid.extra_entries + 1}",
            )  # fmt: skip

        where = await self._where(who, body, State.POST)
        return await self._each(who, "prices.recalculate", body.reason, where, body, judge)

    async def explain(self, who: Principal, attempt: UUID) -> ExplainedOut:
        """The arithmetic of one call's cost, by the book that is in force now."""
        async with self.office.store.reading() as db:
            found = await db.paid_one(attempt, who.tenant)
        if found is None:
            raise not_found("call")
        paid, state = found
        if state != "POST":
            raise conflict(f"this call ended as {state}; its cost is no sum of usage and prices")
        policies: Any = self.office.policies()
        explained: Explained | None = explain(policies, _as_paid(paid))
        return ExplainedOut(
            attempt=attempt, model=paid.model, target=paid.target, cost_usd=usd(paid.cost),
            adjusted_usd=usd(paid.adjusted), price_version=paid.version,
            tier=explained.tier if explained else None, latency=explained.latency if explained else None,
            lines=list(explained.lines) if explained else [],
            book_cost_usd=usd(explained.cost) if explained else None,
            book_version=explained.version if explained else None,
        )  # fmt: skip

    async def _where(self, who: Principal, body: ReleaseIn | RepriceIn, outcome: State) -> CallFilter:
        if body.until - body.since > dt.timedelta(days=SPAN_DAYS_MAX) or body.until <= body.since:
            raise invalid("until", f"until is after since, by at most {SPAN_DAYS_MAX} days")
        query = CallQuery(
            tenant=body.tenant, model=body.model, outcome=outcome.name, since=body.since, until=body.until  # type: ignore[arg-type]
        )  # fmt: skip
        async with self.office.store.reading() as db:
            return await call_filter(db, who, query)

    async def _each(
        self, who: Principal, action: str, reason: str, where: CallFilter, body: ReleaseIn | RepriceIn,
        judge: Callable[[PaidRecord], Correction | None],
    ) -> CorrectedOut:  # fmt: skip
        """In batches, each with its audit record in one transaction; what was done stays done."""
        tally, after = _Tally(), None
        while True:
            async with self.office.store.writing() as db:
                batch = await db.paid(where, target=body.target, after=after, limit=_AT_ONCE)
                judged = [judge(paid) for paid in batch]
                entries = [one for one in judged if one is not None and one is not _NOTHING]
                tally.found += len(batch)
                tally.unexplained += judged.count(None)
                if body.dry_run:
                    tally.corrected += len(entries)
                    tally.amount += sum(one.amount for one in entries)
                elif entries:
                    part = _Tally()
                    _count(part, entries, await db.correct(entries))
                    if part.corrected:
                        await record(db, who, action, "ledger", after=_audited(reason, part))
                    tally.corrected += part.corrected
                    tally.already += part.already
                    tally.amount += part.amount
            if len(batch) < _AT_ONCE:
                return tally.out(dry_run=body.dry_run)
            after = batch[-1].attempt


_NOTHING = Correction(
    attempt=UUID(int=0), kind=EntryKind.ADJUST, amount=0, upstream_amount=0, evidence="nothing to do"
)


def _refund(paid: PaidRecord, amount: int, evidence: str) -> Correction:
    return Correction(
        attempt=paid.attempt, kind=EntryKind.REFUND, amount=-amount,
        upstream_amount=-min(amount, paid.upstream_cost), evidence=evidence[:200],
    )  # fmt: skip


def _as_paid(paid: PaidRecord) -> Paid:
    return Paid(
        model=paid.model, target=paid.target, usage=paid.usage, cost=paid.cost - paid.adjusted,
        version=paid.version, at=paid.admitted_at.timestamp(),
    )  # fmt: skip


def _count(tally: _Tally, entries: list[Correction], answers: list[int]) -> None:
    for entry, answer in zip(entries, answers, strict=True):
        tally.corrected += answer == 0
        tally.already += answer == 1
        tally.unexplained += answer not in (0, 1)
        tally.amount += entry.amount if answer == 0 else 0


def _audited(reason: str, tally: _Tally) -> _Audited:
    return _Audited(reason=reason, attempts=tally.corrected, amount_usd=usd(tally.amount))


class CorrectionController(Controller):
    path = "/"
    tags = ("corrections",)

    @get("/calls/{attempt:uuid}/price", summary="Show the arithmetic of a call's cost")
    async def explain(
        self, desk_of_corrections: CorrectionDesk, who: Principal, attempt: UUID
    ) -> ExplainedOut:
        return await desk_of_corrections.explain(who, attempt)

    @post(
        "/calls/{attempt:uuid}/refund", status_code=200, summary="Lower a call that was charged its ceiling"
    )
    async def refund(
        self, desk_of_corrections: CorrectionDesk, who: Principal, attempt: UUID, data: RefundIn
    ) -> CorrectedOut:
        return await desk_of_corrections.refund(who, attempt, data)

    @post("/ceilings/release", status_code=200, summary="Refund the ceilings of an incident")
    async def release(
        self, desk_of_corrections: CorrectionDesk, who: Principal, data: ReleaseIn
    ) -> CorrectedOut:
        return await desk_of_corrections.release(who, data)

    @post("/prices/recalculate", status_code=200, summary="Price resolved calls again")
    async def reprice(
        self, desk_of_corrections: CorrectionDesk, who: Principal, data: RepriceIn
    ) -> CorrectedOut:
        return await desk_of_corrections.reprice(who, data)
