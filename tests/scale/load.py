"""Callers of several tenants, each one call after the other, through one address."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Self

from tests.faults.client import OPERATIONS, Shot, request_of, shoot
from tests.support.stack import Key

#: seconds between a caller's calls
_PAUSE = 0.02
#: output limit of a call, tokens
_TOKENS = 24


@dataclass
class Load:
    """Runs as long as the context lasts. `shots` are all calls in the order they ended."""

    port: int
    keys: list[Key]
    shots: list[Shot] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _over: bool = False

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._calls(key)) for key in self.keys]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over = True
        await asyncio.gather(*self._tasks)

    async def _calls(self, key: Key) -> None:
        while not self._over:
            number = next(self._numbers)
            operation = list(OPERATIONS)[number % len(OPERATIONS)]
            host = f"127.0.0.1:{self.port}"
            request = request_of(host, operation, key.bearer_token, f"Say {number}.", _TOKENS)
            self.shots.append(await shoot(Shot(operation), ("127.0.0.1", self.port), request, 30.0))
            await asyncio.sleep(_PAUSE)

    async def during(self, seconds: float) -> list[Shot]:
        """What ends in so many seconds from now."""
        first = len(self.shots)
        await asyncio.sleep(seconds)
        return self.shots[first:]

    async def until_answered(self, number: int, seconds: float) -> list[Shot]:
        """What ends until so many more calls were answered."""
        first = len(self.shots)
        async with asyncio.timeout(seconds):
            while sum(shot.complete for shot in self.shots[first:]) < number:
                await asyncio.sleep(0.02)
        return self.shots[first:]


def outcomes(shots: list[Shot]) -> Counter[str]:
    """How many were answered whole, refused with which status, or broke off (and how)."""
    return Counter(_outcome(shot) for shot in shots)


def _outcome(shot: Shot) -> str:
    if shot.complete:
        return "answered"
    if shot.status and not shot.error:
        return str(shot.status)
    return f"broke off: {shot.operation} {shot.error} {shot.status} after {shot.seconds:.1f} s, {shot.seen} bytes"
