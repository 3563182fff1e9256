"""A full disk under the flight recorder: calls are refused, nothing that was promised is forgotten."""

from __future__ import annotations

import asyncio
import random
import resource

from tests.faults.load import Crowd
from tests.faults.rounds import Round
from tests.faults.world import World
from tests.faults.wreck import files_of


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
        ready = world.tree.workers()
        if not ready:
            continue
        pid = rng.choice(ready)
        size = max(path.stat().st_size for path in files_of(pid))
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size + rng.randint(1, 400), resource.RLIM_INFINITY))
        await asyncio.sleep(rng.uniform(0.2, 0.6))
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        turn.counts["disks filled"] += 1
        await asyncio.sleep(rng.uniform(0.1, 0.4))
        if world.tree.may_kill(pid):
            await world.tree.kill_worker(pid)
    await world.tree.kill()
    await world.tree.start()
