"""What comes after an exchange: settlements that could not be made at once, and calls that wait for
budget which running calls still hold.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import itertools
import logging
from collections.abc import Iterable
from uuid import UUID

from proxy import failpoints, telemetry
from proxy.domain.ledger import Outcome, Settlement
from proxy.errors import BankAway
from proxy.ports import Bank, Recorder

log = logging.getLogger("tollhouse.settler")

#: a settlement of another replica is noticed after so long, seconds, by so many of those who wait
_LOOK_SECONDS = 0.25
_LOOK_AT_ONCE = 8


class HeldQueue:
    """Calls that a budget would have room for if running calls ended.

    In the order in which they came, and without a herd: a settlement wakes the first of its budget only,
    because all at once would ask the bank n times for one place, and whoever gets in wakes the next. What
    other replicas settle shows when the first few look again. A call keeps its place however often it waits.
    """

    def __init__(self) -> None:
        self._waiting: dict[UUID, list[tuple[int, asyncio.Future[None]]]] = {}
        self._looking: set[UUID] = set()
        self._places = itertools.count()

    def place(self) -> int:
        """A place behind everybody who has one."""
        return next(self._places)

    async def wait(self, budget: UUID, seconds: float, place: int) -> None:
        """Return when something of the budget came back, when it is this call's turn to look again, or
        after `seconds`.
        """
        queue = self._waiting.setdefault(budget, [])
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        bisect.insort(queue, (place, turn), key=_place_of)
        self._look_again(budget)
        try:
            async with asyncio.timeout(seconds):
                await turn
        except TimeoutError:
            pass
        finally:
            with contextlib.suppress(ValueError):
                queue.remove((place, turn))
            if not queue and self._waiting.get(budget) is queue:
                del self._waiting[budget]

    def freed(self, budgets: Iterable[UUID]) -> None:
        """Money of these budgets moved."""
        if not self._waiting:
            return
        for budget in budgets:
            self._wake(budget, 1)

    def _wake(self, budget: UUID, most: int) -> None:
        queue = self._waiting.get(budget)
        while queue and most:
            _, turn = queue.pop(0)
            if not turn.done():
                turn.set_result(None)
                most -= 1

    def _look_again(self, budget: UUID) -> None:
        if budget not in self._looking:
            self._looking.add(budget)
            asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look, budget)

    def _look(self, budget: UUID) -> None:
        self._looking.discard(budget)
        if budget in self._waiting:
            self._wake(budget, _LOOK_AT_ONCE)
            self._look_again(budget)


def _place_of(waiting: tuple[int, asyncio.Future[None]]) -> int:
    return waiting[0]


class Settler:
    """Takes over settlements that the bank could not take at once, until it does.

    The flight recorder already holds them, so a crash loses none; giving up is not a state.
    """

    def __init__(self, bank: Bank, recorder: Recorder, queue: HeldQueue) -> None:
        self._bank = bank
        self._queue = queue
        self._recorder = recorder
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Settlements not yet in the bank."""
        return len(self._tasks)

    async def settle(self, settlement: Settlement) -> None:
        """One try. Raises `BankAway`."""
        settled = await self._bank.settle(settlement)
        if settled.outcome is Outcome.UNKNOWN:
            log.warning("attempt %s is unknown to the bank", settlement.attempt)
        telemetry.settled(settlement, settled)
        self._queue.freed(settled.budgets)
        self._recorder.closed(settlement.attempt)

    def later(self, settlement: Settlement, delay: float = 0.0) -> None:
        """Settle in the background, with back-off, for as long as it takes."""
        task = asyncio.create_task(self._persist(settlement, delay))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _persist(self, settlement: Settlement, delay: float) -> None:
        while True:
            await asyncio.sleep(delay)
            failpoints.reach("settle_later", settlement.attempt)
            try:
                await self.settle(settlement)
            except BankAway:
                delay = min(max(delay * 2, 0.1), 2.0)
            else:
                return

    async def drain(self, seconds: float) -> None:
        """Wait for the backlog, at most so long; what is left is in the flight recorder."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=seconds)
