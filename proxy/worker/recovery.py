"""Take over the flight recorders of processes that are gone, and settle what they prove.

A file is deleted only when the bank has a terminal entry for everything in it. Attempts the bank
does not know are asked for once more after a while: the admit of a dying process may commit late.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from proxy import failpoints, recorder, telemetry
from proxy.domain.ledger import Outcome, Settlement
from proxy.errors import BankAway
from proxy.ports import Bank

log = logging.getLogger("tollhouse.recovery")

#: longer than any statement of a dead process can still run in Postgres, seconds
LATE_COMMIT_SECONDS = 1.5
_AT_ONCE = 256
#: files that wait for late commits at the same time: after a crash loop there is one for every death
_FILES_AT_ONCE = 64


async def recover(bank: Bank, directory: Path) -> int:
    """Resolve every orphaned file; returns the number of attempts settled. Raises `BankAway`."""
    turns = asyncio.Semaphore(_FILES_AT_ONCE)
    taken = [_take_over(bank, path, lock, turns) for path, lock in recorder.orphans(directory)]
    done = await asyncio.gather(*taken, return_exceptions=True)
    for result in done:
        if isinstance(result, BaseException):
            raise result
    return sum(result for result in done if isinstance(result, int))


async def _take_over(bank: Bank, path: Path, lock: int, turns: asyncio.Semaphore) -> int:
    """One file. Its lock is held until it is deleted or left to somebody else."""
    try:
        async with turns:
            wreck = _read(path)
            if wreck is None:
                return 0
            resolved = await _resolve(bank, path, wreck)
            failpoints.reach("recovery_settled")
            path.unlink(missing_ok=True)
            failpoints.reach("recovery_removed")
            return resolved
    finally:
        os.close(lock)


def _read(path: Path) -> recorder.Wreck | None:
    """None for a file that this version cannot read: it is set aside, not deleted, and the sweeper
    charges what was open in it.
    """
    try:
        wreck = recorder.read(path)
    except (ValueError, KeyError) as error:
        aside = path.with_suffix(".unreadable")
        path.rename(aside)
        log.critical("flight recorder %s cannot be read (%s); set aside as %s", path.name, error, aside.name)
        return None
    failpoints.reach("recovery_read")
    return wreck


async def _resolve(bank: Bank, path: Path, wreck: recorder.Wreck) -> int:
    settlements = recorder.resolve(wreck)
    unknown = await _settle(bank, settlements)
    if unknown:
        failpoints.reach("recovery_waits")
        await asyncio.sleep(LATE_COMMIT_SECONDS)
        unknown = await _settle(bank, unknown)
    if settlements:
        log.info("flight recorder %s: %d attempts resolved, %d never admitted",
                 path.name, len(settlements) - len(unknown), len(unknown))  # fmt: skip
    return len(settlements) - len(unknown)


async def _settle(bank: Bank, settlements: list[Settlement]) -> list[Settlement]:
    """Settle all; returns those the bank does not know."""
    unknown = []
    for start in range(0, len(settlements), _AT_ONCE):
        batch = settlements[start : start + _AT_ONCE]
        for settlement, settled in zip(batch, await asyncio.gather(*map(bank.settle, batch)), strict=True):
            if settled.outcome is Outcome.UNKNOWN:
                unknown.append(settlement)
            else:
                telemetry.RECOVERED.labels(settled.outcome.name.lower()).inc()
                telemetry.settled(settlement, settled)
    return unknown


async def watch(bank: Bank, directory: Path, seconds: float) -> None:
    """Take over the files of sibling processes that die while we live."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await recover(bank, directory)
        except BankAway:
            log.warning("recovery waits for the bank")
        except OSError as error:
            log.error("recovery: %s", error)
