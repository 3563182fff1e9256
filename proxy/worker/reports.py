"""Keeps the days of reports in step with the ledger, and the ledger as long as it is meant to be."""

from __future__ import annotations

import datetime as dt
import logging
import time
from typing import Protocol

from proxy import telemetry

log = logging.getLogger("tollhouse.reports")

_DAYS_AT_ONCE = 50
#: a round stops after so many seconds, so that a large backlog leaves room for other duties
_ROUND_SECONDS = 60.0


class Rolled(Protocol):
    @property
    def leader(self) -> bool: ...
    @property
    def waiting(self) -> int: ...
    @property
    def rolled_to(self) -> dt.datetime | None: ...


class UsageStore(Protocol):
    """Everything raises `BankAway`."""

    async def roll_usage(self, at_most: int) -> Rolled:
        """Add what is new and sum at most so many days again that were corrected."""
        ...

    async def doubt(self) -> int:
        """Have days that are over summed again; how many."""
        ...

    async def drop_months(self, keep: int) -> list[dt.date]: ...

    async def prune_refusals(self, keep_months: int) -> None: ...


class Bookkeeper:
    def __init__(self, store: UsageStore, keep_months: int) -> None:
        self._store = store
        self._keep_months = keep_months

    async def roll(self) -> None:
        """Until nothing waits, or the round is over."""
        until = time.monotonic() + _ROUND_SECONDS
        while time.monotonic() < until:
            rolled = await self._store.roll_usage(_DAYS_AT_ONCE)
            if rolled.rolled_to is not None:
                telemetry.USAGE_ROLLED_TO.set(rolled.rolled_to.timestamp())
            if not rolled.leader or not rolled.waiting:
                return

    async def doubt(self) -> None:
        """The days that are over once more, whatever was added to them."""
        log.debug("%d days are summed again", await self._store.doubt())

    async def retain(self) -> None:
        """Nothing, when everything is kept."""
        if not self._keep_months:
            return
        for month in await self._store.drop_months(self._keep_months):
            log.warning("the single calls of %s were dropped; their sums by day stay", f"{month:%Y-%m}")
        await self._store.prune_refusals(self._keep_months)
