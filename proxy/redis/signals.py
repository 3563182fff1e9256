"""Hints about budgets, so that a hopeless call need not ask the bank.

A hint is a rumour that may only refuse: it says how much a budget had left a moment ago. It lives at
most a second, in Redis and in this process together; whoever frees money (top-up, refund, a new
period) publishes a greater version. Without Redis there are no hints, and every call asks the bank.
No method raises.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.resources import files
from uuid import UUID

from redis.exceptions import ResponseError

from proxy.redis.client import RedisAway, RedisClient, Script

SCRIPT = Script(files("proxy.redis").joinpath("signals.lua").read_text(encoding="utf-8"))
#: a hint is gone from Redis after this, and from here after `_MEMORY_S` more: together at most 1 s
_TTL_MS = 900
_MEMORY_S = 0.1
_MEMORY_MAX = 10_000
#: after a failure nobody waits for hints for this long
_SILENCE_S = 1.0


@dataclass(frozen=True, slots=True)
class Hint:
    """What a budget had left.

    `period`: number of the period it speaks of. `version`: grows with every top-up, refund and
    rollover. `headroom`: nano-dollars. `at_us`: unix time by the clock of Redis, 0 before publishing.
    """

    period: int
    version: int
    headroom: int
    at_us: int = 0


class Hints:
    """Hints of one worker. Not for money: the bank never reads them."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._memory: dict[UUID, tuple[float, Hint | None]] = {}
        self._silent_until = 0.0

    async def hint(self, budget: UUID) -> Hint | None:
        """The newest hint that is at most a second old, None when there is none or Redis is away."""
        now = time.monotonic()
        known = self._memory.get(budget)
        if known is not None and now - known[0] < _MEMORY_S:
            return known[1]
        if now < self._silent_until:
            return None
        try:
            value = await self._redis.submit("GET", _key(budget))
        except (RedisAway, ResponseError):
            self._silent_until = time.monotonic() + _SILENCE_S
            return None
        found = _parse(value)
        if len(self._memory) >= _MEMORY_MAX:
            self._memory.clear()
        self._memory[budget] = (now, found)
        return found

    async def publish(self, budget: UUID, hint: Hint) -> None:
        """Tell everybody, unless a newer version is known."""
        self._memory.pop(budget, None)
        try:
            args = (str(hint.period), str(hint.version), str(hint.headroom), _TTL_MS)
            await self._redis.run(SCRIPT, [_key(budget)], args)
        except (RedisAway, ResponseError):
            return


def _key(budget: UUID) -> str:
    return f"th:{{{budget}}}:hint"


def _parse(value: object) -> Hint | None:
    if not isinstance(value, bytes):
        return None
    period, version, headroom, at_us = (int(word) for word in value.split())
    return Hint(period, version, headroom, at_us)
