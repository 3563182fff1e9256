"""Callers with keys and budgets at three levels, and a mixed load from them."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from tests.faults import roster
from tests.faults.client import OPERATIONS, Shot, request_of, shoot
from tests.faults.roster import Caller
from tests.faults.world import AWAY, World

#: what one call of the load costs on average, nano-dollars: budgets are sized by it
MEAN_COST = 120_000
#: how a call may be spoilt, with its weight. The simulator bills a spoilt call in full all the same,
#: except the errors, which it does not bill. `throttle:1` and `error:...:1` strike once: the second
#: target then serves.
SPOILT = {
    "fault=throttle:1": 4, "fault=error:500:1": 2, "fault=error:ValidationException": 2, "fault=reset": 1,
    "fault=reset:2": 2, "fault=close:1": 1, "fault=truncate:2": 1, "fault=exception:throttlingException:2": 1,
}  # fmt: skip
#: those that break the answer off: their calls may end at their ceiling
CUTS = ("reset", "close", "truncate", "exception")


@dataclass
class Crowd:
    """The tenants of one round. `budgets` are ids; `tight` may run out and are topped up now and then."""

    callers: list[Caller]
    tenants: list[UUID]
    budgets: list[UUID]
    tight: list[UUID]
    shots: list[Shot] = field(default_factory=list)
    #: tenants whose money the storm itself judges
    apart: list[UUID] = field(default_factory=list)

    @property
    def answered(self) -> int:
        return sum(1 for shot in self.shots if shot.complete)


async def gather(world: World, rng: random.Random, calls: int, *, tenants: int = 2) -> Crowd:
    """Makes tenants for so many calls: the first with room for all of them, the others without."""
    crowd = Crowd([], [], [], [])
    share = calls * MEAN_COST // tenants
    for number in range(tenants):
        owner = await roster.tenant(world)
        project = await roster.project(world, owner)
        keys = [await roster.key(world, owner, project), await roster.key(world, owner)]
        crowd.tenants.append(owner)
        crowd.callers += keys
        room = share * rng.uniform(0.3, 0.8) if number else 10**12
        for scope, subject, period, part in (
            ("tenant", owner, "month", 1.0),
            ("project", project, "week", 0.6),
            ("key", keys[0].key, "day", 0.6),
        ):
            budget = await roster.budget(world, scope, subject, owner, period, int(room * part))
            crowd.budgets.append(budget)
            if number:
                crowd.tight.append(budget)
    await await_keys(world, crowd.callers)
    return crowd


async def await_keys(world: World, callers: list[Caller]) -> None:
    """Until every worker knows the keys: the directory is a quarter of a second behind."""
    good = 0
    for _ in range(400):
        shot = await shoot(Shot("Converse"), world.address, models_request(callers[-1].token), 5)
        good = good + 1 if shot.status == 200 else 0
        if good >= 14:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("an issued key was not accepted")


def models_request(token: str) -> bytes:
    return (
        f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
        "Connection: close\r\n\r\n"
    ).encode()


@dataclass
class Mix:
    """What the calls of a load are like. Shares are of 1."""

    spoilt: float = 0.08
    leave: float = 0.05
    slow: float = 0.05
    tokens: int = 64
    #: extra directives for every prompt
    words: str = ""


async def drive(
    world: World,
    crowd: Crowd,
    rng: random.Random,
    *,
    callers: int,
    until: Callable[[], bool],
    mix: Mix | None = None,
) -> None:
    """So many callers, each making one call after the other until `until` is true."""
    tasks = [_caller(world, crowd, random.Random(rng.random()), until, mix or Mix()) for _ in range(callers)]
    topping = asyncio.create_task(_top_up(world, crowd, rng))
    try:
        await asyncio.gather(*tasks)
    finally:
        topping.cancel()
        await asyncio.gather(topping, return_exceptions=True)


async def _caller(
    world: World, crowd: Crowd, rng: random.Random, until: Callable[[], bool], mix: Mix
) -> None:
    while not until():
        shot, request = shot_of(world, crowd, rng, mix)
        await shoot(shot, world.address, request)
        if shot.error == "ConnectionRefusedError":
            await asyncio.sleep(rng.uniform(0.05, 0.2))  # nobody was there to be called
            continue
        crowd.shots.append(shot)
        if shot.status in {400, 402} or shot.status >= 500 or not shot.status:
            await asyncio.sleep(rng.uniform(0.05, 0.2))


def shot_of(world: World, crowd: Crowd, rng: random.Random, mix: Mix) -> tuple[Shot, bytes]:
    """One call, drawn."""
    operation = rng.choice(list(OPERATIONS))
    streams = OPERATIONS[operation][2]
    caller = rng.choice(crowd.callers)
    shot = Shot(operation)
    words = [f"{rng.getrandbits(64):016x}", f"[[tokens={rng.randint(1, 100)}]]", mix.words]
    if rng.random() < mix.spoilt:
        spoilt = rng.choices(list(SPOILT), list(SPOILT.values()))[0]
        words.append(f"[[{spoilt}]]")
        shot.spoilt = True
    if rng.random() < mix.slow:
        words.append(f"[[delay_ms={rng.randint(20, 300)}]]")
    if streams and rng.random() < mix.leave:
        shot.leave_at = rng.choice((0, 1, rng.randint(2, 4000)))
    limit = rng.randint(8, mix.tokens)
    return shot, request_of("localhost", operation, caller.token, " ".join(words), limit)


async def _top_up(world: World, crowd: Crowd, rng: random.Random) -> None:
    """The admin gives the tight budgets a little now and then, so that they stay contested."""
    while crowd.tight:
        await asyncio.sleep(rng.uniform(0.7, 1.5))
        budget = rng.choice(crowd.tight)
        with contextlib.suppress(*AWAY):
            await roster.top_up(world, budget, rng.randint(5, 20) * MEAN_COST)
