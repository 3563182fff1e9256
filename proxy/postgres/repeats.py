"""Admin requests that carried an idempotency key, with their answers: kept for a day."""

from __future__ import annotations

import base64

from sqlalchemy import delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from proxy.domain.control import Kept
from proxy.postgres.tables import IdempotencyRecord as Record

KEPT_HOURS = 24


class PostgresRepeats:
    """Each method is a transaction of its own."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def claim(self, principal: str, key: str, request_hash: bytes) -> Kept | None:
        """None when this is the first such request, which is then marked as running; else the first."""
        mine = (Record.principal == principal, Record.key == key)
        old = func.now() - text(f"interval '{KEPT_HOURS} hours'")
        async with self._engine.begin() as db:
            await db.execute(delete(Record).where(*mine, Record.created_at < old))
            made = await db.execute(
                insert(Record)
                .values(principal=principal, key=key, request_hash=request_hash)
                .on_conflict_do_nothing()
                .returning(Record.key)
            )
            if made.first() is not None:
                return None
            columns = (Record.request_hash, Record.status, Record.response)
            row = (await db.execute(select(*columns).where(*mine))).one()
        sealed = None if row.response is None else base64.b64decode(row.response["sealed"])
        return Kept(request_hash=row.request_hash, status=row.status, sealed=sealed)

    async def keep(self, principal: str, key: str, status: int, sealed: bytes) -> None:
        """Remember the answer of a claimed request."""
        response = {"sealed": base64.b64encode(sealed).decode("ascii")}
        statement = update(Record).where(Record.principal == principal, Record.key == key)
        async with self._engine.begin() as db:
            await db.execute(statement.values(status=status, response=response))

    async def release(self, principal: str, key: str) -> None:
        """Forget a claimed request that changed nothing, so that it may be made again."""
        async with self._engine.begin() as db:
            await db.execute(
                delete(Record).where(
                    Record.principal == principal, Record.key == key, Record.status.is_(None)
                )
            )

    async def prune(self) -> int:
        """Forget what is older than a day; returns how many."""
        old = func.now() - text(f"interval '{KEPT_HOURS} hours'")
        async with self._engine.begin() as db:
            return (await db.execute(delete(Record).where(Record.created_at < old))).rowcount
