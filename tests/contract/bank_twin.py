"""Two worlds with one stage: the bank in Postgres and its twin in memory, set up and read alike."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol
from uuid import UUID, uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from proxy.clock import now_us, uuid7
from proxy.domain import admission
from proxy.domain.admission import Amendment
from proxy.domain.ledger import Attempt, Operation, Outcome, Settlement, State, Why
from proxy.domain.usage import Usage
from proxy.ports import Bank
from proxy.postgres.bank import PostgresBank
from proxy.testing_bank import MemoryBank

DAY_US = 86_400_000_000


@dataclass(frozen=True, kw_only=True)
class Caller:
    """A key of some tenant, in a project unless `project` is None."""

    tenant: UUID
    project: UUID | None
    key: UUID
    credential: UUID

    def attempt(self, ceiling: int = 100, **changes: Any) -> Attempt:
        attempt = Attempt(
            attempt=uuid7(), call=uuid4(), tenant=self.tenant, project=self.project, key=self.key,
            credential=self.credential, recorder=uuid4(), operation=Operation.CONVERSE, model=7, target=8,
            price=9, ceiling=ceiling,
        )  # fmt: skip
        return replace(attempt, **changes)


def post(attempt: Attempt, cost: int, **changes: Any) -> Settlement:
    settlement = Settlement(
        attempt=attempt.attempt, state=State.POST, why=Why.USAGE, cost=cost, upstream_cost=cost,
        usage=Usage(input_tokens=11, output_tokens=cost), price=9, upstream_request_id="req-1", status=200,
        latency_ms=20, first_byte_ms=10,
    )  # fmt: skip
    return replace(settlement, **changes)


def void(attempt: Attempt, recorder: UUID | None = None) -> Settlement:
    return Settlement(attempt=attempt.attempt, state=State.VOID, why=Why.NEVER_SENT, recorder=recorder)


def at_ceiling(attempt: Attempt) -> Settlement:
    return Settlement(attempt=attempt.attempt, state=State.CEILING, why=Why.CUT)


@dataclass(frozen=True, kw_only=True)
class Money:
    """What the bank says of one budget's current account."""

    limit: int
    reserved: int
    settled: int
    overrun: int
    effective: int


class Correctable(Bank, Protocol):
    async def amend(self, amendments: Sequence[Amendment]) -> list[Outcome]: ...


class World(Protocol):
    @property
    def bank(self) -> Correctable: ...

    async def caller(self, *, tenant: Caller | None = None, project: bool = True) -> Caller: ...
    async def budget(
        self,
        scope: str,
        subject: UUID | None,
        tenant: UUID,
        limit: int,
        *,
        models: tuple[int, ...] = (),
        period_us: tuple[int, int] | None = None,
    ) -> UUID: ...
    async def without_account(self, budget: UUID) -> None: ...
    async def set_limit(self, budget: UUID, limit: int) -> None: ...
    async def top_up(self, budget: UUID, amount: int, until_us: int | None = None) -> None: ...
    async def expire_boosts(self, budget: UUID) -> None: ...
    async def end_budget(self, budget: UUID) -> None: ...
    async def revoke(self, caller: Caller) -> None: ...
    async def expire(self, caller: Caller) -> None: ...
    async def money(self, budget: UUID) -> Money: ...
    async def entries(self, attempt: UUID) -> list[tuple[int, int, int, int]]: ...
    async def cost(self, attempt: UUID) -> tuple[State, int | None, int | None]: ...
    async def sweep(self) -> int: ...
    async def faults(self) -> list[str]: ...
    async def record_hit(self, attempt: Attempt, settlement: Settlement, saved: int) -> Any: ...


class TwinWorld:
    """The book in memory."""

    def __init__(self) -> None:
        self.bank: MemoryBank = MemoryBank()
        self.book = self.bank.book

    async def caller(self, *, tenant: Caller | None = None, project: bool = True) -> Caller:
        made = Caller(
            tenant=tenant.tenant if tenant else uuid4(),
            project=(tenant.project if tenant else uuid4()) if project else None,
            key=uuid4(),
            credential=uuid4(),
        )
        self.bank.add_spender(made.tenant, made.project, made.key, made.credential)
        return made

    async def budget(self, scope, subject, tenant, limit, *, models=(), period_us=None) -> UUID:
        assert subject is not None
        return self.bank.add_budget(
            scope,
            subject,
            limit,
            models=frozenset(models) or None,
            period_us=period_us or (now_us() - DAY_US, None),
        )

    async def without_account(self, budget: UUID) -> None:
        for account in self.book.accounts.values():
            if account.budget == budget:
                account.ends_at_us = account.starts_at_us + 1

    async def set_limit(self, budget: UUID, limit: int) -> None:
        admission.set_limit(self.book, budget, limit, self.bank.clock())

    async def top_up(self, budget: UUID, amount: int, until_us: int | None = None) -> None:
        admission.top_up(self.book, budget, amount, until_us, self.bank.clock())

    async def expire_boosts(self, budget: UUID) -> None:
        for account in self.book.accounts.values():
            if account.budget == budget:
                account.boosts = [(amount, now_us() - 1_000_000) for amount, _ in account.boosts]

    async def end_budget(self, budget: UUID) -> None:
        self.book.budgets[budget].live = False

    async def revoke(self, caller: Caller) -> None:
        self.bank.revoke(caller.credential)

    async def expire(self, caller: Caller) -> None:
        self.book.spenders[caller.credential].expires_at_us = now_us() - 1

    async def money(self, budget: UUID) -> Money:
        now = self.bank.clock()
        a = next(a for a in self.book.accounts.values() if a.budget == budget and a.covers(now))
        return Money(
            limit=a.limit(now),
            reserved=a.reserved,
            settled=a.settled,
            overrun=a.overrun,
            effective=a.limit_effective,
        )

    async def entries(self, attempt: UUID) -> list[tuple[int, int, int, int]]:
        row = self.book.rows.get(attempt)
        return [(e.slot, int(e.kind), e.amount, e.upstream_amount) for e in row.entries] if row else []

    async def cost(self, attempt: UUID) -> tuple[State, int | None, int | None]:
        row = self.book.rows[attempt]
        return row.state, row.cost, row.upstream_cost

    async def sweep(self) -> int:
        return admission.sweep(self.book, -1_000_000, self.bank.clock())

    async def faults(self) -> list[str]:
        return admission.faults(self.book)

    async def record_hit(self, attempt: Attempt, settlement: Settlement, saved: int) -> Any:
        return await self.bank.record_hit(attempt, settlement, saved)


class PostgresWorld:
    """The same, by the SQL that the admin REST uses."""

    def __init__(self, engine: AsyncEngine, bank: PostgresBank) -> None:
        self.engine = engine
        self.bank = bank

    async def run(self, query: str, **parameters: Any) -> list[Any]:
        async with self.engine.begin() as db:
            result = await db.execute(text(query), parameters)
            return list(result.all()) if result.returns_rows else []

    async def caller(self, *, tenant: Caller | None = None, project: bool = True) -> Caller:
        made = Caller(
            tenant=tenant.tenant if tenant else uuid4(),
            project=(tenant.project if tenant else uuid4()) if project else None,
            key=uuid4(),
            credential=uuid4(),
        )
        if tenant is None:
            await self.run(
                "INSERT INTO tenants (id, slug, name) VALUES (:id, :slug, 'T')",
                id=made.tenant,
                slug=f"t-{made.tenant.hex}",
            )
        if made.project is not None and (tenant is None or tenant.project is None):
            await self.run(
                "INSERT INTO projects (id, tenant, slug, name) VALUES (:id, :tenant, 'p', 'P')",
                id=made.project,
                tenant=made.tenant,
            )
        await self.run(
            "INSERT INTO keys (id, tenant, project, name) VALUES (:id, :tenant, :project, 'k')",
            id=made.key,
            tenant=made.tenant,
            project=made.project,
        )
        await self.run(
            "INSERT INTO credentials (id, key, bearer_digest, bearer_prefix, last4, pepper_id)"
            " VALUES (:id, :key, :digest, 'th_test_x', 'abcd', 1)",
            id=made.credential,
            key=made.key,
            digest=hashlib.sha256(made.credential.bytes).digest(),
        )
        return made

    async def budget(self, scope, subject, tenant, limit, *, models=(), period_us=None) -> UUID:
        budget = uuid4()
        await self.run(
            "INSERT INTO budgets (id, scope, subject, tenant, period, limit_nano, models)"
            " VALUES (:id, :scope, :subject, :tenant, 'total', :limit, :models)",
            id=budget,
            scope=scope,
            subject=subject,
            tenant=tenant,
            limit=limit,
            models=list(models) or None,
        )
        if period_us is not None:
            await self.run(
                "UPDATE accounts SET starts_at = :starts, ends_at = :ends WHERE budget = :budget",
                budget=budget,
                starts=_moment(period_us[0]),
                ends=_moment(period_us[1]),
            )
        return budget

    async def without_account(self, budget: UUID) -> None:
        """As after an outage of the leader: the last account has ended and nobody opened another."""
        await self.run(
            "UPDATE accounts SET starts_at = starts_at - interval '10 days',"
            " ends_at = starts_at - interval '9 days' WHERE budget = :budget",
            budget=budget,
        )

    async def set_limit(self, budget: UUID, limit: int) -> None:
        await self.run(
            "UPDATE budgets SET limit_nano = :limit WHERE id = :budget", budget=budget, limit=limit
        )

    async def top_up(self, budget: UUID, amount: int, until_us: int | None = None) -> None:
        await self.run(
            "INSERT INTO adjustments (id, budget, amount, until, reason)"
            " VALUES (:id, :budget, :amount, :until, 'test')",
            id=uuid4(),
            budget=budget,
            amount=amount,
            until=None if until_us is None else _moment(until_us),
        )

    async def expire_boosts(self, budget: UUID) -> None:
        await self.run(
            "UPDATE accounts SET boost_untils = array_fill(now() - interval '1 second',"
            " ARRAY[cardinality(boost_untils)]) WHERE budget = :budget",
            budget=budget,
        )

    async def end_budget(self, budget: UUID) -> None:
        await self.run("UPDATE budgets SET deleted_at = now() WHERE id = :budget", budget=budget)

    async def revoke(self, caller: Caller) -> None:
        await self.run("UPDATE credentials SET revoked_at = now() WHERE id = :id", id=caller.credential)

    async def expire(self, caller: Caller) -> None:
        await self.run("UPDATE credentials SET expires_at = now() WHERE id = :id", id=caller.credential)

    async def money(self, budget: UUID) -> Money:
        ((limit, reserved, settled, overrun, effective),) = await self.run(
            "SELECT s.limit_nano, s.reserved, s.settled, s.overrun, a.limit_effective"
            " FROM budget_standing(ARRAY[CAST(:budget AS uuid)]) AS s JOIN accounts a ON a.id = s.account",
            budget=budget,
        )
        return Money(limit=limit, reserved=reserved, settled=settled, overrun=overrun, effective=effective)

    async def entries(self, attempt: UUID) -> list[tuple[int, int, int, int]]:
        rows = await self.run(
            "SELECT slot, kind, amount, upstream_amount FROM entries WHERE attempt = :id ORDER BY slot",
            id=attempt,
        )
        return [tuple(row) for row in rows]

    async def cost(self, attempt: UUID) -> tuple[State, int | None, int | None]:
        ((state, cost, upstream),) = await self.run(
            "SELECT state, cost, upstream_cost FROM attempts WHERE attempt = :id", id=attempt
        )
        return State(state), cost, upstream

    async def sweep(self) -> int:
        swept, more = 0, True
        while more:
            one = await self.bank.sweep(-1, 256)
            swept, more = swept + one.swept, one.more
        return swept

    async def faults(self) -> list[str]:
        return [" ".join(row) for row in await self.run("SELECT * FROM check_invariants()")]

    async def record_hit(self, attempt: Attempt, settlement: Settlement, saved: int) -> Any:
        return await self.bank.record_hit(attempt, settlement, saved)


def _moment(us: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(us / 1e6, tz=dt.UTC)
