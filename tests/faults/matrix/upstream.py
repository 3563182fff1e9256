"""Bedrock and the way to it: what cannot be known is charged at its ceiling, what was never sent costs nothing."""

from __future__ import annotations

import asyncio
import random
from uuid import UUID

from tests.faults import oracle
from tests.faults.client import OPERATIONS, Shot, request_of, shoot
from tests.faults.door import Door
from tests.faults.load import Crowd
from tests.faults.rounds import Round
from tests.faults.world import World

#: what the simulator is told to do -> how the attempt may end, for whole answers and for streams
CLASSES: dict[str, tuple[set[str], set[str]]] = {
    "fault=error:ValidationException": ({"VOID"}, {"VOID"}),
    "fault=error:ThrottlingException": ({"VOID"}, {"VOID"}),
    "fault=error:InternalServerException": ({"VOID"}, {"VOID"}),
    "fault=error:ServiceUnavailableException": ({"VOID"}, {"VOID"}),
    "fault=error:ModelErrorException": ({"VOID"}, {"VOID"}),
    "fault=error:ModelTimeoutException": ({"VOID"}, {"VOID"}),
    "fault=html502": ({"CEILING"}, {"CEILING"}),
    "fault=reset": ({"CEILING"}, {"CEILING"}),
    "fault=reset:3": ({"CEILING"}, {"CEILING"}),
    "fault=close:2": ({"CEILING"}, {"CEILING"}),
    "fault=silence": ({"CEILING"}, {"CEILING"}),
    "fault=silence:2": ({"CEILING"}, {"CEILING"}),
    "fault=truncate:2": ({"CEILING", "POST"}, {"CEILING"}),  # token counts in headers survive a cut body
    "fault=exception:throttlingException:1": ({"VOID"}, {"CEILING"}),
    "fault=badcrc:1": ({"CEILING", "POST"}, {"CEILING"}),
    "fault=garbage:1": ({"CEILING", "POST"}, {"CEILING"}),
    "fault=nousage": ({"CEILING"}, {"CEILING"}),
    "fault=usage:negative": ({"CEILING"}, {"CEILING"}),
    "fault=usage:twice": ({"POST"}, {"POST"}),
    "delay_ms=400": ({"POST"}, {"POST"}),
}


async def classes(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """Every way an answer can be wrong, on every operation: each settles in its class, none invents usage."""
    await world.tree.kill()
    await world.tree.start(TOLLHOUSE_IDLE_SECONDS="2", TOLLHOUSE_FIRST_BYTE_SECONDS="2")
    wanted: list[tuple[Shot, str]] = []
    for directive in CLASSES:
        for operation in OPERATIONS:
            caller = crowd.callers[0]
            prompt = f"{rng.getrandbits(64):016x} [[{directive}]] [[tokens=12]]"
            shot = Shot(operation, spoilt=True)
            request = request_of("localhost", operation, caller.token, prompt, 40)
            wanted.append((shot, directive))
            asyncio.get_running_loop().create_task(shoot(shot, world.address, request, 30))
            await asyncio.sleep(0.01)
    for _ in range(400):
        await asyncio.sleep(0.05)
        if all(shot.status or shot.error for shot, _ in wanted):
            break
    await asyncio.sleep(1.0)
    for shot, directive in wanted:
        await _judge(world, shot, directive, turn)
    # What these attempts are charged is judged above: a ceiling among them needs no other reason.
    turn.evidence.blind = True
    await world.tree.kill()
    await world.tree.start()


async def _judge(world: World, shot: Shot, directive: str, turn: Round) -> None:
    whole, stream = CLASSES[directive]
    allowed = stream if OPERATIONS[shot.operation][2] else whole
    if not shot.call:
        turn.wrong.append(f"{shot.operation} with {directive} got no call id ({shot.status} {shot.error})")
        return
    rows = await world.rows("SELECT state, attempt FROM attempts WHERE call = $1", UUID(shot.call))
    ends = {oracle.NAMES[row["state"]] for row in rows}
    if not ends or not ends <= allowed:
        turn.wrong.append(f"{shot.operation} with {directive} ends as {sorted(ends)}, not {sorted(allowed)}")
    turn.counts["answers gone wrong"] += 1


async def cut(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """The way to Bedrock is cut at any byte, delayed, half-closed, a black hole, refused."""
    door = await Door.to(world.simulator.url)
    turn.evidence.blind = True
    await world.tree.kill()
    await world.tree.start(
        TOLLHOUSE_BEDROCK_ENDPOINT_URL=door.url(world.simulator.url), TOLLHOUSE_IDLE_SECONDS="2"
    )
    try:
        for _ in range(turn.kills):
            await asyncio.sleep(rng.uniform(0.05, 0.3))
            door.heal()
            act = rng.choice(("cut", "cut", "reset", "delay", "mute", "refuse"))
            turn.counts[f"upstream {act}"] += 1
            if act == "cut":
                door.cut_after, door.cuts = rng.randint(0, 4000), rng.randint(1, 5)
            elif act == "reset":
                door.reset()
            elif act == "delay":
                door.delay = rng.uniform(0.01, 0.3)
            elif act == "refuse":
                door.refuse = True
                door.reset()
            else:
                door.mute = True
    finally:
        door.heal()
        await asyncio.sleep(3.0)
        await world.tree.kill()
        await door.close()
        await world.tree.start()


async def never_reached(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """Nobody listens at Bedrock's address: every attempt is void, exactly."""
    door = await Door.to(world.simulator.url)
    address = door.url(world.simulator.url)
    await door.close()
    await world.tree.kill()
    await world.tree.start(TOLLHOUSE_BEDROCK_ENDPOINT_URL=address)
    before = len(crowd.shots)
    await asyncio.sleep(3.0)
    refused = [s for s in crowd.shots[before:] if s.status == 503]
    if len(refused) < 10:
        turn.wrong.append(f"only {len(refused)} calls were refused while nobody listened upstream")
    turn.counts["calls without an upstream"] += len(refused)
    await world.tree.kill()
    await world.tree.start()
