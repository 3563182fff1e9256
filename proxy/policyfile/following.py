"""Policies that follow their folder while a process runs: whole, or not at all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from proxy.errors import BankAway
from proxy.policyfile.loading import Watch
from proxy.policyfile.policyset import PolicySet

log = logging.getLogger("tollhouse.policies")

LOOK_SECONDS = 2.0


async def follow(watch: Watch, use: Callable[[PolicySet], Awaitable[None]]) -> None:
    """Hand every good change of the folder to `use`, until cancelled. A change with an error in it is told
    once and leaves the policies in force; one that `use` could not take (`BankAway`) is tried again.
    """
    # The command line reads policies too, and a server chooses the metrics' folder before it imports them.
    from proxy import telemetry  # noqa: PLC0415

    waiting: PolicySet | None = None
    told = watch.problems
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        try:
            waiting = await asyncio.to_thread(watch.reload_if_changed) or waiting
            if watch.problems != told:
                told = watch.problems
                for problem in told:
                    log.error("the changed policies are not in force: %s", problem)
            telemetry.POLICY_PROBLEMS.set(len(told))
            if waiting is not None:
                await use(waiting)
                log.info("policies %s are in force", waiting.version)
                waiting = None
        except BankAway as error:
            log.warning("changed policies wait: %s", error)
        except Exception:
            log.exception("policies not reloaded")
