"""Reads of what was refused and of the audit trail. Short, without locks."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.domain.control import TrailRecord
from proxy.postgres.tables import AuditRecord

RefusalKey = Literal["tenant", "key", "reason", "model", "day"]

_GROUPS: Mapping[str, str] = {
    "tenant": "coalesce(n.slug, '')",
    "key": "CASE WHEN r.key = '00000000-0000-0000-0000-000000000000' THEN '' ELSE r.key::text END",
    "reason": "r.reason",
    "model": "coalesce(l.value, '')",
    "day": "to_char(r.bucket AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
}


async def refusals(
    db: AsyncConnection,
    group_by: Sequence[RefusalKey],
    *,
    tenant: UUID | None,
    since: dt.datetime | None,
    until: dt.datetime | None,
    limit: int,
) -> list[dict[str, Any]]:
    """Counts of refused calls by `group_by`, the most frequent first, with one message of each group.

    The rollup keeps whole hours: `since` and `until` are widened to them.
    """
    conditions, parameters = ["true"], {"limit": limit}
    bounds: tuple[tuple[str, str, Any], ...] = (
        ("r.tenant = :tenant", "tenant", tenant),
        ("r.bucket >= date_trunc('hour', CAST(:since AS timestamptz), 'UTC')", "since", since),
        ("r.bucket < :until", "until", until),
    )
    for condition, name, value in bounds:
        if value is not None:
            conditions.append(condition)
            parameters[name] = value
    groups = ", ".join(f"{_GROUPS[name]} AS {name}" for name in group_by)
    places = ", ".join(str(place + 1) for place in range(len(group_by)))
    statement = f"""
        SELECT {groups}, sum(r.count)::bigint AS count,
               (array_agg(r.last_message ORDER BY r.bucket DESC))[1] AS last_message
          FROM refusals r
          LEFT JOIN tenants n ON n.id = r.tenant
          LEFT JOIN labels l ON l.id = r.model
         WHERE {" AND ".join(conditions)}
         GROUP BY {places} ORDER BY count DESC, {places} LIMIT :limit"""  # noqa: S608 (literals of this module)
    return [dict(row) for row in (await db.execute(text(statement), parameters)).mappings()]


async def trail(
    db: AsyncConnection, *, thing: str | None, before: int | None, limit: int
) -> list[TrailRecord]:
    """Newest first; `before` is the number of the last record of the page before."""
    columns = [getattr(AuditRecord, name) for name in TrailRecord.__dataclass_fields__]
    statement = select(*columns).order_by(AuditRecord.seq.desc()).limit(limit)
    if thing is not None:
        statement = statement.where(AuditRecord.object == thing)
    if before is not None:
        statement = statement.where(AuditRecord.seq < before)
    return [TrailRecord(**row) for row in (await db.execute(statement)).mappings()]


async def trail_first_bad(db: AsyncConnection) -> int | None:
    """Number of the first record that was edited, removed or reordered; None when the chain holds."""
    found: int | None = await db.scalar(text("SELECT audit_first_bad()"))
    return found
