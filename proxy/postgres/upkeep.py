"""What workers do to reports: keep the days in step, drop old months. Raises `BankAway`."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from proxy.postgres.control import reading, sqlstate, writing

_MONTHS = text(
    """
    SELECT to_date(right(c.relname, 7), 'YYYY"m"MM') AS month
      FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
     WHERE i.inhparent = 'attempts'::regclass
       AND to_date(right(c.relname, 7), 'YYYY"m"MM') + :keep * interval '1 month'
           < date_trunc('month', now() AT TIME ZONE 'UTC')
     ORDER BY month
    """
)
_NOT_YET = "55000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rolled:
    """`leader` False: another worker is at it. `rolled` days were summed again; `waiting` days, or hours of the
    ledger, are left for the next round.
    """

    leader: bool
    rolled: int
    waiting: int
    rolled_to: dt.datetime | None


class PostgresUpkeep:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def roll_usage(self, at_most: int) -> Rolled:
        """Add what is new and sum at most so many dirty days again, in one transaction."""
        async with writing(self._engine) as db:
            await db.execute(text("SET LOCAL statement_timeout = '120s'"))
            row = (await db.execute(text("SELECT * FROM roll_usage(:most)"), {"most": at_most})).one()
        return Rolled(leader=row.leader, rolled=row.rolled, waiting=row.waiting, rolled_to=row.rolled_to)

    async def doubt(self) -> int:
        """Have the last whole day of every tenant summed again. Returns how many days wait for it."""
        async with writing(self._engine) as db:
            return int(await db.scalar(text("SELECT usage_doubt()")) or 0)

    async def drop_months(self, keep: int) -> list[dt.date]:
        """Drop the single calls of months older than `keep` months (at least 2); their sums by day stay.
        A month whose days are not in step yet is left for the next time. Returns what was dropped.
        """
        dropped = []
        async with reading(self._engine) as db:
            months = list((await db.scalars(_MONTHS, {"keep": max(keep, 2)})).all())
        for month in months:
            try:
                async with writing(self._engine) as db:
                    await db.execute(text("SET LOCAL statement_timeout = '600s'"))
                    await db.execute(
                        text("SELECT drop_ledger_month(:month, :keep)"), {"month": month, "keep": keep}
                    )
            except DBAPIError as error:
                if sqlstate(error) != _NOT_YET:
                    raise
            else:
                dropped.append(month)
        return dropped

    async def prune_refusals(self, keep_months: int) -> None:
        async with writing(self._engine) as db:
            await db.execute(
                text("DELETE FROM refusals WHERE bucket < now() - :keep * interval '1 month'"),
                {"keep": max(keep_months, 2)},
            )
