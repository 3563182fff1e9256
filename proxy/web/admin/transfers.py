"""`/transfers`: money from one budget's current period to another's, in one transaction."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from litestar import Controller, post

from proxy.clock import uuid7
from proxy.domain.control import BudgetRecord
from proxy.web.admin.access import Principal, of_own_tenant
from proxy.web.admin.budgets import adjustment_out
from proxy.web.admin.core import Office, record
from proxy.web.admin.limits import may_govern
from proxy.web.admin.problems import conflict, invalid
from proxy.web.admin.store import Session
from proxy.web.desk_schemas import TransferIn, TransferOut
from proxy.web.schemas import nanos, usd


@dataclass(frozen=True, slots=True)
class TransferDesk:
    office: Office

    async def transfer(self, who: Principal, body: TransferIn) -> TransferOut:
        """Never more than the source has left; both ends are adjustments of their own."""
        amount = nanos(body.amount_usd)
        if amount <= 0:
            raise invalid("amount_usd", "a transfer moves more than 0")
        if body.source == body.target:
            raise invalid("target", "source and target are the same budget")
        async with self.office.store.writing() as db:
            for ident in sorted((body.source, body.target)):
                await _own(db, who, ident)
                found = await db.lock_budget(ident, version=None)
                may_govern(who, found.scope.partition(":")[0])
            await db.lock_accounts((body.source, body.target))
            source, target = await db.get_budget(body.source), await db.get_budget(body.target)
            if source.remaining < amount:
                raise conflict(f"{source.scope} has {usd(source.remaining)} USD left in this period")
            made = [
                await db.insert_adjustment(
                    ident=uuid7(), budget=budget.id, amount=moved, until=None, reason=reason,
                    actor=f"{who.role}:{who.name}",
                )
                for budget, moved, reason in (
                    (source, -amount, f"to {target.scope}: {body.reason}"[:500]),
                    (target, amount, f"from {source.scope}: {body.reason}"[:500]),
                )
            ]  # fmt: skip
            out = TransferOut(source=adjustment_out(made[0]), target=adjustment_out(made[1]))
            await record(db, who, "budget.transfer", f"budget:{source.id}", after=out)
        return out


async def _own(db: Session, who: Principal, ident: UUID) -> BudgetRecord:
    found = await db.get_budget(ident)
    of_own_tenant(who, found.tenant, "budget")
    return found


class TransferController(Controller):
    path = "/transfers"
    tags = ("budgets",)

    @post(summary="Move money from one budget's current period to another's")
    async def transfer(
        self, desk_of_transfers: TransferDesk, who: Principal, data: TransferIn
    ) -> TransferOut:
        return await desk_of_transfers.transfer(who, data)
