"""What no flight recorder can tell: a lost machine, and a process that slept through its own death."""

from __future__ import annotations

import asyncio
import random
import shutil

from tests.faults import oracle
from tests.faults.load import Crowd
from tests.faults.rounds import Round
from tests.faults.world import World

#: longest call in these rounds, seconds; the sweeper waits for twice that
CALL_SECONDS = 2


async def sweep(world: World) -> int:
    """One pass of the sweeper with this round's longest call."""
    swept = 0
    while True:
        row = (await world.rows("SELECT swept, more FROM bank_sweep($1, 256)", float(CALL_SECONDS)))[0]
        swept += int(row["swept"])
        if not row["more"]:
            return swept


async def machine(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """The server dies with its disk: what was open is charged its ceiling, and nothing before its time."""
    turn.evidence.lost = True
    for _ in range(turn.kills):
        await asyncio.sleep(rng.uniform(0.3, 1.0))
        await world.tree.kill()
        shutil.rmtree(world.proxy.state_dir)
        early = await sweep(world)
        await world.tree.start(TOLLHOUSE_CALL_SECONDS=str(CALL_SECONDS))
        await asyncio.sleep(2 * CALL_SECONDS + 0.5)
        late = await sweep(world)
        turn.counts["machines lost"] += 1
        turn.counts["swept"] += late
        if early:
            turn.wrong.append(f"{early} attempts were swept before their time")
    await world.tree.kill()
    await world.tree.start()
    await asyncio.sleep(2 * CALL_SECONDS + 0.5)
    turn.counts["swept"] += await sweep(world)


async def zombies(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """SIGSTOP until the sweeper has given the attempts up, then SIGCONT: late usage only lowers the ceiling."""
    await world.tree.kill()
    await world.tree.start(TOLLHOUSE_CALL_SECONDS=str(CALL_SECONDS))
    turn.evidence.lost = True
    for _ in range(turn.kills):
        await asyncio.sleep(rng.uniform(0.3, 0.8))
        victims = world.tree.workers()
        for pid in victims:
            await world.tree.freeze(pid)
        await asyncio.sleep(2 * CALL_SECONDS + 0.5)
        turn.counts["swept"] += await sweep(world)
        world.tree.wake(victims)
        turn.counts["processes stopped and woken"] += len(victims)
    await world.tree.kill()
    await world.tree.start()
    await asyncio.sleep(2 * CALL_SECONDS + 0.5)
    turn.counts["swept"] += await sweep(world)
    entries = await world.rows(
        "SELECT count(*) FROM entries e JOIN attempts t USING (attempt) WHERE t.tenant = ANY ($1) AND e.kind = $2",
        crowd.tenants, oracle.REFUND,
    )  # fmt: skip
    turn.counts["late refunds"] += entries[0][0]
