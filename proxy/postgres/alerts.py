"""Facts that alerts are made of, what was told already, and the outbox. Raises `BankAway`.

A condition, its alert and the deliveries it causes are written in one transaction under one lock: so
it is told once, however many workers look and whenever one of them dies.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from proxy.clock import uuid7
from proxy.domain.alerting import (
    HISTORY_DAYS,
    ONCE,
    BudgetFacts,
    CeilingFacts,
    Condition,
    KeyFacts,
    SpendFacts,
)
from proxy.domain.control import CallFilter
from proxy.domain.delivery import Parcel
from proxy.postgres import scopes
from proxy.postgres.control import reading, writing
from proxy.postgres.usage import usage

_LOCK = text("SELECT pg_advisory_xact_lock(7305804406)")
_BUDGETS = text(
    f"""
    SELECT x.id AS budget, a.id AS account, x.tenant, {scopes.NAME} AS scope, x.period, x.thresholds,
           limit_at(a.limit_target, a.boost_amounts, a.boost_untils, now()) AS limit,
           a.settled + a.overrun AS spent, a.starts_at, nullif(a.ends_at, 'infinity') AS ends_at
      FROM budgets x
      JOIN tenants t ON t.id = x.tenant
      LEFT JOIN projects p ON x.scope = 'project' AND p.id = x.subject
      JOIN accounts a ON a.budget = x.id AND a.starts_at <= now() AND a.ends_at > now()
     WHERE x.deleted_at IS NULL AND t.status = 'active' AND a.settled + a.overrun > 0
    """  # noqa: S608 (constants only)
)
_KEYS = text(
    """
    SELECT k.id AS key, k.name, k.tenant, t.slug AS tenant_slug, k.expires_at
      FROM keys k JOIN tenants t ON t.id = k.tenant
     WHERE k.status = 'active' AND t.status = 'active'
       AND k.expires_at > now() AND k.expires_at <= now() + interval '7 days'
    """
)
_TODAYS = text(
    "SELECT slug, id, (now() AT TIME ZONE time_zone)::date::text AS today FROM tenants WHERE status = 'active'"
)
_CEILINGS = text(
    """
    SELECT t.tenant, n.slug AS tenant_slug, coalesce(l.value, '') AS target, count(*) AS attempts,
           sum(t.cost)::bigint AS charged
      FROM entries e
      JOIN attempts t ON t.attempt = e.attempt
      JOIN tenants n ON n.id = t.tenant
      LEFT JOIN labels l ON l.id = t.target
     WHERE e.at > now() - interval '1 day' AND e.kind = 3 AND t.state = 3 AND t.extra_entries = 0
     GROUP BY t.tenant, n.slug, l.value
    """
)
_TELL = text(
    """
    WITH told AS (
      INSERT INTO alerts (id, kind, tenant, subject, what, message, body)
      VALUES (:id, :kind, :tenant, :subject, :what, :message, CAST(:body AS jsonb)) RETURNING id, kind, tenant)
    INSERT INTO outbox (id, webhook, alert)
    SELECT gen_random_uuid(), w.id, told.id
      FROM told JOIN webhooks w ON w.deleted_at IS NULL AND w.status = 'active'
       AND (w.tenant IS NULL OR w.tenant = told.tenant) AND told.kind = ANY (w.events)
    """
)
_CLAIM = text(
    """
    WITH due AS (
      SELECT o.id FROM outbox o WHERE o.status = 'waiting' AND o.next_at <= now()
       ORDER BY o.next_at LIMIT :most FOR UPDATE SKIP LOCKED),
    taken AS (
      UPDATE outbox o SET tries = o.tries + 1, next_at = now() + interval '2 minutes'
        FROM due WHERE o.id = due.id RETURNING o.id, o.webhook, o.alert, o.tries)
    SELECT taken.id, taken.tries, w.id AS webhook, w.url, w.format, w.sealed, a.id AS alert, a.kind, a.at, a.subject,
           a.message, a.body, t.slug AS tenant, w.deleted_at IS NOT NULL OR w.status <> 'active' AS off
      FROM taken JOIN webhooks w ON w.id = taken.webhook JOIN alerts a ON a.id = taken.alert
      LEFT JOIN tenants t ON t.id = a.tenant
    """
)
_DONE = text(
    """
    UPDATE outbox SET status = :status, last_error = :error, done_at = CASE WHEN :status = 'waiting' THEN NULL ELSE now() END,
           next_at = now() + :wait * interval '1 second'
     WHERE id = :id
    """
)


class PostgresAlerts:
    """What `proxy.worker.alerts` and `proxy.worker.deliveries` ask for."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def now(self) -> dt.datetime:
        async with reading(self._engine) as db:
            moment: dt.datetime = (await db.execute(text("SELECT now()"))).scalar_one()
            return moment

    async def budgets(self) -> list[BudgetFacts]:
        async with reading(self._engine) as db:
            return [BudgetFacts(**row) for row in (await db.execute(_BUDGETS)).mappings()]

    async def expiring_keys(self) -> list[KeyFacts]:
        async with reading(self._engine) as db:
            return [KeyFacts(**row) for row in (await db.execute(_KEYS)).mappings()]

    async def spend(self) -> list[SpendFacts]:
        """Of tenants that spent something today; days without spend count as days of 0."""
        async with reading(self._engine) as db:
            now: dt.datetime = (await db.execute(text("SELECT now()"))).scalar_one()
            where = CallFilter(since=now - dt.timedelta(days=HISTORY_DAYS + 1))
            rows = await usage(db, ("tenant", "day"), where, limit=1_000_000)
            todays = (await db.execute(_TODAYS)).all()
        days: dict[str, dict[str, int]] = {}
        for row in rows:
            days.setdefault(row["tenant"], {})[row["day"]] = row["cost"]
        return [
            _spend(one.slug, one.id, one.today, days[one.slug])
            for one in todays
            if days.get(one.slug, {}).get(one.today)
        ]

    async def ceilings(self) -> list[CeilingFacts]:
        """Of the last day."""
        async with reading(self._engine) as db:
            return [CeilingFacts(**row) for row in (await db.execute(_CEILINGS)).mappings()]

    async def tell(self, kinds: Iterable[str], conditions: Sequence[Condition]) -> int:
        """Write an alert for every condition that did not hold before; returns how many. Of `kinds`,
        those that no longer hold are forgotten, so that they can begin again (see `ONCE`).
        """
        watched = [kind for kind in kinds if kind not in ONCE]
        async with writing(self._engine) as db:
            await db.execute(_LOCK)
            found = await db.execute(text("SELECT subject, what FROM crossings"))
            known = {(row.subject, row.what) for row in found}
            holding = {(one.subject, one.what): one for one in conditions}
            fresh = [one for name, one in holding.items() if name not in known]
            for one in fresh:
                await self._begin(db, one)
            over = [name for name in known - holding.keys() if name[1].split(":", 1)[0] in watched]
            for subject, what in over:
                statement = text("DELETE FROM crossings WHERE subject = :subject AND what = :what")
                await db.execute(statement, {"subject": subject, "what": what})
        return len(fresh)

    async def _begin(self, db: AsyncConnection, one: Condition) -> None:
        statement = text("INSERT INTO crossings (subject, what) VALUES (:subject, :what)")
        await db.execute(statement, {"subject": one.subject, "what": one.what})
        await write_alert(db, one)

    async def prune(self, days: int) -> None:
        """Forget alerts, deliveries and told conditions that are older."""
        old = {"days": days}
        async with writing(self._engine) as db:
            await db.execute(_LOCK)
            for statement in (
                "DELETE FROM outbox o USING alerts a WHERE a.id = o.alert AND a.at < now() - :days * interval '1 day'",
                "DELETE FROM alerts WHERE at < now() - :days * interval '1 day'",
                "DELETE FROM crossings WHERE since < now() - :days * interval '1 day'",
            ):
                await db.execute(text(statement), old)

    # -- The outbox -----------------------------------------------------------------------

    async def claim(self, most: int) -> list[Parcel]:
        """Deliveries that are due, each for this caller alone during two minutes."""
        async with writing(self._engine) as db:
            rows = (await db.execute(_CLAIM, {"most": most})).mappings().all()
        return [_parcel(row) for row in rows]

    async def delivered(self, parcel: UUID) -> None:
        await self._finish(parcel, "delivered", None, 0)

    async def failed(self, parcel: UUID, error: str, retry_seconds: int | None) -> None:
        """`retry_seconds` None: it is not tried again."""
        status = "failed" if retry_seconds is None else "waiting"
        await self._finish(parcel, status, error[:500].replace("\x00", ""), retry_seconds or 0)

    async def _finish(self, parcel: UUID, status: str, error: str | None, wait: int) -> None:
        async with writing(self._engine) as db:
            values: dict[str, Any] = {"id": parcel, "status": status, "error": error, "wait": wait}
            await db.execute(_DONE, values)


async def write_alert(db: AsyncConnection, one: Condition) -> UUID:
    """The alert and its deliveries, in the caller's transaction."""
    ident = uuid7()
    values = {
        "id": ident, "kind": one.kind, "tenant": one.tenant, "subject": one.subject, "what": one.what,
        "message": one.message, "body": msgspec.json.encode(one.data).decode(),
    }  # fmt: skip
    await db.execute(_TELL, values)
    return ident


def _spend(slug: str, tenant: UUID, today: str, days: dict[str, int]) -> SpendFacts:
    """Days before the first spend are no history."""
    earlier = sorted(day for day in days if day < today)
    history: list[int] = []
    if earlier:
        first, last = dt.date.fromisoformat(earlier[0]), dt.date.fromisoformat(today)
        history = [days.get(str(first + dt.timedelta(days=n)), 0) for n in range((last - first).days)]
    return SpendFacts(tenant=tenant, tenant_slug=slug, today=today, spent=days[today], history=history)


def _parcel(row: Any) -> Parcel:
    return Parcel(
        id=row["id"], tries=row["tries"], webhook=row["webhook"], url=row["url"], format=row["format"],
        sealed=row["sealed"], off=row["off"], alert=row["alert"], kind=row["kind"], at=row["at"],
        subject=row["subject"], message=row["message"], tenant=row["tenant"], data=row["body"],
    )  # fmt: skip
