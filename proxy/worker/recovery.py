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


async def recover(bank: Bank, directory: Path) -> int:
    """Resolve every orphaned file; returns the number of attempts settled. Raises `BankAway`."""
    resolved = 0
    for path, descriptor in recorder.orphans(directory):
        try:
            resolved += await _recover_file(bank, path)
            failpoints.reach("recovery_settled")
            path.unlink(missing_ok=True)
            failpoints.reach("recovery_removed")
        finally:
            os.close(descriptor)
    return resolved


async def _recover_file(bank: Bank, path: Path) -> int:
    try:
        wreck = recorder.read(path)
    except (ValueError, KeyError):
        # The header is fsynced before the first attempt: a file without one holds none.
        log.warning("flight recorder %s has no header; nothing was recorded in it", path.name)
        return 0
    failpoints.reach("recovery_read")
    settlements = recorder.resolve(wreck)
    unknown = await _settle(bank, settlements)
    if unknown:
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
