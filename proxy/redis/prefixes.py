"""What all workers have seen of prompt prefixes, by tenant, model and hour: sums, never a prefix.

    th:{tenant}:prefix:<hour>    hash: "model counter" -> sum

Hours live for a day. Redis away means a gap in an advice, nothing else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

from redis.exceptions import ResponseError

from proxy.domain.prefix import Tally
from proxy.redis.client import RedisAway, RedisClient

HOURS = 24
_HOUR_S = 3600
_FAILURES = (RedisAway, ResponseError)


class RedisPrefixes:
    """Adds up tallies and reads them again."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis

    async def add(self, tallies: Mapping[tuple[UUID, str], Tally]) -> None:
        """Lost when Redis is away. Never raises."""
        hour = int(time.time()) // _HOUR_S
        sent = []
        for (tenant, model), tally in tallies.items():
            name = _name(tenant, hour)
            for counter, amount in tally.counts().items():
                sent.append(self._redis.submit("HINCRBY", name, f"{model} {counter}", amount))
            sent.append(self._redis.submit("EXPIRE", name, (HOURS + 1) * _HOUR_S))
        await asyncio.gather(*sent, return_exceptions=True)

    async def report(self, tenant: UUID) -> dict[str, Tally] | None:
        """The last day's tally of each model, None when Redis is away."""
        hour = int(time.time()) // _HOUR_S
        asked = [self._redis.submit("HGETALL", _name(tenant, hour - back)) for back in range(HOURS + 1)]
        found: dict[str, Tally] = {}
        for reply in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(reply, BaseException):
                if isinstance(reply, _FAILURES):
                    return None
                raise reply
            for field, amount in _pairs(reply):
                model, _, counter = field.decode().rpartition(" ")
                found.setdefault(model, Tally()).add(counter, int(amount))
        return found


def _pairs(reply: Any) -> Iterator[tuple[bytes, bytes]]:
    """A hash as one server sends it, or as the cluster's client has already read it."""
    if isinstance(reply, dict):
        return iter(reply.items())
    flat = iter(reply)
    return zip(flat, flat, strict=True)


def _name(tenant: UUID, hour: int) -> str:
    return f"th:{{{tenant}}}:prefix:{hour}"
