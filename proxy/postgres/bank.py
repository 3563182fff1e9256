"""The bank as the exchange sees it: `proxy.ports.Bank` over Postgres.

Every call becomes an item of a lane; a lane merges the items of all waiting calls into one
statement. Retries carry the same attempt ids, so they are answered and never counted twice.

While Postgres is away, or an account stays locked, a call asks again until its deadline and then
raises `BankAway`: nothing is known then, the same attempt may be asked for again, and nothing may be
sent. Work on one attempt always takes the lane that admitted it: a settlement can never overtake an
admission that is still under way.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast
from uuid import UUID

import asyncpg
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from proxy.batcher import BatcherClosedError, BatcherFullError
from proxy.domain.admission import Amendment
from proxy.domain.ledger import Admission, Attempt, Outcome, Settled, Settlement, State
from proxy.errors import BankAway
from proxy.postgres import wire
from proxy.postgres.lane import Answer, Lane
from proxy.postgres.wire import Again, Held, Hit, Move

log = logging.getLogger("tollhouse.bank")

_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.25
_ROLL_EVERY_S = 2.0
#: admissions that are remembered, to settle them on the lane that admitted them
_REMEMBERED = 200_000
_AWAY = (OSError, TimeoutError, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError)


@dataclass(frozen=True, slots=True)
class Sweep:
    """`leader` is False when another process sweeps now. `more`: the bound was reached, go on."""

    leader: bool
    swept: int
    more: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """What the bank knows of one attempt."""

    state: State
    recorder: UUID
    ceiling: int


class PostgresBank:
    """Holds `lanes` connections of the engine's pool for as long as it lives.

    Behind PgBouncer, where session settings would leak to others, the role needs a `statement_timeout` of
    a second.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        lanes: int = 1,
        admit_timeout_s: float = 2.0,
        settle_timeout_s: float = 10.0,
        max_items: int = 256,
        max_waiting: int = 4096,
    ) -> None:
        self._engine = engine
        self._admit_timeout_s = admit_timeout_s
        self._settle_timeout_s = settle_timeout_s
        self._lanes = [Lane(engine, max_items=max_items, max_waiting=max_waiting) for _ in range(lanes)]
        self._open: OrderedDict[UUID, Move] = OrderedDict()
        self._rolling: asyncio.Task[None] | None = None
        self._rolled_at = float("-inf")

    async def start(self) -> None:
        """Raises BankAway when Postgres does not answer."""
        for lane in self._lanes:
            await lane.connect()

    async def aclose(self) -> None:
        """Send what waits, then give the connections back."""
        if self._rolling is not None:
            self._rolling.cancel()
            await asyncio.gather(self._rolling, return_exceptions=True)
        for lane in self._lanes:
            await lane.close()

    # ---- proxy.ports.Bank --------------------------------------------------------------------

    async def admit(self, attempt: Attempt) -> Admission:
        """Raises BankAway after `admit_timeout_s`, or at once when too many wait."""
        move = self._remember(attempt, Move(attempt=attempt))
        return cast("Admission", await self._ask(move, attempt.tenant, self._admit_timeout_s))

    async def settle(self, settlement: Settlement) -> Settled:
        """Raises BankAway after `settle_timeout_s`; settling again is harmless."""
        tenant, releases = self._recall(settlement)
        move = Move(settlement, releases=releases)
        answer = cast("Settled", await self._ask(move, tenant, self._settle_timeout_s))
        self._open.pop(settlement.attempt, None)
        return answer

    async def settle_and_admit(self, settlement: Settlement, attempt: Attempt) -> Admission:
        """Both happen or neither. Raises BankAway like `admit`; then do not assume either."""
        move = self._remember(attempt, Move(settlement, attempt, releases=self._recall(settlement)[1]))
        answer = cast("Admission", await self._ask(move, attempt.tenant, self._admit_timeout_s))
        self._open.pop(settlement.attempt, None)
        return answer

    async def record_hit(self, attempt: Attempt, settlement: Settlement, saved: int) -> Admission:
        """Ledger an answer out of the cache: cost 0, `settlement.usage` the original's, `saved` what it
        would have cost in nano-dollars. Verdicts: OK, DUPLICATE, REVOKED, STALE. Raises BankAway.
        """
        return cast(
            "Admission",
            await self._ask(Hit(attempt, settlement, saved), attempt.tenant, self._admit_timeout_s),
        )

    # ---- what workers ask --------------------------------------------------------------------

    async def sweep(self, deadline_seconds: float, at_most: int = 256) -> Sweep:
        """Charge the ceiling of attempts open for longer than twice `deadline_seconds`. Raises BankAway."""
        row = await self._one(
            "SELECT leader, swept, more FROM bank_sweep(:deadline, :at_most)",
            deadline=deadline_seconds,
            at_most=at_most,
        )
        return Sweep(leader=bool(row[0]), swept=int(row[1]), more=bool(row[2]))

    async def amend(self, amendments: Sequence[Amendment]) -> list[Outcome]:
        """Refunds and corrections, each with its evidence, all in one transaction; one outcome each:
        SETTLED, ALREADY (same evidence), UNKNOWN, REFUSED. Raises BankAway; amending again is harmless.
        """
        query = text(
            "SELECT ord, answer FROM bank_amend(:ids, :kinds, :amounts, :upstream, :whys, :evidence)"
        )
        columns = {
            "ids": [a.attempt for a in amendments],
            "kinds": [int(a.kind) for a in amendments],
            "amounts": [a.amount for a in amendments],
            "upstream": [a.upstream_amount for a in amendments],
            "whys": [int(a.why) for a in amendments],
            "evidence": [a.evidence for a in amendments],
        }
        try:
            async with self._engine.begin() as db:
                rows = (await db.execute(query, columns)).all()
        except _AWAY as error:
            raise BankAway(f"Postgres did not amend: {type(error).__name__}") from error
        return [Outcome(answer) for _, answer in sorted((row[0], row[1]) for row in rows)]

    async def states(self, attempts: Sequence[UUID]) -> dict[UUID, Standing]:
        """How these attempts stand; those the bank does not know are missing. Raises BankAway."""
        try:
            async with self._engine.connect() as db:
                rows = await db.execute(
                    text("SELECT attempt, state, recorder, ceiling FROM bank_states(:ids)"),
                    {"ids": list(attempts)},
                )
                return {row[0]: Standing(State(row[1]), row[2], row[3]) for row in rows}
        except _AWAY as error:
            raise BankAway(f"Postgres does not answer: {type(error).__name__}") from error

    async def roll_periods(self) -> int:
        """Open the accounts of coming periods; returns how many were made. Raises BankAway."""
        return int((await self._one("SELECT roll_periods()"))[0])

    async def ensure_partitions(self, months: int = 4) -> int:
        """Make the ledger's partitions for the months ahead; returns how many were made. Raises BankAway."""
        return int((await self._one("SELECT ensure_partitions(:months)", months=months))[0])

    async def clock_skew_seconds(self) -> float:
        """How far our clock is ahead of the database's, seconds. Raises BankAway."""
        before = time.time()
        row = await self._one("SELECT extract(epoch FROM clock_timestamp())::double precision")
        return (before + time.time()) / 2 - float(row[0])

    # ---- inside ------------------------------------------------------------------------------

    async def _one(self, query: str, **parameters: object) -> tuple[Any, ...]:
        try:
            async with self._engine.begin() as db:
                return tuple((await db.execute(text(query), parameters)).one())
        except _AWAY as error:
            raise BankAway(f"Postgres does not answer: {type(error).__name__}") from error

    def _remember(self, attempt: Attempt, move: Move) -> Move:
        self._open[attempt.attempt] = move
        if len(self._open) > _REMEMBERED:
            self._open.popitem(last=False)
        return move

    def _recall(self, settlement: Settlement) -> tuple[UUID, Held | None]:
        """What chooses the lane of a settlement, and what its attempt holds, where we admitted it."""
        admitted = self._open.get(settlement.attempt)
        if admitted is None or admitted.attempt is None:
            return settlement.attempt, None
        return admitted.attempt.tenant, admitted.holds

    async def _ask(self, item: Move | Hit, tenant: UUID, timeout_s: float) -> Answer:
        lane = self._lanes[tenant.int % len(self._lanes)]
        deadline = time.monotonic() + timeout_s
        pause, reason = _FIRST_PAUSE_S, "Postgres did not answer in time"
        undecided = False
        while (left := deadline - time.monotonic()) > 0:
            try:
                answer = await lane.batcher.submit((tenant, item), timeout_s=left)
            except TimeoutError:
                break
            except BatcherFullError:
                raise BankAway("too many calls wait for the bank") from None
            except BatcherClosedError:
                raise BankAway("the bank is shutting down") from None
            if not isinstance(answer, Again):
                if undecided and isinstance(answer, Admission):
                    return replace(answer, undecided=True)
                return answer
            reason, undecided = answer.reason, undecided or answer.undecided
            if reason == wire.NO_ACCOUNT:
                self._roll()
            await asyncio.sleep(min(pause * random.uniform(0.5, 1.0), max(0.0, deadline - time.monotonic())))
            pause = min(pause * 2, _LONGEST_PAUSE_S)
        raise BankAway(reason)

    def _roll(self) -> None:
        """A budget without a current account admits nothing: the leader is late, so help it."""
        now = time.monotonic()
        if self._rolling is None and now - self._rolled_at > _ROLL_EVERY_S:
            self._rolled_at = now
            self._rolling = asyncio.create_task(self._roll_once(), name="roll periods")

    async def _roll_once(self) -> None:
        try:
            made = await self.roll_periods()
            log.warning("a budget had no account for this period; %d were opened", made)
        except BankAway as error:
            log.warning("periods were not rolled: %s", error)
        finally:
            self._rolling = None
