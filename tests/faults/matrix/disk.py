"""A full disk under the flight recorder: calls are refused, nothing that was promised is forgotten."""

from __future__ import annotations

import asyncio
import random
import resource

from tests.faults.load import Crowd
from tests.faults.rounds import Round
from tests.faults.world import World
from tests.faults.wreck import files_of

#: a recorder of this size has seen about fifty calls
BUSY_BYTES = 10_000


async def full(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """The kernel takes only part of a record, then nothing; later there is room again, then a worker dies.

    RLIMIT_FSIZE of a living process stands in for the disk: it cuts a write short at the same byte a full disk
    would, without the rights to mount one.
    """
    turn.evidence.full = True
    await world.tree.kill()
    await world.tree.start(quiet=True)
    for _ in range(turn.kills):
        await asyncio.sleep(rng.uniform(0.3, 0.8))
        pid, size = await _busy(world)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size + rng.randint(1, 400), resource.RLIM_INFINITY))
        await asyncio.sleep(rng.uniform(0.2, 0.6))
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        turn.counts["disks filled"] += 1
        await asyncio.sleep(rng.uniform(0.1, 0.4))
        if world.tree.may_kill(pid):
            await world.tree.kill_worker(pid)
    await world.tree.kill()
    await world.tree.start()


async def _busy(world: World) -> tuple[int, int]:
    """A worker that has served for a while and the size of its recorder: the limit is for all its files, and a
    new worker still makes those of its metrics.
    """
    while True:
        await world.tree.watch()
        for pid in world.tree.workers():
            sizes = [path.stat().st_size for path in files_of(pid, own=True) if path.exists()]
            if len(sizes) == 1 and sizes[0] > BUSY_BYTES:
                return pid, sizes[0]
        await asyncio.sleep(0.05)
