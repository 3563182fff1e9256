"""The store of the control plane: what its desks ask for, over this package's functions.

A session is one connection. Those of `writing` are one transaction, which commits when the block ends
well. All raise `BankAway` when Postgres does not answer or is too busy.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from proxy.domain.control import (
    AdjustmentRecord,
    AdminRecord,
    BudgetRecord,
    CallFilter,
    CallRecord,
    EntryRecord,
    KeyRecord,
    LimitRecord,
    NewBudget,
    NewCredential,
    ProjectRecord,
    ScopeRef,
    TenantRecord,
    TrailRecord,
)
from proxy.postgres import admins, budgets, control, issued, ledger, limits, records, scopes, tenants
from proxy.postgres.desk import DeskSession
from proxy.postgres.records import RefusalKey
from proxy.postgres.repeats import PostgresRepeats


class Session(DeskSession):
    """One connection with every question of the control plane; see the functions behind them."""

    # -- Tenants and projects -------------------------------------------------------------

    async def insert_tenant(
        self, *, ident: UUID, slug: str, name: str, plan: str, time_zone: str, overrides: Mapping[str, Any]
    ) -> TenantRecord:
        return await tenants.insert_tenant(
            self._db, id=ident, slug=slug, name=name, plan=plan, time_zone=time_zone, overrides=overrides
        )

    async def get_tenant(self, slug: str, *, lock: bool = False) -> TenantRecord:
        return await tenants.get_tenant(self._db, slug, lock=lock)

    async def list_tenants(
        self, *, after: str | None, limit: int, only: UUID | None = None
    ) -> list[TenantRecord]:
        return await tenants.list_tenants(self._db, after=after, limit=limit, only=only)

    async def update_tenant(
        self, before: TenantRecord, changes: Mapping[str, Any], *, version: int | None
    ) -> TenantRecord:
        return await tenants.update_tenant(self._db, before, changes, version=version)

    async def insert_project(
        self, *, ident: UUID, tenant: TenantRecord, slug: str, name: str
    ) -> ProjectRecord:
        return await tenants.insert_project(self._db, id=ident, tenant=tenant, slug=slug, name=name)

    async def get_project(self, tenant: str, slug: str) -> ProjectRecord:
        return await tenants.get_project(self._db, tenant, slug)

    async def list_projects(self, tenant: UUID, *, after: str | None, limit: int) -> list[ProjectRecord]:
        return await tenants.list_projects(self._db, tenant, after=after, limit=limit)

    # -- Keys and credentials -------------------------------------------------------------

    async def insert_key(
        self,
        *,
        ident: UUID,
        tenant: UUID,
        project: UUID | None,
        name: str,
        expires_at: dt.datetime | None,
        overrides: Mapping[str, Any],
    ) -> None:
        await issued.insert_key(
            self._db,
            id=ident,
            tenant=tenant,
            project=project,
            name=name,
            expires_at=expires_at,
            overrides=overrides,
        )

    async def insert_credential(self, key: UUID, new: NewCredential) -> None:
        await issued.insert_credential(self._db, key, new)

    async def get_key(self, ident: UUID, *, lock: bool = False) -> KeyRecord:
        return await issued.get_key(self._db, ident, lock=lock)

    async def list_keys(
        self, *, tenant: UUID | None, project: UUID | None, status: str | None, after: UUID | None, limit: int
    ) -> list[KeyRecord]:
        return await issued.list_keys(
            self._db, tenant=tenant, project=project, status=status, after=after, limit=limit
        )

    async def update_key(
        self, before: KeyRecord, changes: Mapping[str, Any], *, version: int | None
    ) -> KeyRecord:
        return await issued.update_key(self._db, before, changes, version=version)

    async def retire_credentials(self, key: UUID, grace: dt.timedelta) -> None:
        await issued.retire_credentials(self._db, key, grace)

    async def revoke_credentials(self, key: UUID) -> None:
        await issued.revoke_credentials(self._db, key)

    # -- Scopes ---------------------------------------------------------------------------

    async def resolve_scope(self, name: str) -> ScopeRef:
        return await scopes.resolve(self._db, name)

    # -- Limits ---------------------------------------------------------------------------

    async def insert_limit(self, ident: UUID, scope: ScopeRef, values: Mapping[str, Any]) -> LimitRecord:
        return await limits.insert_limit(self._db, ident, scope, values)

    async def get_limit(self, ident: UUID, *, lock: bool = False) -> LimitRecord:
        return await limits.get_limit(self._db, ident, lock=lock)

    async def list_limits(
        self, *, tenant: UUID | None, subject: UUID | None, after: UUID | None, limit: int
    ) -> list[LimitRecord]:
        return await limits.list_limits(self._db, tenant=tenant, subject=subject, after=after, limit=limit)

    async def update_limit(
        self, before: LimitRecord, changes: Mapping[str, Any], *, version: int | None
    ) -> LimitRecord:
        return await limits.update_limit(self._db, before, changes, version=version)

    async def delete_limit(self, before: LimitRecord, *, version: int | None) -> None:
        await limits.delete_limit(self._db, before, version=version)

    # -- Budgets --------------------------------------------------------------------------

    async def insert_budget(self, ident: UUID, scope: ScopeRef, new: NewBudget) -> BudgetRecord:
        return await budgets.insert_budget(self._db, ident, scope, new)

    async def get_budget(self, ident: UUID) -> BudgetRecord:
        return await budgets.get_budget(self._db, ident)

    async def lock_budget(self, ident: UUID, *, version: int | None) -> BudgetRecord:
        return await budgets.lock_budget(self._db, ident, version=version)

    async def list_budgets(
        self,
        *,
        tenant: UUID | None = None,
        subjects: Sequence[UUID] | None = None,
        after: UUID | None = None,
        limit: int,
    ) -> list[BudgetRecord]:
        return await budgets.list_budgets(
            self._db, tenant=tenant, subjects=subjects, after=after, limit=limit
        )

    async def update_budget(self, ident: UUID, changes: Mapping[str, Any]) -> BudgetRecord:
        return await budgets.update_budget(self._db, ident, changes)

    async def delete_budget(self, ident: UUID) -> None:
        await budgets.delete_budget(self._db, ident)

    async def insert_adjustment(
        self, *, ident: UUID, budget: UUID, amount: int, until: dt.datetime | None, reason: str, actor: str
    ) -> AdjustmentRecord:
        return await budgets.insert_adjustment(
            self._db, ident=ident, budget=budget, amount=amount, until=until, reason=reason, actor=actor
        )

    async def list_adjustments(
        self, budget: UUID, *, after: UUID | None, limit: int
    ) -> list[AdjustmentRecord]:
        return await budgets.list_adjustments(self._db, budget, after=after, limit=limit)

    async def materialise(self, ident: UUID, scope: ScopeRef, new: NewBudget) -> UUID | None:
        return await budgets.materialise(self._db, ident, scope, new)

    # -- Administrators -------------------------------------------------------------------

    async def insert_admin(
        self, *, ident: UUID, name: str, role: str, tenant: UUID | None, digest: bytes, pepper_id: int
    ) -> AdminRecord:
        return await admins.insert_admin(
            self._db,
            ident=ident,
            name=name,
            role=role,
            tenant=tenant,
            digest=digest,
            pepper_id=pepper_id,
        )

    async def get_admin(self, ident: UUID) -> AdminRecord:
        return await admins.get_admin(self._db, ident)

    async def find_admin(self, digests: Sequence[bytes]) -> AdminRecord | None:
        return await admins.find_admin(self._db, digests)

    async def list_admins(self, *, after: UUID | None, limit: int) -> list[AdminRecord]:
        return await admins.list_admins(self._db, after=after, limit=limit)

    async def revoke_admin(self, ident: UUID) -> AdminRecord:
        return await admins.revoke_admin(self._db, ident)

    # -- Refusals and the audit trail -----------------------------------------------------

    async def refusals(
        self,
        group_by: Sequence[RefusalKey],
        *,
        tenant: UUID | None,
        since: dt.datetime | None,
        until: dt.datetime | None,
        limit: int,
    ) -> list[dict[str, Any]]:
        return await records.refusals(
            self._db, group_by, tenant=tenant, since=since, until=until, limit=limit
        )

    async def trail(self, *, thing: str | None, before: int | None, limit: int) -> list[TrailRecord]:
        return await records.trail(self._db, thing=thing, before=before, limit=limit)

    async def trail_first_bad(self) -> int | None:
        return await records.trail_first_bad(self._db)

    async def audit(
        self,
        actor: str,
        action: str,
        thing: str,
        *,
        before: Mapping[str, Any] | None,
        after: Mapping[str, Any] | None,
    ) -> None:
        await control.audit(self._db, actor, action, thing, before=before, after=after)

    async def knows_time_zone(self, name: str) -> bool:
        found = "SELECT EXISTS (SELECT FROM pg_timezone_names WHERE name = :name)"
        return bool(await self._db.scalar(text(found), {"name": name}))

    async def time_zone_of(self, tenant: UUID) -> str:
        found = await self._db.scalar(text("SELECT time_zone FROM tenants WHERE id = :id"), {"id": tenant})
        return str(found or "UTC")


class PostgresControl:
    """The store itself. `repeats` keeps answers to idempotent requests."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._ledger = ledger.PostgresLedger(engine)
        self.repeats = PostgresRepeats(engine)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Session]:
        async with control.reading(self._engine) as db:
            yield Session(db)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Session]:
        async with control.writing(self._engine) as db:
            yield Session(db)

    async def calls(self, where: CallFilter, *, limit: int, before: UUID | None) -> list[CallRecord]:
        """Newest first; `before` is the last attempt of the page before."""
        found = await self._ledger.calls(_filter(where), limit=limit, before=before)
        return [_call(row) for row in found]

    async def call(
        self, attempt: UUID, *, tenant: UUID | None
    ) -> tuple[CallRecord, list[EntryRecord]] | None:
        """One attempt, when it is `tenant`'s (or anybody's, for None), with every entry about its money, the
        terminal one first: both of one moment.
        """
        found = await self._ledger.call_with_entries(attempt, tenant=tenant)
        if found is None:
            return None
        return _call(found[0]), [
            EntryRecord(kind=row.kind, amount=row.amount, why=row.why, at=row.at, evidence=row.evidence)
            for row in found[1]
        ]

    async def spend(
        self, group_by: Sequence[str], where: CallFilter, *, zone: str, limit: int
    ) -> list[dict[str, Any]]:
        """Resolved attempts summed by `group_by`, the dearest group first; days are days of `zone`."""
        keys = cast("Sequence[ledger.SpendKey]", group_by)
        return await self._ledger.spend(keys, _filter(where), zone=zone, limit=limit)


def _filter(where: CallFilter) -> ledger.CallFilter:
    return ledger.CallFilter(**{name: getattr(where, name) for name in CallFilter.__dataclass_fields__})


def _call(row: ledger.CallRecord) -> CallRecord:
    return CallRecord(**{name: getattr(row, name) for name in CallRecord.__dataclass_fields__})
