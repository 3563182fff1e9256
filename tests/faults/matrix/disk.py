"""A full disk under the flight recorder: calls are refused, nothing that was promised is forgotten."""

from __future__ import annotations

import asyncio
import random
import resource
import time
from pathlib import Path

from tests.faults.load import Crowd
from tests.faults.rounds import Round
from tests.faults.world import World
from tests.faults.wreck import files_of, used

#: a recorder of this size has seen about fifty calls
BUSY_BYTES = 10_000
#: less than any record: what is left then is no room
_FULL_BYTES = 100
_FILLS_SECONDS = 5.0


async def full(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """The kernel reserves nothing more, so the recorder fills what it has; later there is room again, then a
    worker dies.

    RLIMIT_FSIZE of a living process stands in for the disk: it refuses a file that grows at the same byte a full
    disk would, without the rights to mount one.
    """
    turn.evidence.full = True
    await world.tree.kill()
    await world.tree.start(quiet=True)
    for _ in range(turn.kills):
        await asyncio.sleep(rng.uniform(0.3, 0.8))
        pid, path, size = await _busy(world)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size + rng.randint(1, 400), resource.RLIM_INFINITY))
        await _filled(path, size)
        await asyncio.sleep(rng.uniform(0.2, 0.6))
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        turn.counts["disks filled"] += 1
        await asyncio.sleep(rng.uniform(0.1, 0.4))
        if world.tree.may_kill(pid):
            await world.tree.kill_worker(pid)
    await world.tree.kill()
    await world.tree.start()


async def _filled(path: Path, size: int) -> None:
    """The recorder has used what it had when the disk became full. A quiet one takes longer than is waited."""
    deadline = time.monotonic() + _FILLS_SECONDS
    while path.exists() and used(path.read_bytes()) < size - _FULL_BYTES and time.monotonic() < deadline:
        await asyncio.sleep(0.02)


async def _busy(world: World) -> tuple[int, Path, int]:
    """A worker that has served for a while, its recorder and that file's size: the limit is for all its files,
    and a new worker still makes those of its metrics.
    """
    while True:
        await world.tree.watch()
        for pid in world.tree.workers():
            own = files_of(pid, own=True)
            if len(own) == 1 and own[0].exists() and used(own[0].read_bytes()) > BUSY_BYTES:
                return pid, own[0], own[0].stat().st_size
        await asyncio.sleep(0.05)
