"""The limiter over Redis, and what decides while Redis is away.

    1. A spend is one EVALSHA of `limiter.lua` on the worker's multiplexed connection.
    2. When Redis fails or is slower than the client's deadline, that call is decided by the declared
       mode, and so is every further call, at once, until a probe succeeds. The probe is a write
       (this worker's heartbeat), so a full or read-only Redis counts as away.
    3. Settlements that could not be delivered wait in a bounded backlog and are delivered when
       Redis is back. One that is lost costs an estimate that stays charged; its leases end by
       themselves.

Declared modes: `local` (in-process buckets with an equal part of every limit per worker), `deny`,
`allow`. No method raises.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from struct import Struct
from typing import Any, Literal, Self, cast
from uuid import UUID, uuid4

from redis.exceptions import ResponseError

from proxy.domain.bucket import (
    LEASE_TTL_US,
    UNITS_MAX,
    Decision,
    Mode,
    Spend,
    correction_us,
    decision,
    share,
)
from proxy.domain.bucketstore import Buckets
from proxy.redis.client import Argument, RedisAway, RedisClient, Script

log = logging.getLogger(__name__)

Away = Literal["local", "deny", "allow"]
#: a settlement: monotonic time after which it is of no use, KEYS, ARGV
_Entry = tuple[float, list[str], list[Argument]]

SCRIPT = Script(files("proxy.redis").joinpath("limiter.lua").read_text(encoding="utf-8"))
#: workers that share the limits while Redis is away: member = worker, score = end of its heartbeat
WORKERS_KEY = "th:workers"
HEARTBEAT_S = 1.0
PROBE_S = 0.25
_WORKER_TTL_S = 15
_BACKLOG = 10_000
_FLUSH_AT_ONCE = 500
_UNASKED_MAX = 100_000
_DENY_RETRY_MS = 1_000
#: a lost connection is tried once more if it was lost this soon, so that the call stays within bounds
_SECOND_TRY_WITHIN_S = 0.05
_PRUNE_EVERY_S = 5.0


@lru_cache(maxsize=1024)
def _integers(how_many: int) -> Struct:
    return Struct(f"<{how_many}q")


def _packed(numbers: list[int]) -> bytes:
    return _integers(len(numbers)).pack(*numbers)


@dataclass(slots=True)
class Counters:
    """For metrics; they only grow."""

    failures: int = 0  #: decisions that Redis should have made and did not
    lost_settlements: int = 0  #: corrections given up: backlog full or the record is over
    errors: int = 0  #: error replies of the server


def _keys(spend: Spend) -> list[str]:
    return [spend.record, spend.buckets, *[lease.key for lease in spend.leases]]


def _taking(spend: Spend) -> tuple[list[int], list[str]]:
    """What `spend` says of every bucket and lease, and the fields of the buckets."""
    numbers: list[int] = []
    for c in spend.charges:
        numbers += (*c.move(), c.enforce)
    for lease in spend.leases:
        numbers += (lease.slots, lease.enforce)
    return numbers, [c.key for c in spend.charges]


def _correcting(spend: Spend, actual: int) -> tuple[list[int], list[str]]:
    """What `settle` says of every token bucket that could be taken, and their fields. Requests stand as taken."""
    numbers: list[int] = []
    fields: list[str] = []
    for place, c in enumerate(spend.charges, 1):
        if c.dimension == "tokens" and c.per_minute > 0:
            numbers += (place, correction_us(c, actual))
            fields.append(c.key)
    return numbers, fields


class RedisLimiter:
    """A `ports.Limiter`. `start` it inside the event loop that uses it, `aclose` it before the client."""

    def __init__(
        self,
        redis: RedisClient,
        *,
        away: Away = "local",
        replicas: int | None = None,
        lease_ttl_s: float = LEASE_TTL_US / 1e6,
        clock_us: Callable[[], int] | None = None,
    ) -> None:
        """`replicas`: workers that share a limit in mode `local`; None counts heartbeats.

        `clock_us` replaces the time of the server and of this process, for tests only.
        """
        self.counters = Counters()
        self._redis = redis
        self._away_mode: Away = away
        self._replicas = replicas
        self._seen_workers = 1
        self._ttl_ms = max(int(lease_ttl_s * 1000), 1)
        self._clock_us = clock_us
        self._local = Buckets(self._ttl_ms * 1000)
        self._backlog: deque[_Entry] = deque()
        #: decided here, and Redis was never told of them
        self._unasked: set[UUID] = set()
        self._is_away = False
        self._worker = uuid4().hex
        self._alarm = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        redis.on_lost(self._alarm.set)

    @property
    def mode(self) -> Mode:
        """Who decides now: `redis`, or the declared mode while it is away."""
        return self._away_mode if self._is_away else "redis"

    @property
    def replicas(self) -> int:
        """Into how many parts a limit is cut in mode `local`."""
        return self._replicas or self._seen_workers

    async def start(self) -> None:
        """Returns when the first heartbeat was answered or failed."""
        await self._beat()
        self._watch()

    async def aclose(self) -> None:
        """Stop the heartbeat. Waits no longer than the client's deadline."""
        if self._watcher is not None:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher
            self._watcher = None
        if not self._is_away:
            with suppress(RedisAway, ResponseError):
                await self._redis.submit("ZREM", WORKERS_KEY, self._worker)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def spend(self, spend: Spend) -> Decision:
        """All or nothing; the same spend id gets the same decision as long as its record lives."""
        self._watch()
        if not self._is_away:
            keys, args = self._program("spend", spend)
            reply = await self._ask(keys, args)
            if reply is not None:
                return decision(spend, _integers(len(reply) >> 3).unpack(reply), "redis")
            self.counters.failures += 1
        else:
            self._unasked.add(spend.id)
        return self._decide_alone(spend)

    async def settle(self, spend: Spend, actual_tokens: int | None) -> None:
        """Hands the settlement over and returns; a later spend of this worker sees it."""
        self._watch()
        if self._local.knows(spend.id):
            self._local.settle(spend, actual_tokens, self._now_us())
        if spend.id in self._unasked:
            self._unasked.remove(spend.id)
            return
        actual = min(max(actual_tokens or 0, 0), UNITS_MAX)
        keys, args = self._program("settle", spend, actual)
        entry = (time.monotonic() + self._ttl_ms / 1000, keys, args)
        if self._is_away:
            self._keep(entry)
        else:
            self._deliver(entry)

    async def renew(self, spends: Sequence[Spend]) -> None:
        """Call it every `bucket.RENEW_EVERY_S` with the calls that still run. A lost renewal is made
        good by the next one.
        """
        self._watch()
        for spend in spends:
            if self._is_away:
                self._local.renew(share(spend, self.replicas), self._now_us())
            else:
                self._unasked.discard(spend.id)
                self._redis.run(SCRIPT, *self._program("renew", spend)).add_done_callback(self._renewed)

    # --- Redis

    async def _ask(self, keys: list[str], args: list[Argument]) -> bytes | None:
        """The reply, or None after Redis was found away."""
        began = time.monotonic()
        while True:
            try:
                reply: bytes = await self._redis.run(SCRIPT, keys, args)
                return reply
            except RedisAway as error:
                if not error.lost or time.monotonic() - began > _SECOND_TRY_WITHIN_S:
                    self._went_away(error)
                    return None
                began = 0.0
            except ResponseError as error:
                self._refused(error)
                return None

    def _program(self, op: str, spend: Spend, actual: int = 0) -> tuple[list[str], list[Argument]]:
        """KEYS and ARGV of `limiter.lua`. `actual` tokens: 0 when the call was never made."""
        keys = spend.notes
        if keys is None:
            keys = spend.notes = _keys(spend)
        fields: list[str] = []
        if op == "spend":
            numbers, fields = _taking(spend)
        elif op == "settle":
            numbers, fields = _correcting(spend, actual)
        else:
            numbers = [lease.enforce for lease in spend.leases]
        now_us = self._clock_us() if self._clock_us else 0
        return keys, [op, spend.id.hex, _packed([self._ttl_ms, now_us, *numbers]), *fields]

    def _deliver(self, entry: _Entry) -> asyncio.Future[Any]:
        def delivered(future: asyncio.Future[Any]) -> None:
            if future.cancelled():
                return
            error = future.exception()
            if isinstance(error, RedisAway):
                self._keep(entry)
                self._went_away(error)
            elif isinstance(error, ResponseError):
                self._keep(entry)
                self._refused(error)

        _, keys, args = entry
        future = self._redis.run(SCRIPT, keys, args)
        future.add_done_callback(delivered)
        return future

    def _keep(self, entry: _Entry) -> None:
        if len(self._backlog) >= _BACKLOG:
            self._backlog.popleft()
            self.counters.lost_settlements += 1
        self._backlog.append(entry)

    async def _flush(self) -> None:
        """In parts, so that the backlog does not fill the connection's queue."""
        while self._backlog and not self._is_away:
            now = time.monotonic()
            part = [self._backlog.popleft() for _ in range(min(_FLUSH_AT_ONCE, len(self._backlog)))]
            alive = [entry for entry in part if entry[0] > now]
            self.counters.lost_settlements += len(part) - len(alive)
            await asyncio.gather(*(self._deliver(entry) for entry in alive), return_exceptions=True)

    def _renewed(self, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if isinstance(error, RedisAway):
            self._went_away(error)
        elif isinstance(error, ResponseError):
            self._refused(error)

    # --- away and back

    def _refused(self, error: ResponseError) -> None:
        """The server answers, but not what we need: full, read-only, loading, or a broken script."""
        self.counters.errors += 1
        self._went_away(error)

    def _went_away(self, error: Exception) -> None:
        self._alarm.set()
        if not self._is_away:
            self._is_away = True
            log.warning("rate limits: Redis is away, mode is now %s: %s", self._away_mode, error)

    def _watch(self) -> None:
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.get_running_loop().create_task(self._run_watch(), name="limiter-watch")

    async def _run_watch(self) -> None:
        pruned = 0.0
        while True:
            if not self._is_away:
                # not wait_for, which can swallow the cancelling when the alarm rings in the same turn
                with suppress(TimeoutError):
                    async with asyncio.timeout(HEARTBEAT_S):
                        await self._alarm.wait()
            else:
                await asyncio.sleep(PROBE_S)
            self._alarm.clear()
            await self._beat()
            if time.monotonic() - pruned > _PRUNE_EVERY_S:
                pruned = time.monotonic()
                self._local.prune(self._now_us())
                if len(self._unasked) > _UNASKED_MAX:
                    self._unasked.clear()  # the price is a few settlements that do nothing

    async def _beat(self) -> None:
        """Say that this worker lives, count those that do; find out whether Redis takes writes."""
        now = int(time.time())
        commands = (
            self._redis.submit("ZADD", WORKERS_KEY, now + _WORKER_TTL_S, self._worker),
            self._redis.submit("ZREMRANGEBYSCORE", WORKERS_KEY, "-inf", now),
            self._redis.submit("EXPIRE", WORKERS_KEY, 4 * _WORKER_TTL_S),
            self._redis.submit("ZCARD", WORKERS_KEY),
        )
        replies = await asyncio.gather(*commands, return_exceptions=True)
        errors = [r for r in replies if isinstance(r, Exception)]
        if errors:
            self._went_away(errors[0])
            return
        self._seen_workers = max(int(cast(Any, replies[3])), 1)
        if self._is_away:
            self._is_away = False
            log.warning("rate limits: Redis is back, %d settlements to deliver", len(self._backlog))
        await self._flush()

    def _decide_alone(self, spend: Spend) -> Decision:
        if self._away_mode == "allow":
            return Decision(allowed=True, mode="allow")
        if self._away_mode == "deny":
            return Decision(allowed=False, mode="deny", retry_after_ms=_DENY_RETRY_MS)
        part = share(spend, self.replicas)
        return decision(part, self._local.spend(part, self._now_us()), "local")

    def _now_us(self) -> int:
        return self._clock_us() if self._clock_us else time.time_ns() // 1000
