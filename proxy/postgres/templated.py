"""Scopes whose budgets a changed plan has not reached yet."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import cast
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from proxy.domain.control import NewBudget, ScopeKind, ScopeRef
from proxy.postgres import budgets
from proxy.postgres.control import audit, reading, writing

#: one leader, by a lock that falls with the transaction
_LEAD = text("SELECT pg_try_advisory_xact_lock(7305804407)")
_SCOPES = text(
    """
    SELECT s.kind, s.name, s.subject, s.tenant, t.slug, t.time_zone, t.plan
      FROM tenants t
      JOIN unnest(CAST(:plans AS text[]), CAST(:kinds AS text[]), CAST(:origins AS text[])) AS w(plan, kind, origin)
        ON w.plan = t.plan
     CROSS JOIN LATERAL (
       SELECT 'tenant' AS kind, 'tenant:' || t.slug AS name, t.id AS subject, t.id AS tenant
       UNION ALL SELECT 'project', 'project:' || t.slug || '/' || p.slug, p.id, t.id
         FROM projects p WHERE p.tenant = t.id AND p.status <> 'deleted'
       UNION ALL SELECT 'key', 'key:' || k.id, k.id, t.id
         FROM keys k WHERE k.tenant = t.id AND k.status <> 'revoked') AS s
     WHERE t.status <> 'deleted' AND s.kind = w.kind
       AND NOT EXISTS (SELECT FROM budgets b WHERE b.scope = s.kind AND b.subject = s.subject AND b.origin = w.origin)
       AND s.subject > :after
     ORDER BY s.subject LIMIT :most
    """
)


class Written:
    """One transaction of the leader."""

    def __init__(self, db: AsyncConnection) -> None:
        self._db = db

    async def materialise(self, ident: UUID, scope: ScopeRef, new: NewBudget) -> UUID | None:
        made = await budgets.materialise(self._db, ident, scope, new)
        if made is not None:
            after = {
                "scope": scope.name,
                "period": new.period,
                "limit_nano": new.limit_nano,
                "origin": new.origin,
            }
            await audit(self._db, "worker", "budget.template", f"budget:{made}", after=after)
        return made


class PostgresTemplated:
    """Raises `BankAway`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def scopes(
        self, wanted: Sequence[tuple[str, str]], origins: Mapping[str, str], *, after: UUID, most: int
    ) -> list[tuple[str, ScopeRef]]:
        """Plan and scope of everything whose plan has templates for its kind (`wanted`: plan, kind) and that
        never had a budget of the plan's version (`origins`), by subject from the first after `after` on. One that had it and lost it is left alone.
        """
        values = {
            "plans": [plan for plan, _ in wanted], "kinds": [kind for _, kind in wanted],
            "origins": [origins[plan] for plan, _ in wanted], "after": after, "most": most,
        }  # fmt: skip
        async with reading(self._engine) as db:
            rows = (await db.execute(_SCOPES, values)).all()
        return [
            (
                row.plan,
                ScopeRef(
                    kind=cast("ScopeKind", row.kind), name=row.name, subject=row.subject, tenant=row.tenant,
                    tenant_slug=row.slug, time_zone=row.time_zone,
                ),
            )
            for row in rows
        ]  # fmt: skip

    @asynccontextmanager
    async def leading(self) -> AsyncIterator[Written | None]:
        """A transaction, or None while another worker leads."""
        async with writing(self._engine) as db:
            yield Written(db) if await db.scalar(_LEAD) else None
