"""What the background worker reads of the bank for its gauges. Never locks a hot row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import asyncpg
from sqlalchemy import TextClause, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from proxy.errors import BankAway
from proxy.postgres.control import reading, sqlstate

_CANCELED = "57014"
_AWAY = (OSError, TimeoutError, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError)
_STANDINGS = text(
    """
    SELECT t.slug, b.scope, b.id::text, s.limit_nano, s.reserved, s.settled + s.overrun
      FROM budgets b JOIN tenants t ON t.id = b.tenant
      JOIN LATERAL budget_standing(ARRAY[b.id]) AS s ON true
     WHERE b.deleted_at IS NULL
     ORDER BY s.settled + s.reserved DESC LIMIT :most
    """
)
_OPEN = text(
    "SELECT count(*), coalesce(extract(epoch FROM now() - min(admitted_at)), 0)::double precision "
    "FROM attempts WHERE attempt >= (SELECT swept_to FROM sweep_mark) AND state = 0"
)
_BROKEN = text(
    "SELECT invariant, count(*) FROM check_invariants(date_trunc('month', now())) GROUP BY invariant"
)
_DAYS = text("SELECT partition_days_ahead()")
#: keys that nobody calls with any more may end unseen
_EXPIRING = text(
    """
    SELECT count(*) FILTER (WHERE expires_at <= now() + interval '1 day'),
           count(*) FILTER (WHERE expires_at <= now() + interval '7 days'), count(*)
      FROM keys k JOIN tenants t ON t.id = k.tenant
     WHERE k.status = 'active' AND t.status = 'active'
       AND expires_at > now() AND expires_at <= now() + interval '30 days'
       AND EXISTS (SELECT FROM usage_days u
                    WHERE u.tenant = k.tenant AND u.key = k.id AND u.day >= current_date - 7)
    """
)
_HEAD = text("SELECT seq, encode(hash, 'hex') FROM audit ORDER BY seq DESC LIMIT 1")


@dataclass(frozen=True, slots=True)
class BudgetStanding:
    """One budget's current period, nano-dollars."""

    tenant: str
    scope: str
    budget: str
    limit: int
    reserved: int
    settled: int


class Keeper:
    """Reads; raises `BankAway` when Postgres does not answer."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def standings(self, most: int) -> list[BudgetStanding]:
        """The budgets with the most committed money, at most so many."""
        return [BudgetStanding(*row) for row in await self._rows(_STANDINGS, most=most)]

    async def open_attempts(self) -> tuple[int, float]:
        """How many there are, and the age of the oldest in seconds."""
        count, age = (await self._rows(_OPEN))[0]
        return int(count), float(age)

    async def broken_invariants(self, seconds: float) -> dict[str, int]:
        """Violations by invariant since the start of the month; empty when all hold. Raises `BankAway` as well when
        reading the month takes longer than `seconds`: then nothing is known.
        """
        try:
            async with reading(self._engine) as db, db.begin():
                await db.execute(text(f"SET LOCAL statement_timeout = {max(1, round(seconds * 1000))}"))
                rows = (await db.execute(_BROKEN)).all()
        except BankAway as error:
            if isinstance(error.__cause__, DBAPIError) and sqlstate(error.__cause__) == _CANCELED:
                raise BankAway(f"not checked: the month cannot be read within {seconds:g} s") from error
            raise
        return {str(name): int(count) for name, count in rows}

    async def partition_days(self) -> float:
        return float((await self._rows(_DAYS))[0][0])

    async def keys_expiring(self) -> dict[str, int]:
        """How many keys that were used lately end within a day, a week, a month."""
        return dict(zip(("1d", "7d", "30d"), (await self._rows(_EXPIRING))[0], strict=True))

    async def audit_head(self) -> str | None:
        """`<seq>:<hash>` of the newest record of the audit trail, None for an empty one."""
        found = await self._rows(_HEAD)
        return f"{found[0][0]}:{found[0][1]}" if found else None

    async def _rows(self, query: TextClause, **parameters: object) -> list[tuple[Any, ...]]:
        try:
            async with self._engine.connect() as db:
                return [tuple(row) for row in await db.execute(query, parameters)]
        except _AWAY as error:
            raise BankAway(f"Postgres does not answer: {type(error).__name__}") from error
