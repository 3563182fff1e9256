"""Ledgers of the past, written as their owner: what the bank would have left behind."""

from __future__ import annotations

import datetime as dt
import random
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

NIL = UUID(int=0)


def id_at(moment: dt.datetime) -> UUID:
    """A UUIDv7 minted then."""
    tail = random.getrandbits(74)
    head = int(moment.timestamp() * 1000) << 80 | 7 << 76 | (tail >> 62) << 64
    return UUID(int=head | 2 << 62 | tail & (1 << 62) - 1)


@dataclass
class Past:
    """Writes attempts with a terminal entry, and corrections, at any time. `partition` makes room."""

    owner: AsyncEngine
    keys: dict[UUID, tuple[UUID, UUID | None]] = field(default_factory=dict)

    async def run(self, statement: str, **parameters: Any) -> Any:
        async with self.owner.begin() as db:
            result = await db.execute(text(statement), parameters)
            return result.all() if result.returns_rows else None

    async def label(self, kind: int, value: str) -> int:
        rows = await self.run(
            "INSERT INTO labels (kind, value) VALUES (:kind, :value) ON CONFLICT (kind, value) DO UPDATE"
            " SET value = excluded.value RETURNING id",
            kind=kind, value=value,
        )  # fmt: skip
        return int(rows[0][0])

    async def partition(self, month: dt.date) -> None:
        name = f"{month:_y%Ym%m}"
        for parent in ("attempts", "entries"):
            await self.run(f"CREATE TABLE IF NOT EXISTS {parent}{name} (LIKE {parent} INCLUDING ALL)")
            await self.run(
                f"ALTER TABLE {parent} ATTACH PARTITION {parent}{name} FOR VALUES FROM"
                f" ('{id_floor(month)}') TO ('{id_floor(next_month(month))}')"
            )

    async def call(
        self, key: UUID, at: dt.datetime, cost: int, *, model: int = 0, target: int = 0, tags: int = 0,
        state: int = 1, operation: int = 3, tokens: tuple[int, int] = (10, 20),
    ) -> UUID:  # fmt: skip
        if key not in self.keys:
            [(tenant, project)] = await self.run("SELECT tenant, project FROM keys WHERE id = :key", key=key)
            self.keys[key] = (tenant, project)
        tenant, project = self.keys[key]
        attempt = id_at(at)
        values: dict[str, Any] = {
            "attempt": attempt, "tenant": tenant, "project": project, "key": key, "at": at, "cost": cost,
            "model": model, "target": target, "tags": tags, "state": state, "operation": operation,
            "input": tokens[0], "output": tokens[1], "nil": NIL,
        }  # fmt: skip
        await self.run(
            """WITH made AS (
                 INSERT INTO attempts (attempt, call, tenant, project, key, credential, recorder, admitted_at,
                   ceiling, model, target, price, tags, operation, state, why, holds, finished_at, cost,
                   upstream_cost, input_tokens, output_tokens, cache_read_tokens, cache_write_5m_tokens,
                   cache_write_1h_tokens, images, guardrail_units, usage_exact)
                 VALUES (:attempt, :attempt, :tenant, :project, :key, :nil, :nil, :at, :cost, :model, :target, 0,
                   :tags, :operation, :state, 0, '{}', :at, :cost, :cost, :input, :output, 0, 0, 0, 0, 0, true))
               INSERT INTO entries (attempt, slot, kind, amount, upstream_amount, at, why)
               VALUES (:attempt, 0, :state, :cost, :cost, now(), 0)""",
            **values,
        )
        return attempt

    async def adjust(self, attempt: UUID, amount: int, evidence: str) -> None:
        [(answer,)] = await self.run(
            "SELECT answer FROM bank_amend(ARRAY[CAST(:a AS uuid)], ARRAY[6::smallint],"
            " ARRAY[CAST(:n AS bigint)], ARRAY[0::bigint], ARRAY[9::smallint], ARRAY[CAST(:e AS text)])",
            a=attempt, n=amount, e=evidence,
        )  # fmt: skip
        assert answer == 0

    async def roll(self, at_most: int = 1000) -> Any:
        return (await self.run("SELECT * FROM roll_usage(:most)", most=at_most))[0]


def next_month(first: dt.date) -> dt.date:
    return (first + dt.timedelta(days=32)).replace(day=1)


def id_floor(day: dt.date) -> UUID:
    midnight = dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC)
    return UUID(int=int(midnight.timestamp() * 1000) << 80)
