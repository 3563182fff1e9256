"""Keeps what the control plane says about the account, in the background.

A control plane that is away changes nothing: what was found last stays in force, and calls never wait.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from proxy import telemetry, throughputs
from proxy.domain.discovery import NOTHING_FOUND, Found
from proxy.errors import TollhouseError

log = logging.getLogger("tollhouse.discovery")

#: how long before its end of life a model's callers are warned, seconds
WARN_SECONDS = 90 * 86_400.0


class Plane(Protocol):
    async def look(self, regions: Iterable[str]) -> Found:
        """Raises `ConfigurationError` when nothing answered."""
        ...


class Discovery:
    """One per worker. `changed` is called when other ARNs are known than before."""

    def __init__(
        self, plane: Plane, regions: Callable[[], Iterable[str]], changed: Callable[[], Awaitable[None]],
        seconds: float,
    ) -> None:  # fmt: skip
        self.found = NOTHING_FOUND
        self._plane = plane
        self._regions = regions
        self._changed = changed
        self._seconds = seconds
        self._warned: set[str] = set()

    async def refresh(self) -> None:
        """Raises a `TollhouseError`; then what was found last stays in force."""
        found = await self._plane.look(self._regions())
        before, self.found = self.found, found
        if found.arns != before.arns:
            try:
                await self._changed()
            except TollhouseError:
                self.found = before
                raise
        for arn in sorted(found.refused.keys() - before.refused.keys()):
            log.info("%s cannot be priced: %s", arn, found.refused[arn])
        throughputs.found({one.target: one.units for one in found.capacity if one.status == "InService"})
        self._warn(time.time())

    def _warn(self, now: float) -> None:
        for model, lifecycle in self.found.lifecycles.items():
            if lifecycle.end_at is not None:
                telemetry.MODEL_ENDS.labels(model).set(lifecycle.end_at)
            warning = lifecycle.warning(now, WARN_SECONDS)
            if warning is not None and f"{model} {warning}" not in self._warned:
                self._warned.add(f"{model} {warning}")
                log.warning("%s %s", model, warning)

    async def run(self) -> None:
        while True:
            try:
                await self.refresh()
            except TollhouseError as error:
                log.warning("the control plane was not read: %s", error)
            await asyncio.sleep(self._seconds)
