"""The refusals rollup: one row an hour, key, reason and model."""

from __future__ import annotations

from uuid import UUID

import asyncpg
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from proxy.errors import BankAway

_AWAY = (OSError, TimeoutError, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError)
_ADD = text(
    """
    INSERT INTO refusals (tenant, bucket, key, reason, model, count, last_message)
    SELECT r.tenant, date_trunc('hour', now(), 'UTC'), r.key, r.reason, coalesce(l.id, 0), r.count, r.message
      FROM unnest(CAST(:tenants AS uuid[]), CAST(:keys AS uuid[]), CAST(:reasons AS text[]),
                  CAST(:models AS text[]), CAST(:counts AS bigint[]), CAST(:messages AS text[]))
           AS r(tenant, key, reason, model, count, message)
      LEFT JOIN labels l ON l.kind = 1 AND l.value = r.model
     ORDER BY r.tenant, r.key, r.reason, 5
    ON CONFLICT (tenant, bucket, key, reason, model)
    DO UPDATE SET count = refusals.count + excluded.count, last_message = excluded.last_message
    """
)


class PostgresRefusals:
    """A `RefusalStore`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def add(self, counts: dict[tuple[UUID, UUID, str, str | None], tuple[int, str]]) -> None:
        """Add to this hour's counts. Raises BankAway."""
        merged: dict[tuple[UUID, UUID, str, str], tuple[int, str]] = {}
        for (tenant, key, reason, model), (number, message) in counts.items():
            at = (tenant, key, reason, model or "")
            merged[at] = (merged.get(at, (0, ""))[0] + number, message)
        keys = list(merged)
        try:
            async with self._engine.begin() as db:
                await db.execute(
                    _ADD,
                    {
                        "tenants": [k[0] for k in keys],
                        "keys": [k[1] for k in keys],
                        "reasons": [k[2] for k in keys],
                        "models": [k[3] for k in keys],
                        "counts": [merged[k][0] for k in keys],
                        "messages": [merged[k][1].replace("\x00", "") for k in keys],
                    },
                )
        except _AWAY as error:
            raise BankAway(f"Postgres does not answer: {type(error).__name__}") from error
