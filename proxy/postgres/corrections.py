"""Corrections of resolved attempts by an operator: what may be corrected, and the entries themselves.

Functions take a connection inside a transaction; the audit record belongs into the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.domain.control import CallFilter, Correction, PaidRecord
from proxy.domain.ledger import State, Why
from proxy.domain.usage import Usage

_SELECT = """
    SELECT t.*, n.slug AS tenant_slug, coalesce(m.value, '') AS model_name, coalesce(a.value, '') AS target_name,
           coalesce(v.value, '') AS version_name,
           coalesce((SELECT sum(e.amount) FROM entries e WHERE e.attempt = t.attempt AND e.kind = 6), 0)::bigint AS adjusted
      FROM attempts t
      JOIN tenants n ON n.id = t.tenant
      LEFT JOIN labels m ON m.id = t.model
      LEFT JOIN labels a ON a.id = t.target
      LEFT JOIN labels v ON v.id = coalesce(nullif(t.price_final, 0), t.price)"""
_LOCK = text(
    """
    SELECT FROM accounts a WHERE a.budget = ANY (:budgets) AND a.starts_at <= now() AND a.ends_at > now()
     ORDER BY a.id FOR NO KEY UPDATE
    """
)
_CORRECT = text(
    "SELECT ord, answer FROM bank_amend(:ids, :kinds, :amounts, :upstream, :whys, :evidence) ORDER BY ord"
)


async def paid(
    db: AsyncConnection, where: CallFilter, *, target: str | None, after: UUID | None, limit: int
) -> list[PaidRecord]:
    """Attempts in the order of their ids. `where` must name an outcome and both ends of a time."""
    parameters: dict[str, Any] = {
        "since": where.since, "until": where.until, "state": int(where.outcome or State.POST), "limit": limit,
    }  # fmt: skip
    conditions = [
        "t.state = :state AND t.admitted_at >= :since AND t.admitted_at < :until",
        "t.attempt >= uuid7_floor(CAST(:since AS timestamptz) - interval '6 minutes')",
        "t.attempt < uuid7_floor(CAST(:until AS timestamptz) + interval '6 minutes')",
    ]
    optional = (
        ("t.tenant = :tenant", "tenant", where.tenant),
        ("t.project = :project", "project", where.project),
        ("t.key = :key", "key", where.key),
        ("m.value = :model", "model", where.model),
        ("a.value = :target", "target", target),
        ("t.attempt > :after", "after", after),
    )
    for condition, name, value in optional:
        if value is not None:
            conditions.append(condition)
            parameters[name] = value
    statement = f"{_SELECT} WHERE {' AND '.join(conditions)} ORDER BY t.attempt LIMIT :limit"
    return [_paid(row) for row in (await db.execute(text(statement), parameters)).mappings()]


async def paid_one(db: AsyncConnection, attempt: UUID, tenant: UUID | None) -> tuple[PaidRecord, str] | None:
    """One attempt and the name of its state, when it is `tenant`'s (or anybody's, for None)."""
    statement = f"{_SELECT} WHERE t.attempt = :attempt AND t.state <> 0"
    row = (await db.execute(text(statement), {"attempt": attempt})).mappings().one_or_none()
    if row is None or (tenant is not None and row["tenant"] != tenant):
        return None
    return _paid(row), State(row["state"]).name


async def correct(db: AsyncConnection, entries: Sequence[Correction]) -> list[int]:
    """Answers of `bank_amend`, one each: 0 written, 1 the same evidence is there already, 3 unknown, 4 refused."""
    columns = {
        "ids": [one.attempt for one in entries],
        "kinds": [int(one.kind) for one in entries],
        "amounts": [one.amount for one in entries],
        "upstream": [one.upstream_amount for one in entries],
        "whys": [int(Why.OPERATOR)] * len(entries),
        "evidence": [one.evidence for one in entries],
    }
    return [row.answer for row in await db.execute(_CORRECT, columns)]


async def lock_accounts(db: AsyncConnection, budgets: Sequence[UUID]) -> None:
    """In the order in which the bank locks them, so that a transfer and a call cannot wait for each other."""
    await db.execute(_LOCK, {"budgets": list(budgets)})


def _paid(row: RowMapping) -> PaidRecord:
    return PaidRecord(
        attempt=row["attempt"], tenant_slug=row["tenant_slug"], model=row["model_name"],
        target=row["target_name"], version=row["version_name"], cost=row["cost"],
        upstream_cost=row["upstream_cost"], adjusted=row["adjusted"], extra_entries=row["extra_entries"],
        admitted_at=row["admitted_at"],
        usage=Usage(
            input_tokens=row["input_tokens"] or 0, output_tokens=row["output_tokens"] or 0,
            cache_read_tokens=row["cache_read_tokens"] or 0,
            cache_write_5m_tokens=row["cache_write_5m_tokens"] or 0,
            cache_write_1h_tokens=row["cache_write_1h_tokens"] or 0, images=row["images"] or 0,
            guardrail_units=row["guardrail_units"] or 0,
        ),
    )  # fmt: skip
