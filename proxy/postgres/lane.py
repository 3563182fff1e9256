"""One connection that admits and settles: a batch at a time, each batch one statement.

The connection is taken out of the engine's pool for good, in autocommit; the driver is called
directly. A lane never waits long: it hands `Again` back for whatever was not decided, and the
callers ask again within their own deadlines while the lane serves everybody else.

What one item does to the others of its batch:
  * Its account is locked by somebody (a slow administrator, a report gone wrong): the batch waits
    250 ms once; then the statement is repeated passing over locked accounts, so the others are
    served. For a second the tenants concerned travel in a batch of their own.
  * Its budget refuses it: the cheap statement does nothing and the batch is judged one by one. For a moment
    that tenant travels in a batch of its own, so that whoever hammers a spent budget leaves the cheap one to
    the others.
  * It cannot be stored at all: the batch is halved until it stands alone. Nobody else is harmed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from proxy import failpoints
from proxy.batcher import Batcher
from proxy.domain.ledger import Admission, Settled, Verdict
from proxy.errors import BankAway
from proxy.postgres import swift, wire
from proxy.postgres.engine import owns_sessions
from proxy.postgres.wire import Again, Hit, Move

log = logging.getLogger("tollhouse.bank")

Answer = Settled | Admission | Again
Item = Move | Hit

#: a batch whose answer takes longer is given up and its connection dropped
STATEMENT_TIMEOUT_S = 1.2
CONNECT_TIMEOUT_S = 1.5
SUSPICION_S = 1.0
#: after a denial a tenant's items are judged at once: the next is likely to be another one
JUDGE_S = 0.25
#: plans are made anew this often, for what the tables have become
PLAN_AGE_S = 60.0
#: turns of the event loop for which a crowd waits. At 16 calls at once a statement takes 8.5 items so instead of 6.9,
#: and most of a statement's cost, here and in Postgres, is the same for any number
CROWD_TURNS = 4
#: first two characters of SQLSTATEs that blame the data of a batch: data, integrity, raised by our SQL
_POISON_CLASSES = {"22", "23", "P0", "TH"}


class _LockedError(Exception):
    """A lock was not free within the lock timeout."""


class _PoisonError(Exception):
    """The batch cannot be stored as it is."""


class _UndecidedError(Exception):
    """Nothing is known about the batch; it may be asked again."""


def _fits_one(items: Sequence[tuple[UUID, Item]]) -> bool:
    """One statement takes all of them: no hits, and no attempt twice."""
    ids: set[UUID] = set()
    count = 0
    for _, item in items:
        if isinstance(item, Hit):
            return False
        if item.settlement is not None:
            ids.add(item.settlement.attempt)
            count += 1
        if item.attempt is not None:
            ids.add(item.attempt.attempt)
            count += 1
    return len(ids) == count


class Lane:
    """Owns one connection and one queue."""

    def __init__(self, engine: AsyncEngine, *, max_items: int, max_waiting: int) -> None:
        self._engine = engine
        self._held: AsyncConnection | None = None
        self._driver: asyncpg.Connection[asyncpg.Record] | None = None
        self._planned_at = 0.0
        self._callers = swift.Callers()
        #: tenants (or attempts, where the tenant is not known) whose accounts were locked, and until when
        self._suspects: dict[UUID, float] = {}
        #: tenants whose budgets refused a call, and until when their items are judged without being tried
        self._refused: dict[UUID, float] = {}
        self.batcher: Batcher[tuple[UUID, Item], Answer] = Batcher(
            self.send, max_items=max_items, max_waiting=max_waiting, turns=CROWD_TURNS
        )

    async def connect(self) -> asyncpg.Connection[asyncpg.Record]:
        """The held connection, made anew when it was lost. Raises BankAway."""
        if self._driver is not None and not self._driver.is_closed():
            if time.monotonic() - self._planned_at > PLAN_AGE_S:
                await self._driver.execute("DISCARD PLANS")
                self._planned_at = time.monotonic()
            return self._driver
        await self._drop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                held = await self._engine.connect()
                self._held = held
                await held.execution_options(isolation_level="AUTOCOMMIT")
                driver: asyncpg.Connection[asyncpg.Record] | None = (
                    await held.get_raw_connection()
                ).driver_connection
                if driver is None:
                    raise BankAway("the pool gave no connection")
                if owns_sessions(self._engine):
                    await driver.execute(f"SET statement_timeout = {int(STATEMENT_TIMEOUT_S * 1000)}")
        except (
            OSError,
            TimeoutError,
            SQLAlchemyError,
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
        ) as error:
            await self._drop()
            raise BankAway(f"Postgres does not answer: {type(error).__name__}") from error
        self._driver, self._planned_at = driver, time.monotonic()
        # Another server may count the directory's versions differently, having lost the last of them.
        self._callers = swift.Callers()
        return driver

    def _ready(self) -> asyncpg.Connection[asyncpg.Record] | None:
        """The held connection, where nothing has to be done to it first."""
        driver = self._driver
        if driver is None or driver.is_closed() or time.monotonic() - self._planned_at > PLAN_AGE_S:
            return None
        return driver

    async def close(self) -> None:
        await self.batcher.close()
        await self._drop()

    async def _drop(self) -> None:
        """Let the connection go without asking the server, which may hang."""
        held, driver, self._held, self._driver = self._held, self._driver, None, None
        if driver is not None:
            driver.terminate()
        if held is not None:
            try:
                await held.invalidate()
                await held.close()
            except (OSError, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError):
                log.debug("a lost connection did not close cleanly", exc_info=True)

    async def send(self, items: Sequence[tuple[UUID, Item]]) -> list[Answer | BaseException]:
        """What the batcher calls: one answer an item, in order."""
        if not self._suspects and not self._refused and _fits_one(items):
            return await self._send_round(items)
        answers: list[Answer | BaseException] = [Again("not asked")] * len(items)
        for places in self._rounds(items):
            for number, answer in zip(
                places, await self._send_round([items[n] for n in places]), strict=True
            ):
                answers[number] = answer
        return answers

    def _rounds(self, items: Sequence[tuple[UUID, Item]]) -> list[list[int]]:
        """Places of items for one statement each: in no statement stands an attempt twice, and
        items about the same attempt keep their order.
        """
        now = time.monotonic()
        self._suspects = {key: until for key, until in self._suspects.items() if until > now}
        self._refused = {key: until for key, until in self._refused.items() if until > now}
        rounds: list[tuple[tuple[bool, bool, bool], set[UUID], list[int]]] = []
        for place, (tenant, item) in enumerate(items):
            kind = (isinstance(item, Hit), tenant in self._suspects, tenant in self._refused)
            after = max(
                (n + 1 for n, (_, ids, _) in enumerate(rounds) if not ids.isdisjoint(item.ids)), default=0
            )
            chosen = next((r for r in rounds[after:] if r[0] == kind), None)
            if chosen is None:
                chosen = (kind, set(), [])
                rounds.append(chosen)
            chosen[1].update(item.ids)
            chosen[2].append(place)
        return [places for _, _, places in rounds]

    async def _send_round(self, items: Sequence[tuple[UUID, Item]]) -> list[Answer | BaseException]:
        hits = [item for _, item in items if isinstance(item, Hit)]
        if hits:
            return await self._isolate(hits, skip_locked=False)
        moves = [item for _, item in items if isinstance(item, Move)]
        first = items[0][0]  # all of a round are of its kind
        answers = await self._isolate(
            moves, skip_locked=first in self._suspects, judge=first in self._refused
        )
        now = time.monotonic()
        for (tenant, _), answer in zip(items, answers, strict=True):
            if isinstance(answer, Again):
                if answer.reason == wire.LOCKED:
                    self._suspects[tenant] = now + SUSPICION_S
            elif isinstance(answer, Admission) and answer.verdict is Verdict.DENIED:
                self._refused[tenant] = now + JUDGE_S
        return answers

    async def _isolate(
        self, items: Sequence[Item], *, skip_locked: bool, judge: bool = False
    ) -> list[Answer | BaseException]:
        try:
            return list(await self._statement(items, skip_locked=skip_locked, judge=judge))
        except _UndecidedError as error:
            return [Again(str(error), undecided=True)] * len(items)
        except _LockedError:
            if skip_locked:
                return [Again(wire.LOCKED)] * len(items)
            return await self._isolate(items, skip_locked=True)
        except _PoisonError as error:
            if len(items) == 1:
                log.error("the bank cannot store attempt %s: %s", items[0].ids[0], error)
                return [BankAway(f"the bank cannot store this attempt: {error}")]
        half = len(items) // 2
        first = await self._isolate(items[:half], skip_locked=skip_locked)
        return first + await self._isolate(items[half:], skip_locked=skip_locked)

    async def _statement(self, items: Sequence[Item], *, skip_locked: bool, judge: bool) -> Sequence[Answer]:
        hits = [item for item in items if isinstance(item, Hit)]
        if hits:
            return wire.hit_answers(hits, await self._fetch(wire.RECORD_HITS, wire.hit_columns(hits)))
        moves = [item for item in items if isinstance(item, Move)]
        try:
            failpoints.reach_statement("before", moves)
            answers = await self._move(moves, skip_locked=skip_locked, judge=judge)
            failpoints.reach_statement("after", moves)
        except OSError as error:
            raise _UndecidedError(str(error)) from error
        return answers

    async def _move(self, moves: Sequence[Move], *, skip_locked: bool, judge: bool) -> Sequence[Answer]:
        """The cheap way where nothing speaks against it; what is not plain is judged one by one."""
        if not skip_locked and not judge and swift.plain(moves):
            batch = swift.Swift(moves, self._callers)
            try:
                ((row,),) = await self._fetch(batch.query, batch.columns)
            except _PoisonError:
                done = None
            else:
                done = batch.answers(row)
            if done is not None:
                return done
            self._callers = swift.Callers()
        query, columns = wire.move_call(moves, skip_locked=skip_locked)
        return wire.move_answers(moves, await self._fetch(query, columns))

    async def _fetch(self, query: str, columns: Sequence[Any]) -> Sequence[Any]:
        """Raises one of the three ways a batch can fail."""
        try:
            driver = self._ready()
            if driver is None:
                async with asyncio.timeout(STATEMENT_TIMEOUT_S + CONNECT_TIMEOUT_S):
                    driver = await self.connect()
            # A timer that ends the connection costs a tenth of asyncio.timeout; dropped it would be anyway.
            timer = asyncio.get_running_loop().call_later(STATEMENT_TIMEOUT_S, driver.terminate)
            try:
                return await driver.fetch(query, *columns)
            finally:
                timer.cancel()
        except BankAway as error:
            raise _UndecidedError(str(error)) from error
        except asyncpg.LockNotAvailableError as error:
            raise _LockedError from error
        except asyncpg.PostgresError as error:
            state = error.sqlstate or ""
            if state[:2] in _POISON_CLASSES:
                raise _PoisonError(str(error)) from error
            if not isinstance(error, asyncpg.DeadlockDetectedError | asyncpg.QueryCanceledError):
                log.warning("the bank failed: %s %s", state, error)
                await self._drop()
            raise _UndecidedError(f"Postgres failed: {state}") from error
        except (
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
            OSError,
        ) as error:  # TimeoutError is an OSError
            if isinstance(error, ValueError):  # a value the driver cannot encode
                raise _PoisonError(str(error)) from error
            await self._drop()
            raise _UndecidedError(f"Postgres does not answer: {type(error).__name__}") from error
        except (ValueError, TypeError, OverflowError) as error:
            raise _PoisonError(str(error)) from error
        except asyncio.CancelledError:
            await self._drop()
            raise
