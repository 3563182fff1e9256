"""The read side of the ledger: calls, entries, budgets, spend and the invariants. Never on the hot path.

Reads take no locks and are short. Money is integer nano-dollars, times are aware. Everything raises
`BankAway` when Postgres does not answer.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast
from uuid import UUID

import asyncpg
from sqlalchemy import RowMapping, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from proxy.domain.ledger import EntryKind, Operation, State, Why
from proxy.domain.usage import Usage
from proxy.errors import BankAway

_AWAY = (OSError, TimeoutError, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError)
#: an id's own time may be this far from its admission
_ID_SLACK = dt.timedelta(minutes=6)
#: an attempt begins at most so long after its call: another place is tried only before an answer begins
_CALL_SPAN = dt.timedelta(hours=1)
_OF_CALL = """t.call = :call AND t.attempt BETWEEN :first AND :last
    AND uuid_send(t.attempt) BETWEEN uuid_send(:first_bytes) AND uuid_send(:last_bytes)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFilter:
    """None does not filter. `since` is inclusive, `until` exclusive, both about the admission."""

    tenant: UUID | None = None
    project: UUID | None = None
    key: UUID | None = None
    call: UUID | None = None
    #: base model id
    model: str | None = None
    outcome: State | None = None
    since: dt.datetime | None = None
    until: dt.datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """One attempt as the ledger has it. Costs and times of the end are None while it is OPEN."""

    attempt: UUID
    call: UUID
    tenant: UUID
    tenant_slug: str | None
    project: UUID | None
    project_slug: str | None
    key: UUID
    operation: Operation
    model: str
    target: str
    tags: str
    outcome: State
    why: Why | None
    usage: Usage | None
    ceiling: int
    cost: int | None
    upstream_cost: int | None
    saved: int
    #: the version in force when it was sent; that of the ceiling while OPEN
    price_version: str
    upstream_request_id: str | None
    status: int | None
    admitted_at: dt.datetime
    finished_at: dt.datetime | None
    latency_ms: int | None
    first_byte_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryRecord:
    slot: int
    kind: EntryKind
    amount: int
    upstream_amount: int
    why: Why
    at: dt.datetime
    evidence: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A budget in its current period, by the database's clock. `ends_at` is None for `total`."""

    budget: UUID
    starts_at: dt.datetime
    ends_at: dt.datetime | None
    limit: int
    settled: int
    reserved: int
    overrun: int
    version: int

    @property
    def remaining(self) -> int:
        """What a new call may still reserve, never below 0."""
        return max(0, self.limit - self.settled - self.overrun - self.reserved)


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """`invariant` is I1 to I4 of the money."""

    invariant: str
    subject: str
    detail: str


SpendKey = Literal["tenant", "project", "key", "model", "day", "outcome", "operation", "tags"]

_SPEND_KEYS: Mapping[str, str] = {
    "tenant": "coalesce(n.slug, t.tenant::text)",
    "project": "coalesce(p.slug, '')",
    "key": "t.key::text",
    "model": "coalesce(m.value, '')",
    "day": "to_char(t.admitted_at AT TIME ZONE :zone, 'YYYY-MM-DD')",
    "outcome": "t.state::text",
    "operation": "t.operation::text",
    "tags": "coalesce(g.value, '')",
}

_JOINS = """
  FROM attempts t
  LEFT JOIN tenants n ON n.id = t.tenant
  LEFT JOIN projects p ON p.id = t.project
  LEFT JOIN labels m ON m.id = t.model
  LEFT JOIN labels g ON g.id = t.tags
"""


class PostgresLedger:
    """Queries over the ledger. `engine` is the process's own; each query takes a connection briefly."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def calls(
        self,
        where: CallFilter,
        *,
        limit: int = 50,
        before: UUID | None = None,
        on: AsyncConnection | None = None,
    ) -> list[CallRecord]:
        """Newest first by attempt id. `before`: the last attempt of the page before (exclusive)."""
        conditions, parameters = _conditions(where)
        # Within a tenant the index is on the id's bytes, which sort as the id does.
        order = "t.attempt" if where.tenant is None else "uuid_send(t.attempt)"
        if before is not None:
            conditions.append("t.attempt < :before AND uuid_send(t.attempt) < uuid_send(:before_bytes)")
            parameters |= {"before": before, "before_bytes": before}
        query = f"""
            SELECT t.*, n.slug AS tenant_slug, p.slug AS project_slug, m.value AS model_name,
                   g.value AS tags_value, a.value AS target_name, v.value AS price_version
            {_JOINS}
              LEFT JOIN labels a ON a.id = t.target
              LEFT JOIN labels v ON v.id = coalesce(t.price_final, t.price)
             WHERE {" AND ".join(conditions)} ORDER BY {order} DESC LIMIT :limit
        """
        return [_call(row) for row in await self._read(query, on, **parameters, limit=limit)]

    async def call(
        self, attempt: UUID, *, tenant: UUID | None = None, on: AsyncConnection | None = None
    ) -> CallRecord | None:
        """One attempt, when it is `tenant`'s (or anybody's, for None)."""
        found = await self.calls(CallFilter(tenant=tenant), limit=1, before=UUID(int=attempt.int + 1), on=on)
        return found[0] if found and found[0].attempt == attempt else None

    async def call_with_entries(
        self, attempt: UUID, *, tenant: UUID | None = None
    ) -> tuple[CallRecord, list[EntryRecord]] | None:
        """One attempt and all of its entries as of one moment: the cost is the entries' sum, also while a
        refund is being written.
        """
        async with self._connection() as db:
            await db.execution_options(isolation_level="REPEATABLE READ")
            found = await self.call(attempt, tenant=tenant, on=db)
            return None if found is None else (found, await self.entries(attempt, on=db))

    async def entries(self, attempt: UUID, *, on: AsyncConnection | None = None) -> list[EntryRecord]:
        """Every fact about the money of one attempt, the terminal entry first."""
        query = "SELECT * FROM entries WHERE attempt = :attempt ORDER BY slot"
        rows = await self._read(query, on, attempt=attempt)
        return [
            EntryRecord(
                slot=row["slot"], kind=EntryKind(row["kind"]), amount=row["amount"],
                upstream_amount=row["upstream_amount"], why=Why(row["why"]), at=row["at"],
                evidence=row["evidence"],
            )
            for row in rows
        ]  # fmt: skip

    async def standings(self, budgets: Sequence[UUID]) -> dict[UUID, Standing]:
        """Where these budgets stand; one without a current account is missing."""
        rows = await self._read(
            "SELECT s.*, isfinite(s.ends_at) AS ends FROM budget_standing(:budgets) AS s",
            budgets=list(budgets),
        )
        return {
            row["budget"]: Standing(
                budget=row["budget"], starts_at=row["starts_at"],
                ends_at=row["ends_at"] if row["ends"] else None, limit=row["limit_nano"],
                settled=row["settled"], reserved=row["reserved"], overrun=row["overrun"],
                version=row["version"],
            )
            for row in rows
        }  # fmt: skip

    async def spend(
        self, group_by: Sequence[SpendKey], where: CallFilter, *, zone: str = "UTC", limit: int = 10_000
    ) -> list[dict[str, Any]]:
        """Resolved attempts summed by `group_by`, the dearest group first: `cost`, `upstream_cost`, `saved`
        (nano-dollars), `attempts`, `hits`, `input_tokens`, `output_tokens`, `cache_read_tokens`,
        `cache_write_tokens`. Days are days of `zone`. Raises KeyError for an unknown key.
        """
        conditions, parameters = _conditions(where)
        keys = [f"{_SPEND_KEYS[key]} AS {key}" for key in group_by]
        places = ", ".join(str(n) for n in range(1, len(keys) + 1))
        query = f"""
            SELECT {"".join(f"{key}, " for key in keys)}
                   coalesce(sum(t.cost), 0)::bigint AS cost, coalesce(sum(t.upstream_cost), 0)::bigint AS upstream_cost,
                   coalesce(sum(t.saved), 0)::bigint AS saved, count(*) AS attempts,
                   count(*) FILTER (WHERE t.state = 4) AS hits,
                   coalesce(sum(t.input_tokens), 0)::bigint AS input_tokens,
                   coalesce(sum(t.output_tokens), 0)::bigint AS output_tokens,
                   coalesce(sum(t.cache_read_tokens), 0)::bigint AS cache_read_tokens,
                   coalesce(sum(t.cache_write_5m_tokens) + sum(t.cache_write_1h_tokens), 0)::bigint AS cache_write_tokens
            {_JOINS}
             WHERE {" AND ".join(conditions)} AND t.state <> 0
             {f"GROUP BY {places}" if keys else ""} ORDER BY cost DESC LIMIT :limit
        """
        if "day" in group_by:
            parameters["zone"] = zone
        return [dict(row) for row in await self._read(query, **parameters, limit=limit)]

    async def violations(self, since: dt.datetime | None = None) -> list[Violation]:
        """Broken invariants among periods that began, and attempts minted, since then; [] is a proof for
        one snapshot. It reads the whole range: give metrics a near `since`, None means everything.
        """
        if since is None:
            rows = await self._read("SELECT * FROM check_invariants()")
        else:
            rows = await self._read("SELECT * FROM check_invariants(:since)", since=since)
        return [Violation(**row) for row in rows]

    async def partition_days_ahead(self) -> float:
        """Days until the ledger has nowhere to write; alert below 45."""
        return float((await self._read("SELECT partition_days_ahead() AS days"))[0]["days"])

    async def audit_first_bad(self) -> int | None:
        """Number of the first audit record that was edited, removed or reordered; None when the chain holds."""
        return cast("int | None", (await self._read("SELECT audit_first_bad() AS seq"))[0]["seq"])

    async def _read(
        self, query: str, on: AsyncConnection | None = None, **parameters: Any
    ) -> Sequence[RowMapping]:
        """On a connection of its own, unless the question is part of a snapshot."""
        if on is not None:
            return (await on.execute(text(query), parameters)).mappings().all()
        async with self._connection() as db:
            return (await db.execute(text(query), parameters)).mappings().all()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with self._engine.connect() as db:
                yield db
        except _AWAY as error:
            raise BankAway(f"Postgres does not answer: {type(error).__name__}") from error


def _conditions(where: CallFilter) -> tuple[list[str], dict[str, Any]]:
    """Time bounds are also told as bounds of ids, so that old partitions are not read."""
    conditions = ["true"]
    parameters: dict[str, Any] = {}
    for name in ("tenant", "project", "key"):
        if (value := getattr(where, name)) is not None:
            conditions.append(f"t.{name} = :{name}")
            parameters[name] = value
    if where.model is not None:
        conditions.append("t.model = (SELECT id FROM labels WHERE kind = 1 AND value = :model)")
        parameters["model"] = where.model
    if where.outcome is not None:
        conditions.append("t.state = :outcome")
        parameters["outcome"] = int(where.outcome)
    if where.call is not None:
        conditions.append(_OF_CALL)
        parameters |= _of_call(where.call)
    if where.since is not None:
        conditions.append("t.admitted_at >= :since AND t.attempt >= uuid7_floor(:since_id)")
        parameters |= {"since": where.since, "since_id": where.since - _ID_SLACK}
    if where.until is not None:
        conditions.append("t.admitted_at < :until AND t.attempt < uuid7_floor(:until_id)")
        parameters |= {"until": where.until, "until_id": where.until + _ID_SLACK}
    return conditions, parameters


def _of_call(call: UUID) -> dict[str, Any]:
    """No index is by call, but the ids of its attempts say about its own time."""
    at, unit = call.int >> 80, dt.timedelta(milliseconds=1)
    first = UUID(int=max(at - _ID_SLACK // unit, 0) << 80)
    last = UUID(int=min(at + (_CALL_SPAN + _ID_SLACK) // unit, (1 << 48) - 1) << 80)
    return {"call": call, "first": first, "last": last, "first_bytes": first, "last_bytes": last}


def _call(row: RowMapping) -> CallRecord:
    return CallRecord(
        attempt=row["attempt"], call=row["call"], tenant=row["tenant"], tenant_slug=row["tenant_slug"],
        project=row["project"], project_slug=row["project_slug"], key=row["key"],
        operation=Operation(row["operation"]), model=row["model_name"] or "", target=row["target_name"] or "",
        tags=row["tags_value"] or "", outcome=State(row["state"]),
        why=None if row["why"] is None else Why(row["why"]), usage=_usage(row), ceiling=row["ceiling"],
        cost=row["cost"], upstream_cost=row["upstream_cost"], saved=row["saved"],
        price_version=row["price_version"] or "", upstream_request_id=row["upstream_request_id"],
        status=row["status"], admitted_at=row["admitted_at"], finished_at=row["finished_at"],
        latency_ms=row["latency_ms"], first_byte_ms=row["first_byte_ms"],
    )  # fmt: skip


def _usage(row: RowMapping) -> Usage | None:
    if row["input_tokens"] is None:
        return None
    return Usage(
        input_tokens=row["input_tokens"], output_tokens=row["output_tokens"],
        cache_read_tokens=row["cache_read_tokens"], cache_write_5m_tokens=row["cache_write_5m_tokens"],
        cache_write_1h_tokens=row["cache_write_1h_tokens"], images=row["images"],
        guardrail_units=row["guardrail_units"], exact=bool(row["usage_exact"]),
    )  # fmt: skip
