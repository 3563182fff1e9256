"""Looks at budgets, keys, spend and ceilings, and tells what began to be true since the last look."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Iterable, Sequence
from typing import Protocol

from proxy.domain import alerting
from proxy.domain.alerting import BudgetFacts, CeilingFacts, Condition, KeyFacts, SpendFacts

log = logging.getLogger("tollhouse.alerts")

KEPT_DAYS = 400


class AlertStore(Protocol):
    """Everything raises `BankAway`."""

    async def now(self) -> dt.datetime:
        """By the database's clock."""
        ...

    async def budgets(self) -> list[BudgetFacts]: ...

    async def expiring_keys(self) -> list[KeyFacts]: ...

    async def spend(self) -> list[SpendFacts]: ...

    async def ceilings(self) -> list[CeilingFacts]: ...

    async def tell(self, kinds: Iterable[str], conditions: Sequence[Condition]) -> int:
        """Write those that did not hold before, once, and forget those of `kinds` that no longer hold."""
        ...

    async def prune(self, days: int) -> None: ...


class Watchman:
    """Each method is one round; any number of workers may make rounds at the same time."""

    def __init__(self, store: AlertStore) -> None:
        self._store = store

    async def budgets_and_keys(self) -> None:
        """Cheap: every few seconds."""
        now = await self._store.now()
        found = [one for facts in await self._store.budgets() for one in alerting.of_budget(facts, now)]
        found += [one for key in await self._store.expiring_keys() for one in alerting.of_key(key, now)]
        await self._tell(("threshold", "forecast", "key_expiry"), found)

    async def spend_and_ceilings(self) -> None:
        """Reads a month of days and a day of entries: every few minutes."""
        anomalies = [alerting.of_spend(facts) for facts in await self._store.spend()]
        found = [one for one in anomalies if one is not None]
        found += [alerting.of_ceilings(facts) for facts in await self._store.ceilings()]
        await self._tell(("anomaly", "ceilings"), found)

    async def prune(self) -> None:
        await self._store.prune(KEPT_DAYS)

    async def _tell(self, kinds: tuple[str, ...], conditions: list[Condition]) -> None:
        told = await self._store.tell(kinds, conditions)
        if told:
            log.info("%d alerts", told)
