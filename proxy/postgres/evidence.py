"""What the evidence worker and the reconciliation ask of the ledger. Statements are short: each reads a few
hours at most, so that no snapshot holds back the vacuum of the accounts. Raises `BankAway`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

import msgspec
from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncEngine

from proxy.domain.evidence import Unproven
from proxy.domain.reconciling import Booked
from proxy.postgres.control import reading, writing

#: what one statement reads
_SPAN = dt.timedelta(hours=3)
_UNPROVEN = text(
    """
    SELECT a.attempt, a.tenant, coalesce(m.value, '') AS model, coalesce(t.value, '') AS target, a.ceiling,
           a.upstream_request_id, coalesce(a.status, 0) AS status,
           coalesce(a.latency_ms, 0) AS latency_ms, coalesce(a.first_byte_ms, 0) AS first_byte_ms,
           extract(epoch FROM a.admitted_at)::double precision AS admitted_at,
           extract(epoch FROM coalesce(a.finished_at, now()))::double precision AS finished_at
      FROM entries e
      JOIN attempts a ON a.attempt = e.attempt
      LEFT JOIN labels m ON m.id = a.model
      LEFT JOIN labels t ON t.id = a.target
     WHERE e.slot = 0 AND e.kind = 3 AND a.ceiling > 0 AND a.extra_entries = 0
       AND e.attempt >= uuid7_floor(:since) AND e.attempt < uuid7_floor(:until)
     ORDER BY e.attempt LIMIT :most
    """
)
_BOOKED = text(
    """
    SELECT t.value AS target, count(*) AS attempts,
           count(*) FILTER (WHERE x.unknown) AS unknown,
           coalesce(sum(a.ceiling) FILTER (WHERE x.unknown), 0)::bigint AS unknown_ceiling,
           coalesce(sum(a.input_tokens), 0)::bigint AS input,
           coalesce(sum(a.output_tokens), 0)::bigint AS output,
           coalesce(sum(a.cache_read_tokens), 0)::bigint AS cache_read,
           coalesce(sum(a.cache_write_5m_tokens::bigint + a.cache_write_1h_tokens), 0)::bigint AS cache_write
      FROM attempts a
      JOIN labels t ON t.id = a.target
     CROSS JOIN LATERAL (
       SELECT a.state = 0 OR (a.state = 3 AND NOT coalesce(a.usage_exact, false)) AS unknown) AS x
     WHERE a.attempt >= uuid7_floor(:since) AND a.attempt < uuid7_floor(:until)
       AND a.state IN (0, 1, 3) AND a.operation NOT IN (5, 6, 10)
     GROUP BY t.value
    """
)
_AUDIT = text(
    """
    SELECT audit_append('worker', :action, :thing, CAST(:before AS jsonb), CAST(:after AS jsonb))
     WHERE NOT EXISTS (SELECT FROM audit WHERE object = :thing AND action = :action)
    """
)


class PostgresEvidence:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def unproven(self, since: dt.datetime, until: dt.datetime, most: int) -> list[Unproven]:
        """Attempts admitted in [since, until) that are charged their ceiling and were never corrected, the
        oldest first, at most so many.
        """
        found: list[Unproven] = []
        while since < until and len(found) < most:
            end = min(since + _SPAN, until)
            values = {"since": since, "until": end, "most": most - len(found)}
            async with reading(self._engine) as db:
                rows = (await db.execute(_UNPROVEN, values)).mappings().all()
            found += [Unproven(**row) for row in rows]
            since = end
        return found

    async def audit(
        self, action: str, thing: str, before: Mapping[str, Any], after: Mapping[str, Any]
    ) -> None:
        """Append to the audit trail, unless it has this act on this thing already."""
        values = {
            "action": action,
            "thing": thing,
            "before": msgspec.json.encode(before).decode(),
            "after": msgspec.json.encode(after).decode(),
        }
        async with writing(self._engine) as db:
            await db.execute(_AUDIT, values)

    async def booked(self, first: dt.date, last: dt.date) -> list[Booked]:
        """Tokens by target and UTC day of admission, `last` included. Answers from the cache are left out."""
        found: list[Booked] = []
        at = dt.datetime.combine(first, dt.time(), dt.UTC)
        until = dt.datetime.combine(last, dt.time(), dt.UTC) + dt.timedelta(days=1)
        while at < until:
            async with reading(self._engine) as db:
                rows = (await db.execute(_BOOKED, {"since": at, "until": at + _SPAN})).mappings().all()
            found += [_booked(row, at.date()) for row in rows]
            at += _SPAN
        return found


def _booked(row: RowMapping, day: dt.date) -> Booked:
    region, _, model_id = row["target"].partition("/")
    sums = {name: value for name, value in row.items() if name != "target"}
    return Booked(region=region, model_id=model_id, day=day, **sums)
