"""What must be true afterwards, from the bank's raw rows and the simulator's own bill."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import asyncpg

from tests.faults.client import Shot
from tests.support.stack import nano

OPEN, POST, CEILING = 0, 1, 3
_ROWS = """SELECT a.attempt, a.call, t.slug AS tenant, a.state, coalesce(a.upstream_cost, 0) AS upstream, a.ceiling
  FROM attempts a JOIN tenants t ON t.id = a.tenant"""
_ACCOUNTS = """SELECT t.slug AS tenant, a.limit_target AS cap, a.reserved, a.settled, a.overrun
  FROM accounts a JOIN budgets b ON b.id = a.budget JOIN tenants t ON t.id = b.tenant
 WHERE a.starts_at <= now() AND a.ends_at > now()"""


async def settled_rows(dsn: str, seconds: float) -> list[Any]:
    """All attempts, once none is open. Raises TimeoutError when some stay so."""
    connection = await asyncpg.connect(dsn)
    try:
        async with asyncio.timeout(seconds):
            while await connection.fetchval("SELECT count(*) FROM attempts WHERE state = 0"):
                await asyncio.sleep(0.1)
        return list(await connection.fetch(_ROWS))
    finally:
        await connection.close()


async def books(dsn: str) -> tuple[list[Any], list[Any]]:
    """(budgets, broken invariants) of the bank."""
    connection = await asyncpg.connect(dsn)
    try:
        broken = await connection.fetch("SELECT * FROM check_invariants(now() - interval '1 day')")
        return list(await connection.fetch(_ACCOUNTS)), list(broken)
    finally:
        await connection.close()


def problems(
    rows: list[Any], accounts: list[Any], bill: list[Any], requests: list[Any], shots: list[Shot]
) -> list[str]:
    """Every rule that is broken, in words."""
    by_attempt = {row["attempt"]: row for row in rows}
    found = list(_requests(by_attempt, requests))
    billed: Counter[str] = Counter()
    for call in bill:
        row = by_attempt.get(UUID(call["metadata"]["tollhouse-attempt"]))
        if row is None:
            found.append(f"billed without a row: {call}")
            continue
        cost = nano(call["cost_usd"])
        billed[row["tenant"]] += cost
        charged = row["ceiling"] if row["state"] == CEILING else row["upstream"]
        if charged < cost or (row["state"] == POST and charged != cost):
            found.append(f"attempt {row['attempt']} is charged {charged}, billed {cost}")
    for account in accounts:
        held = account["settled"] + account["reserved"]
        if not billed[account["tenant"]] <= held <= account["cap"] or account["overrun"]:
            found.append(f"{dict(account)} against a bill of {billed[account['tenant']]}")
    return found + list(_answered(rows, shots))


def _requests(by_attempt: dict[UUID, Any], requests: list[Any]) -> Iterator[str]:
    """Every request that arrived upstream belongs to one row, and no row was sent twice."""
    for attempt, times in Counter(r["metadata"].get("tollhouse-attempt", "") for r in requests).items():
        if not attempt or UUID(attempt) not in by_attempt:
            yield f"a request upstream has no row: {attempt}"
        if times > 1:
            yield f"{attempt} was sent {times} times"


def _answered(rows: list[Any], shots: list[Shot]) -> Iterator[str]:
    """Whoever has seen a whole answer finds its row."""
    posted = {str(row["call"]) for row in rows if row["state"] == POST}
    for shot in shots:
        if shot.complete and shot.call not in posted:
            yield f"call {shot.call} was answered and has no row"
