"""Postgres: restarted, frozen, slow, deaf, gone. The bank keeps what it committed; nothing else may be believed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator

from tests.faults.door import Door
from tests.faults.load import Crowd
from tests.faults.rounds import Round, reached
from tests.faults.world import World

#: the longest a refusal may take, seconds: the deadline of admission and what a loaded machine adds
DENIAL_SECONDS = 2.5


async def restarted(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """Immediate shutdown and SIGKILL in turn, with recovery: every acknowledged row is still there."""
    for number in range(turn.kills):
        await asyncio.sleep(rng.uniform(0.4, 1.2))
        if number % 2:
            await asyncio.to_thread(world.postgres.kill)
        else:
            os.kill(world.postgres.pid, signal.SIGQUIT)
            await asyncio.to_thread(world.postgres.kill)
        await asyncio.sleep(rng.uniform(0.0, 0.6))
        await asyncio.to_thread(world.postgres.restart)
        await world.reconnect()
        turn.counts["Postgres restarts"] += 1
    await _serves_again(world, crowd, turn)


async def backends(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """The server ends single sessions of ours, as an administrator or a fail-over tool would."""
    for _ in range(turn.kills):
        await asyncio.sleep(rng.uniform(0.1, 0.4))
        rows = await world.rows("SELECT pid FROM pg_stat_activity WHERE usename = 'tollhouse_app'")
        for row in rng.sample(rows, max(1, len(rows) // 2)):
            await world.rows("SELECT pg_terminate_backend($1)", row["pid"])
            turn.counts["sessions ended"] += 1


async def frozen(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """SIGSTOP: statements that were on their way commit late, after everybody gave up waiting."""
    began = asyncio.get_running_loop().time()
    for _ in range(turn.kills):
        await asyncio.sleep(rng.uniform(0.5, 1.5))
        world.postgres.pause()
        await asyncio.sleep(rng.uniform(1.5, 5.0))
        world.postgres.resume()
        turn.counts["Postgres freezes"] += 1
    await _serves_again(world, crowd, turn)
    _refusals(crowd, began, turn)


async def gone(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """Away for longer than anybody waits: new calls are refused with Retry-After, running ones end and replay."""
    began = asyncio.get_running_loop().time()
    await asyncio.sleep(1.0)
    await asyncio.to_thread(world.postgres.kill)
    before = len(crowd.shots)
    await asyncio.sleep(float(turn.kills))
    refused = [s for s in crowd.shots[before:] if s.status == 503 and not s.spoilt]
    if len(refused) < 3:
        turn.wrong.append(f"the bank was away and only {len(refused)} calls were refused")
    await asyncio.to_thread(world.postgres.restart)
    await world.reconnect()
    turn.counts["seconds without Postgres"] += turn.kills
    await _serves_again(world, crowd, turn)
    _refusals(crowd, began, turn)


async def replay_killed(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """The bank is away, calls end meanwhile, and the worker dies when it is about to settle them later."""
    start = world.tree.log.stat().st_size
    for _ in range(turn.kills):
        await world.tree.kill()
        await world.tree.start(TOLLHOUSE_FAIL_POINT=f"settle_later:{rng.randint(1, 4)}:stop")
        await asyncio.sleep(rng.uniform(0.3, 0.8))
        await asyncio.to_thread(world.postgres.kill)
        await asyncio.sleep(4.0)
        await world.tree.kill()
        await asyncio.to_thread(world.postgres.restart)
        await world.reconnect()
        await world.tree.start()
    turn.evidence.reached = reached(world, start)
    turn.counts["died at settle_later"] += len(turn.evidence.reached)


def _refusals(crowd: Crowd, began: float, turn: Round) -> None:
    """A refusal comes within its deadline and says when to ask again."""
    slow = [s for s in crowd.shots if s.status == 503 and s.at >= began and s.seconds > DENIAL_SECONDS + 1.0]
    for shot in crowd.shots:
        if shot.status == 503 and not shot.spoilt and "retry-after" not in shot.headers:
            turn.wrong.append(f"503 without Retry-After: {shot.reason[:100]}")
    refused = sum(1 for s in crowd.shots if s.status == 503)
    turn.counts["503 with Retry-After"] += refused
    if len(slow) > max(1, refused // 100):
        turn.wrong.append(
            f"{len(slow)} of {refused} refusals took up to {max(s.seconds for s in slow):.1f} s"
        )


async def _serves_again(world: World, crowd: Crowd, turn: Round) -> None:
    before = crowd.answered
    for _ in range(200):
        await asyncio.sleep(0.1)
        if crowd.answered > before + 5:
            return
    turn.wrong.append("no call was answered within 20 s after Postgres was back")


@contextlib.asynccontextmanager
async def through_door(world: World) -> AsyncIterator[Door]:
    """The tree speaks to Postgres through a door, and directly again afterwards."""
    door = await Door.to(world.proxy.database_url)
    await world.tree.kill()
    await world.tree.start(TOLLHOUSE_DATABASE_URL=door.url(world.proxy.database_url))
    try:
        yield door
    finally:
        door.heal()
        await asyncio.sleep(1.0)
        await world.tree.kill()
        await door.close()
        await world.tree.start()


async def lost_answers(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """Statements commit and their answers are lost: connections are cut at any byte of what the server says."""
    async with through_door(world) as door:
        for _ in range(turn.kills):
            await asyncio.sleep(rng.uniform(0.1, 0.4))
            if rng.random() < 0.3:
                door.mute = True
                await asyncio.sleep(rng.uniform(0.05, 0.4))
                door.mute = False
                door.reset()
            else:
                door.cut_after, door.cuts = rng.randint(0, 3000), 1
            turn.counts["answers lost"] += 1
        door.heal()
        await _serves_again(world, crowd, turn)


async def slow(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """Every piece 200 ms late, then two seconds, then as slow as a bad link: calls are shed, nothing piles up."""
    began = asyncio.get_running_loop().time()
    async with through_door(world) as door:
        for delay, rate in ((0.2, 0.0), (2.0, 0.0), (0.0, 125_000.0)):
            door.delay, door.rate = delay, rate
            await asyncio.sleep(float(turn.kills))
        door.heal()
        await _serves_again(world, crowd, turn)
    _refusals(crowd, began, turn)
