"""Advice on prompt caching: what cache points would have saved each tenant, by model.

Prompts are observed after their answer, by their own worker; sums go to Redis now and then, where the
advice of all workers comes from. A worker sees its own calls only, so with several workers a prefix
that comes rarely looks rarer than it is: the advice errs on the careful side.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from proxy.domain.prefix import Advice, PrefixMeter, Tally, advice, minimum_tokens
from proxy.domain.rates import Rates
from proxy.domain.usage import Usage

log = logging.getLogger("tollhouse.advice")

_FLUSH_SECONDS = 10.0

_WHERE = {
    "tools": "after the last tool",
    "system": "at the end of the system prompt",
    "messages": "after the last message",
}


class Sums(Protocol):
    """Where the tallies of all workers are added up (see `proxy.redis.prefixes`)."""

    async def add(self, tallies: Mapping[tuple[UUID, str], Tally]) -> None: ...

    async def report(self, tenant: UUID) -> dict[str, Tally] | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAdvice:
    """The last day of one tenant and model. Tokens; `options` best first, money in nano-dollars."""

    model: str
    tally: Tally
    minimum_tokens: int | None
    options: list[Advice]

    @property
    def sentence(self) -> str:
        """What to do, for people."""
        if self.minimum_tokens is None:
            return "This model takes no cache points."
        if not self.options:
            return (
                f"No prompt had a prefix of {self.minimum_tokens} tokens that ends where a point can stand."
            )
        best = self.options[0]
        if best.saved <= 0:
            return "No way of placing cache points would have saved money: prefixes come back too rarely."
        return f"Place a cache point {_WHERE[best.place]} (ttl {best.ttl})."


class PrefixLog:
    """One per worker. `observe` is called for every prompt that was paid for."""

    def __init__(self, sums: Sums, rates_of: Callable[[str], Rates | None]) -> None:
        """`rates_of`: the rates in force of a base model where its tenants call it first."""
        self._meter = PrefixMeter(secrets.token_bytes(32))
        self._sums = sums
        self._rates_of = rates_of

    def observe(self, tenant: UUID, model: str, body: Mapping[str, Any], size: int, usage: Usage) -> None:
        """Never raises: a prompt that cannot be taken apart is no prompt to give advice on."""
        try:
            self._meter.observe(tenant, model, body, size, usage, time.monotonic())
        except Exception:
            log.exception("a prompt's prefix was not measured")

    async def run(self) -> None:
        """Hand the sums over now and then."""
        while True:
            await asyncio.sleep(_FLUSH_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        await self._sums.add(self._meter.take())

    async def report(self, tenant: UUID) -> list[ModelAdvice] | None:
        """The advice for one tenant, the best saving first; None while Redis is away."""
        tallies = await self._sums.report(tenant)
        if tallies is None:
            return None
        found = []
        for model, tally in tallies.items():
            rates = self._rates_of(model)
            options = advice(tally, rates) if rates is not None else []
            found.append(
                ModelAdvice(model=model, tally=tally, minimum_tokens=minimum_tokens(model), options=options)
            )
        return sorted(found, key=lambda a: (-(a.options[0].saved if a.options else 0), a.model))
