"""Refusals, counted in memory and written as a rollup: who, why, how often; never row by row."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Protocol
from uuid import UUID

from proxy import telemetry
from proxy.domain.tenant import Caller
from proxy.errors import BankAway, Invalid, Refusal, UnknownModel, UpstreamAnswer, UpstreamUnavailable
from proxy.keys import redacted

log = logging.getLogger("tollhouse.rollups")

FLUSH_SECONDS = 2.0
#: distinct (tenant, key, reason, model) kept between two flushes; more share one without model
_MOST = 10_000
#: what a message repeats of a request stands in quotes
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")

Key = tuple[UUID, UUID, str, str | None]


class RefusalStore(Protocol):
    async def add(self, counts: dict[Key, tuple[int, str]]) -> None:
        """Add counts (and the last message of each) to the current bucket. Raises `BankAway`."""
        ...


class RefusalCounter:
    """A `pipeline.RefusalLog`. A crash loses at most the last two seconds of counts; no money is in
    them. While the bank is away counts gather, bounded.
    """

    def __init__(self, store: RefusalStore, labelled_tenants: int) -> None:
        self._store = store
        self._labelled_tenants = labelled_tenants
        self._labelled: set[str] = set()
        self._counts: dict[Key, tuple[int, str]] = {}

    def count(
        self, caller: Caller | None, model: str | None, refusal: Refusal, call: UUID | None = None
    ) -> None:
        telemetry.REFUSALS.labels(self.label(caller), refusal.reason).inc(1, call)
        if caller is None:
            return
        key = (caller.tenant, caller.key, refusal.reason, model)
        if key not in self._counts and len(self._counts) >= _MOST:
            key = (caller.tenant, caller.key, refusal.reason, None)
        self._counts[key] = (self._counts.get(key, (0, ""))[0] + 1, kept_message(refusal))

    def label(self, caller: Caller | None) -> str:
        """The tenant's metric label: its slug for the first so many, `other` for the rest."""
        if caller is None:
            return "none"
        slug = caller.tenant_slug
        if slug not in self._labelled:
            if len(self._labelled) >= self._labelled_tenants:
                return "other"
            self._labelled.add(slug)
        return slug

    async def flush(self) -> None:
        counts, self._counts = self._counts, {}
        if not counts:
            return
        try:
            await self._store.add(counts)
        except BankAway:
            for key, (number, message) in counts.items():
                if key in self._counts or len(self._counts) < _MOST:
                    self._counts[key] = (self._counts.get(key, (0, ""))[0] + number, message)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            try:
                await self.flush()
            except Exception:
                log.exception("refusals not written")


def kept_message(refusal: Refusal) -> str:
    """The sentence without what the client or Bedrock said: the ledger holds no prompts and no keys.
    The name of a model that does not exist stays, it is what an administrator looks for.
    """
    text = str(refusal)
    if isinstance(refusal, UpstreamAnswer):
        text = f"Bedrock answered {refusal.status} {refusal.kind}"
    elif isinstance(refusal, UpstreamUnavailable):
        text = text.partition(": ")[0]
    elif isinstance(refusal, Invalid) and not isinstance(refusal, UnknownModel):
        text = _QUOTED.sub("'...'", text)
    return redacted(text)[:500]
