"""What a process that serves looks after meanwhile: its gauges, the leases of long calls, and its clock."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from proxy import telemetry
from proxy.call import Kit
from proxy.domain.bucket import Spend
from proxy.errors import BankAway

_WATCH_SECONDS = 2.0
_LEASE_SECONDS = 15.0


async def renew_leases(kit: Kit, renew: Callable[[list[Spend]], Awaitable[None]]) -> None:
    """Calls that outlive a lease keep it."""
    while True:
        await asyncio.sleep(_LEASE_SECONDS)
        spends = [e.call.spend for e in kit.running if e.call.spend is not None]
        if spends:
            await renew(spends)


async def watch(
    kit: Kit,
    *,
    directory_age: Callable[[], float],
    limiter_mode: Callable[[], str],
    clock_skew: Callable[[], Awaitable[float]],
    skew_seconds: float,
    close: Callable[[str | None], None],
) -> None:
    """Keep the gauges, and close the door while our clock and the bank's are more than `skew_seconds` apart.
    `clock_skew` may raise `BankAway`: then the door stays as it is.
    """
    while True:
        telemetry.IN_FLIGHT.set(len(kit.running))
        telemetry.DRAINING.set(len(kit.draining))
        telemetry.DIRECTORY_AGE.set(directory_age())
        telemetry.UNSETTLED.set(kit.settler.waiting)
        kit.breakers.export()
        now = limiter_mode()
        for mode in ("redis", "local", "deny", "allow"):
            telemetry.LIMITER_MODE.labels(mode).set(1 if now == mode else 0)
        with contextlib.suppress(BankAway):
            skew = await clock_skew()
            close(f"this replica's clock is off by {skew:.0f} s" if abs(skew) > skew_seconds else None)
        await asyncio.sleep(_WATCH_SECONDS)
