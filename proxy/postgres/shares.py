"""How much of every live budget is spent, for rules. One short read a second and worker at most."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from proxy.domain.control import BudgetShare
from proxy.postgres.control import reading

_SHARES = text(
    """
    SELECT b.subject, (SELECT array_agg(l.value) FROM labels l WHERE l.id = ANY (b.models)) AS models,
           CASE WHEN c.limit <= 0 THEN 1.0 ELSE (a.settled + a.overrun)::double precision / c.limit END AS used
      FROM budgets b
      JOIN accounts a ON a.budget = b.id AND a.starts_at <= now() AND a.ends_at > now()
     CROSS JOIN LATERAL (
       SELECT limit_at(a.limit_target, a.boost_amounts, a.boost_untils, now()) AS limit) AS c
     WHERE b.deleted_at IS NULL
    """
)


class PostgresShares:
    """Raises `BankAway`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def shares(self) -> list[BudgetShare]:
        async with reading(self._engine) as db:
            rows = (await db.execute(_SHARES)).all()
        return [
            BudgetShare(
                subject=row.subject,
                models=None if row.models is None else frozenset(row.models),
                used=float(row.used),
            )
            for row in rows
        ]
