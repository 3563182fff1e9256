"""One budget that everybody spends, and what may sit on its row."""

from __future__ import annotations

import asyncio
import random

from tests.faults import load, roster
from tests.faults.client import Shot, request_of, shoot
from tests.faults.load import Crowd
from tests.faults.roster import Caller
from tests.faults.rounds import Round
from tests.faults.world import World

#: how much longer than the lock time-out another tenant's call may take on a loaded machine, seconds
PATIENCE_SECONDS = 0.25 + 1.0
#: pages of `accounts` times 8 KiB that the hammering may leave
BLOAT_BYTES = 8 << 20


async def hammered(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """Four workers on one row, with a report's snapshot open and an admin's lock held now and then."""
    await world.tree.kill()
    await world.tree.start(TOLLHOUSE_WORKERS="4")
    owner = await roster.tenant(world)
    caller = await roster.key(world, owner)
    budget = await roster.budget(world, "tenant", owner, owner, "month", 10**12)
    crowd.tenants.append(owner)
    crowd.budgets.append(budget)
    await load.await_keys(world, [caller])
    end = asyncio.get_running_loop().time() + turn.kills
    async with world.db.acquire() as report, report.transaction(isolation="repeatable_read", readonly=True):
        await report.fetch("SELECT count(*) FROM attempts")
        hammers = [asyncio.create_task(_hammer(world, crowd, caller, rng, end)) for _ in range(24)]
        others = asyncio.create_task(_others(world, crowd, rng, end))
        while asyncio.get_running_loop().time() < end:
            await _lock(world, budget, rng.uniform(0.3, 1.2))
            turn.counts["rows locked by an admin"] += 1
            await asyncio.sleep(rng.uniform(0.5, 1.5))
        await asyncio.gather(*hammers)
        waits = await others
    slow = [wait for wait in waits if wait > PATIENCE_SECONDS]
    if len(slow) > len(waits) // 100:
        turn.wrong.append(f"{len(slow)} of {len(waits)} calls of other tenants took up to {max(slow):.2f} s")
    turn.counts["others' longest call, ms"] = int(max(waits) * 1000)
    await _bloat(world, turn)
    await world.tree.kill()
    await world.tree.start()


async def _hammer(world: World, crowd: Crowd, caller: Caller, rng: random.Random, end: float) -> None:
    while asyncio.get_running_loop().time() < end:
        shot = Shot("InvokeModel")
        words = f"{rng.getrandbits(64):016x} [[tokens=4]]"
        await shoot(shot, world.address, request_of("localhost", "InvokeModel", caller.token, words, 8))
        crowd.shots.append(shot)


async def _others(world: World, crowd: Crowd, rng: random.Random, end: float) -> list[float]:
    """How long the calls of a tenant take that shares nothing but the lanes, seconds."""
    waits: list[float] = []
    while asyncio.get_running_loop().time() < end:
        shot = Shot("InvokeModel")
        words = f"{rng.getrandbits(64):016x} [[tokens=4]]"
        await shoot(
            shot, world.address, request_of("localhost", "InvokeModel", crowd.callers[1].token, words, 8)
        )
        crowd.shots.append(shot)
        waits.append(shot.seconds)
        await asyncio.sleep(0.02)
    return waits


async def _lock(world: World, budget: object, seconds: float) -> None:
    async with world.db.acquire() as admin, admin.transaction():
        await admin.execute("SELECT FROM accounts WHERE budget = $1 FOR UPDATE", budget)
        await asyncio.sleep(seconds)


async def _bloat(world: World, turn: Round) -> None:
    await world.write("VACUUM accounts")
    row = (
        await world.rows(
            "SELECT pg_relation_size('accounts') AS size, n_tup_upd AS updated, n_tup_hot_upd AS hot "
            "FROM pg_stat_user_tables WHERE relname = 'accounts'"
        )
    )[0]
    turn.counts["accounts, KiB"] = row["size"] // 1024
    turn.counts["updates of accounts"] = row["updated"]
    turn.counts["of these without an index entry"] = row["hot"]
    if row["size"] > BLOAT_BYTES:
        turn.wrong.append(f"accounts has grown to {row['size']} bytes")
