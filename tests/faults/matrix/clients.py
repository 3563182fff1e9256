"""Clients that leave, and clients that will not."""

from __future__ import annotations

import asyncio
import random

from tests.faults import load, roster
from tests.faults.client import OPERATIONS, Shot, request_of, shoot
from tests.faults.load import Crowd
from tests.faults.rounds import Round
from tests.faults.world import World

#: storms: callers of one tenant that never pause
STORM_CALLERS = 50


async def leave(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """They leave at every byte of the answer; it is read on, and the ledger equals the bill."""
    streams = [name for name, (_, _, streams) in OPERATIONS.items() if streams]
    room = asyncio.Semaphore(16)

    async def one() -> None:
        async with room:
            shot = Shot(rng.choice(streams), leave_at=rng.choice((0, 1, rng.randint(2, 6000))))
            words = f"{rng.getrandbits(64):016x} [[tokens={rng.randint(1, 100)}]]"
            caller = crowd.callers[rng.randint(0, 1)]  # of the tenant with room
            request = request_of("localhost", shot.operation, caller.token, words, 100)
            await shoot(shot, world.address, request)
            crowd.shots.append(shot)
            turn.counts["clients gone"] += shot.error == "left"

    await asyncio.gather(*(one() for _ in range(turn.kills)))
    refused = sum(1 for shot in crowd.shots if shot.status >= 400)
    if turn.counts["clients gone"] < turn.kills * 6 // 10:
        turn.wrong.append(
            f"only {turn.counts['clients gone']} of {turn.kills} clients left ({refused} were refused)"
        )


async def storm(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """One tenant's clients retry without a pause on a budget that is spent; the others get their answers."""
    owner = await roster.tenant(world)
    caller = await roster.key(world, owner)
    budget = await roster.budget(world, "tenant", owner, owner, "month", 20 * load.MEAN_COST)
    crowd.tenants.append(owner)
    crowd.budgets.append(budget)
    await load.await_keys(world, [caller])
    calm = await _probe(world, crowd, rng)
    end = asyncio.get_running_loop().time() + turn.kills
    tasks = [asyncio.create_task(_retry(world, crowd, caller.token, end, rng)) for _ in range(STORM_CALLERS)]
    stormy = await _probe(world, crowd, rng, until=end)
    await asyncio.gather(*tasks)
    lost = [shot for shot in stormy if not shot.complete]
    if lost:
        told = sorted({(shot.status, shot.error) for shot in lost})
        turn.wrong.append(f"{len(lost)} of {len(stormy)} calls of another tenant failed in the storm: {told}")
    turn.counts["retries in storms"] += sum(1 for s in crowd.shots if s.status in {400, 429})
    turn.counts["others' p95 calm, ms"] = _p95(calm)
    turn.counts["others' p95 in the storm, ms"] = _p95(stormy)


async def _retry(world: World, crowd: Crowd, token: str, end: float, rng: random.Random) -> None:
    words = f"{rng.getrandbits(64):016x}"
    while asyncio.get_running_loop().time() < end:
        shot = Shot("InvokeModel")
        await shoot(shot, world.address, request_of("localhost", "InvokeModel", token, words, 64))
        crowd.shots.append(shot)


async def _probe(world: World, crowd: Crowd, rng: random.Random, until: float = 0.0) -> list[Shot]:
    """One call after the other of the tenant that has room: forty, or until the storm is over."""
    shots: list[Shot] = []
    while len(shots) < 40 or asyncio.get_running_loop().time() < until:
        shot = Shot("Converse")
        words = f"{rng.getrandbits(64):016x} [[tokens=8]]"
        request = request_of("localhost", "Converse", crowd.callers[1].token, words, 16)
        shots.append(await shoot(shot, world.address, request))
    crowd.shots += shots
    return shots


def _p95(shots: list[Shot]) -> int:
    times = sorted(shot.seconds for shot in shots)
    return int(times[len(times) * 95 // 100] * 1000)
