"""Redis: killed, frozen, emptied, set back in time. No money is in it, so none may move."""

from __future__ import annotations

import asyncio
import random
import time

import redis.asyncio as redis_client

from tests.faults import roster
from tests.faults.client import Shot, request_of, shoot
from tests.faults.load import Crowd
from tests.faults.rounds import Round
from tests.faults.world import World

#: how long after a loss the limits may still be undecided, seconds
MODE_SECONDS = 1.0
#: what the circuit breaker says after the broken answers that are part of every load
BREAKER = "Bedrock does not serve"


async def killed(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """SIGKILL and restart, again and again; calls fail for at most a second each time, if at all."""
    losses: list[float] = []
    for _ in range(turn.kills):
        losses.append(asyncio.get_running_loop().time())
        await asyncio.to_thread(world.valkey.kill)
        await asyncio.sleep(rng.uniform(0.1, 0.8))
        await asyncio.to_thread(world.valkey.restart)
        await asyncio.sleep(rng.uniform(0.3, 0.9))
        turn.counts["Redis kills"] += 1
    _refused_too_long(crowd, losses, turn)


async def frozen(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """SIGSTOP for a while: nothing answers and nothing is refused by the kernel."""
    losses: list[float] = []
    for _ in range(turn.kills):
        losses.append(asyncio.get_running_loop().time())
        world.valkey.pause()
        await asyncio.sleep(rng.uniform(0.3, 2.0))
        world.valkey.resume()
        await asyncio.sleep(rng.uniform(0.3, 0.9))
        turn.counts["Redis freezes"] += 1
    _refused_too_long(crowd, losses, turn)


def _refused_too_long(crowd: Crowd, losses: list[float], turn: Round) -> None:
    for shot in crowd.shots:
        if shot.status >= 500 and not shot.spoilt and not shot.reason.startswith(BREAKER):
            end = shot.at + shot.seconds
            late = min((end - loss for loss in losses if loss <= end), default=None)
            if late is None or late > MODE_SECONDS:
                turn.wrong.append(
                    f"Redis is away and a call got {shot.status} ({shot.reason[:80]}) {late} s later"
                )


async def emptied(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """FLUSHALL, and a log cut back to what it was a second ago; a revoked key stays revoked."""
    revoked = await _revoked(world, crowd)
    async with redis_client.Redis.from_url(world.valkey.url) as client:
        for _ in range(turn.kills):
            await client.flushall()
            turn.counts["FLUSHALL"] += 1
            await asyncio.sleep(rng.uniform(0.1, 0.4))
            await _still_refused(world, revoked, turn)
    for _ in range(max(1, turn.kills // 3)):
        await _cut_back(world, rng)
        turn.counts["logs cut back"] += 1
        await _still_refused(world, revoked, turn)


async def _cut_back(world: World, rng: random.Random) -> None:
    """SIGKILL loses no page of the log, so what `everysec` may lose is cut off by hand."""
    folder = world.directory / "valkey" / "data" / "appendonlydir"
    log = max(folder.glob("*.incr.aof"), key=lambda path: path.stat().st_mtime)
    size = log.stat().st_size
    await asyncio.sleep(1.1 + rng.random())
    await asyncio.to_thread(world.valkey.kill)
    with log.open("r+b") as file:
        file.truncate(size)
    await asyncio.to_thread(world.valkey.restart)


async def _revoked(world: World, crowd: Crowd) -> str:
    """The token of a key that was good and is revoked."""
    caller = await roster.key(world, crowd.tenants[0])
    await asyncio.sleep(1.2)
    shot = await _call(world, caller.token)
    assert shot.status == 200, (shot.status, shot.error, shot.body)
    await world.write("UPDATE credentials SET revoked_at = now() WHERE key = $1", caller.key)
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    return caller.token


async def _still_refused(world: World, token: str, turn: Round) -> None:
    shot = await _call(world, token)
    if shot.status not in {0, 401, 403, 503}:
        turn.wrong.append(f"a revoked key was answered {shot.status}")
    turn.counts["revoked key refused"] += 1


async def _call(world: World, token: str) -> Shot:
    request = request_of("localhost", "InvokeModel", token, f"{time.time_ns():x}", 16)
    return await shoot(Shot("InvokeModel"), world.address, request, 10)
