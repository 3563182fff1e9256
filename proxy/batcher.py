"""Natural batching: while one batch is away, the next gathers. There is no timer.

An idle batcher sends at once, together with whatever else was submitted in the same turn of the event
loop; a busy one sends everything that gathered meanwhile as soon as the batch before is back. So a
quiet system pays no wait and a busy one shares each trip. Where a trip is dear, a crowd is let grow for a
few turns of the loop: what is ready to run submits its items, too, instead of just missing the batch.

Obligations of `send`: it takes 1 to `max_items` items and returns one result per item, in order. An
exception in a result's place goes to that item's caller alone; one that `send` raises goes to every
caller of the batch. It bounds its own time: until it returns, nothing else is sent.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

#: so many that gathered while one batch was away are a crowd: more will come in the loop's next turns
CROWD = 4

Item = TypeVar("Item")
Result = TypeVar("Result")


class BatcherFullError(Exception):
    """Too many items wait; this one was not taken. Shed the load, do not retry at once."""


class BatcherClosedError(Exception):
    """The batcher takes no more items; this one was not sent."""


class _Entry(Generic[Item, Result]):
    __slots__ = ("ends", "future", "item", "sent")

    def __init__(self, item: Item, future: asyncio.Future[Result]) -> None:
        self.item = item
        self.future = future
        self.sent = False
        #: by the loop's clock
        self.ends = 0.0


class _Waits:
    """The entries that wait no longer than a while. One timer for all of them, set for the one that ends
    first: a timer each would cost more than everything else that a submit does.
    """

    __slots__ = ("_due", "_entries", "_timer")

    def __init__(self) -> None:
        self._entries: dict[_Entry[Any, Any], None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def add(self, entry: _Entry[Any, Any], loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        entry.ends = ends = loop.time() + seconds
        self._entries[entry] = None
        if self._timer is None or ends < self._due:
            self._set(loop, ends)

    def remove(self, entry: _Entry[Any, Any]) -> None:
        del self._entries[entry]

    def _set(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._due = loop.call_at(due, self._end, loop), due

    def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = max(loop.time(), self._due)
        left = []
        for entry in self._entries:
            if entry.ends > now:
                left.append(entry.ends)
            elif not entry.future.done():
                entry.future.set_exception(TimeoutError())
        if left:
            self._set(loop, min(left))


class Batcher(Generic[Item, Result]):
    """Merges concurrent `submit`s into calls of `send`. Belongs to the loop it first runs in."""

    def __init__(
        self,
        send: Callable[[list[Item]], Awaitable[Sequence[Result | BaseException]]],
        *,
        max_items: int = 256,
        max_waiting: int = 4096,
        turns: int = 0,
    ) -> None:
        """`turns`: of the event loop, for which a crowd waits before it is sent."""
        self._send = send
        self._turns = turns
        self._max_items = max_items
        self._max_waiting = max_waiting
        self._queue: deque[_Entry[Item, Result]] = deque()
        self._waiting = 0  # entries of the queue whose caller is still there
        self._waits = _Waits()
        self._runner: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        """Items not sent yet."""
        return self._waiting

    async def submit(self, item: Item, *, timeout_s: float | None = None) -> Result:
        """The result of `item`. Raises BatcherFullError or BatcherClosedError (never sent), TimeoutError.

        After a TimeoutError or a cancellation an item that still waited is never sent; one that was
        away may have had its effect.
        """
        if self._closed:
            raise BatcherClosedError
        if self._waiting >= self._max_waiting:
            raise BatcherFullError
        loop = asyncio.get_running_loop()
        entry: _Entry[Item, Result] = _Entry(item, loop.create_future())
        self._enqueue(entry)
        if timeout_s is not None:
            self._waits.add(entry, loop, timeout_s)
        try:
            return await entry.future
        finally:
            if timeout_s is not None:
                self._waits.remove(entry)
            if not entry.sent:
                entry.future.cancel()
                self._waiting -= 1

    async def close(self) -> None:
        """Send what waits, wait for it, take nothing more."""
        self._closed = True
        while self._runner is not None:
            await asyncio.wait([self._runner])

    def _enqueue(self, entry: _Entry[Item, Result]) -> None:
        if len(self._queue) >= 2 * self._max_waiting:  # mostly callers who left
            self._queue = deque(waiting for waiting in self._queue if not waiting.future.done())
        self._queue.append(entry)
        self._waiting += 1
        if self._runner is None:
            self._runner = asyncio.create_task(self._run(), name="batcher")

    def _next_batch(self) -> list[_Entry[Item, Result]]:
        batch: list[_Entry[Item, Result]] = []
        while self._queue and len(batch) < self._max_items:
            entry = self._queue.popleft()
            if not entry.future.done():
                entry.sent = True
                batch.append(entry)
        self._waiting -= len(batch)
        return batch

    async def _run(self) -> None:
        try:
            while batch := self._next_batch():
                await self._send_batch(batch)
                if self._waiting >= CROWD:
                    for _ in range(self._turns):
                        await asyncio.sleep(0)
        except asyncio.CancelledError:  # the loop is closing
            for entry in self._queue:
                entry.future.cancel()
            raise
        finally:
            self._runner = None

    async def _send_batch(self, batch: list[_Entry[Item, Result]]) -> None:
        outcome: Sequence[Result | BaseException]
        try:
            outcome = await self._send([entry.item for entry in batch])
            if len(outcome) != len(batch):
                raise RuntimeError(f"{len(outcome)} results for {len(batch)} items")
        except asyncio.CancelledError:
            for entry in batch:
                entry.future.cancel()
            raise
        except Exception as error:
            outcome = [error] * len(batch)
        for entry, result in zip(batch, outcome, strict=True):
            if entry.future.done():
                continue
            if isinstance(result, BaseException):
                entry.future.set_exception(result)
            else:
                entry.future.set_result(result)
