"""Chargeback statements: one per tenant and calendar month of its time zone, issued once.

Functions take a connection inside a transaction.
"""

from __future__ import annotations

import datetime as dt
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.domain.control import CallFilter
from proxy.domain.reporting import Draft, Issued, Month
from proxy.postgres.control import conflict_or
from proxy.postgres.desk_tables import StatementRow
from proxy.postgres.usage import usage

LINES_MAX = 100_000
_MONTH = text(
    """
    SELECT m.since, m.until, m.until <= now() AS over
      FROM tenants n
     CROSS JOIN LATERAL (SELECT CAST(:first AS date)::timestamp AT TIME ZONE n.time_zone AS since,
                                (CAST(:first AS date) + interval '1 month') AT TIME ZONE n.time_zone AS until) AS m
     WHERE n.id = :tenant
    """
)
_OPEN = text(
    """
    SELECT count(*) AS attempts, coalesce(sum(ceiling), 0)::bigint AS ceiling FROM attempts
     WHERE tenant = :tenant AND state = 0 AND admitted_at >= :since AND admitted_at < :until
       AND attempt >= uuid7_floor(CAST(:since AS timestamptz) - interval '6 minutes')
       AND attempt < uuid7_floor(CAST(:until AS timestamptz) + interval '6 minutes')
    """
)
_COLUMNS = (
    *(StatementRow.month, StatementRow.issued_at, StatementRow.issued_by, StatementRow.usage),
    *(StatementRow.corrections, StatementRow.total, StatementRow.body),
)


async def month_of(db: AsyncConnection, tenant: UUID, first: dt.date) -> Month:
    """The bounds of a month in the tenant's time zone; `first` is its first day."""
    row = (await db.execute(_MONTH, {"tenant": tenant, "first": first})).one()
    return Month(first=first, since=row.since, until=row.until, over=row.over)


async def draft(db: AsyncConnection, tenant: UUID, first: dt.date) -> Draft:
    """The statement that would be issued now."""
    month = await month_of(db, tenant, first)
    where = CallFilter(tenant=tenant, since=month.since, until=month.until)
    lines = await usage(db, ("project", "key", "model"), where, limit=LINES_MAX)
    earlier = [one for one in await issued(db, tenant) if one.month < first]
    now = [await _cost(db, tenant, await month_of(db, tenant, one.month)) for one in earlier]
    spent = {"tenant": tenant, "since": month.since, "until": month.until}
    still = (await db.execute(_OPEN, spent)).one()
    return Draft(
        month=month,
        lines=lines,
        usage=lines[0]["total"] if lines else 0,
        corrections=sum(now) - sum(one.total for one in earlier),
        open_attempts=still.attempts,
        open_ceiling=still.ceiling,
    )


async def _cost(db: AsyncConnection, tenant: UUID, month: Month) -> int:
    rows = await usage(db, (), CallFilter(tenant=tenant, since=month.since, until=month.until), limit=1)
    return int(rows[0]["cost"])


async def issue(
    db: AsyncConnection, tenant: UUID, statement: Draft, body: dict[str, Any], actor: str
) -> Issued:
    """Write a draft made in this transaction. Raises `ConflictError` when the month was issued before."""
    values = {
        "tenant": tenant,
        "month": statement.month.first,
        "issued_by": actor,
        "usage": statement.usage,
        "corrections": statement.corrections,
        "total": statement.total,
        "body": body,
    }
    try:
        row = (await db.execute(insert(StatementRow).values(**values).returning(*_COLUMNS))).mappings().one()
    except IntegrityError as error:
        raise conflict_or(error, "the statement of this month was issued already") from error
    return Issued(**row)


async def issued(db: AsyncConnection, tenant: UUID, *, limit: int | None = None) -> list[Issued]:
    """Newest month first."""
    found = select(*_COLUMNS).where(StatementRow.tenant == tenant).order_by(StatementRow.month.desc())
    return [Issued(**row) for row in (await db.execute(found.limit(limit))).mappings()]


async def find(db: AsyncConnection, tenant: UUID, first: dt.date) -> Issued | None:
    found = select(*_COLUMNS).where(StatementRow.tenant == tenant, StatementRow.month == first)
    row = (await db.execute(found)).mappings().one_or_none()
    return None if row is None else Issued(**row)


async def last_issued(db: AsyncConnection, tenant: UUID) -> dt.date | None:
    found: dt.date | None = await db.scalar(
        select(StatementRow.month)
        .where(StatementRow.tenant == tenant)
        .order_by(StatementRow.month.desc())
        .limit(1)
    )
    return found
