"""One round: a load, deaths in the middle of it, peace, and the judgement."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from uuid import UUID

from proxy.failpoints import POINTS
from tests.faults import load, oracle
from tests.faults.load import Crowd, Mix
from tests.faults.oracle import Books, Evidence, Verdict
from tests.faults.processes import stat_of
from tests.faults.world import AWAY, World
from tests.faults.wreck import files_of

PEACE_SECONDS = 25.0
_REACHED = re.compile(r"fail point (\w+) reached by (\S+) in (\d+)")
#: how the attempt that reached a place must end when its process dies there; None: it has no row.
#: Where more than one is named it depends on what had been known: the flight recorder decides. A recovering
#: worker also asks the bank to settle what was never admitted.
ENDS: dict[str, set[str | None]] = {
    "after_opened": {None},
    "before_admit": {None, "VOID"},
    "after_admit": {"VOID", None},  # none: it was denied
    "admitted": {"VOID"},
    "before_sent": {"VOID"},
    "after_sent": {"CEILING"},
    "after_first_byte": {"CEILING"},
    "mid_stream": {"CEILING"},
    "after_usage": {"CEILING"},
    "before_failover": {"CEILING"},
    "before_done": {"CEILING"},
    "after_done": {"POST", "VOID", "CEILING"},
    "before_move": {None, "VOID"},
    "after_move": {"VOID", None},
    "before_settle": {"POST", "VOID", "CEILING", None},
    "after_settle": {"POST", "VOID", "CEILING", None},
    "settle_later": {"POST", "VOID", "CEILING", None},
    "before_closed": {"POST", "VOID", "CEILING", None},
    "after_closed": {"POST", "VOID", "CEILING", None},
    "before_end": {"POST", "VOID", "CEILING"},
}
CALL_POINTS = tuple(p for p in POINTS if p in ENDS and p != "settle_later")
RECOVERY_POINTS = tuple(p for p in POINTS if p.startswith("recovery_"))


@dataclass
class Round:
    """What happens in the middle. `kills` is how many deaths are wanted."""

    name: str
    kills: int
    callers: int = 10
    calls: int = 400
    evidence: Evidence = field(default_factory=Evidence)
    #: latest end of the load, seconds
    longest: float = 120.0
    #: what the storm itself found wrong, and counted
    wrong: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


Storm = Callable[[World, Crowd, random.Random, Round], Awaitable[None]]


async def play(
    world: World, rng: random.Random, turn: Round, storm: Storm, mix: Mix | None = None
) -> Verdict:
    """Load and storm together; then peace; then the judgement. The tree serves again afterwards."""
    began, deaths, exits = time.monotonic(), len(world.tree.deaths), world.tree.exits
    crowd = await load.gather(world, rng, turn.calls)
    await oracle.books(world, crowd)  # from here on
    since_ms = int(time.time() * 1000)
    over = False

    def until() -> bool:
        late = time.monotonic() - began > turn.longest
        return late or (over and len(crowd.shots) >= turn.calls)

    drive = asyncio.create_task(load.drive(world, crowd, rng, callers=turn.callers, until=until, mix=mix))
    glance = asyncio.create_task(live(world, crowd, until))
    try:
        await storm(world, crowd, rng, turn)
    finally:
        over = True
        while not drive.done():
            await world.tree.watch()
            await asyncio.sleep(0.05)
    await drive
    verdict = Verdict(await glance + turn.wrong, turn.counts)
    verdict.violations += await peace(world, crowd)
    fresh = world.tree.deaths[deaths:]
    turn.evidence.learn(fresh, since_ms)
    found = await oracle.books(world, crowd)
    verdict.add(oracle.judge(found, crowd, turn.evidence))
    verdict.violations += _wrong_ends(found, turn.evidence)
    verdict.counts["fail points"] += len(turn.evidence.reached)
    verdict.counts["kills"] += len(fresh)
    verdict.counts["server exits"] += world.tree.exits - exits
    verdict.counts["milliseconds"] += int((time.monotonic() - began) * 1000)
    return verdict


async def peace(world: World, crowd: Crowd, seconds: float = PEACE_SECONDS) -> list[str]:
    """Until nothing is open and no flight recorder of a dead process is left; what stays is wrong."""
    deadline = time.monotonic() + seconds
    while True:
        await world.tree.watch()
        try:
            found = await world.rows(
                "SELECT attempt FROM attempts WHERE tenant = ANY ($1) AND state = 0", crowd.tenants
            )
            rows = [str(row["attempt"]) for row in found]
        except AWAY:
            rows = ["unknown: Postgres is away"]
            await asyncio.sleep(0.2)
        wrecks = orphans(world)
        if not rows and not wrecks:
            return []
        if time.monotonic() > deadline:
            return [f"open after recovery: {attempt}" for attempt in rows] + [
                f"not recovered: {w}" for w in wrecks
            ]
        await asyncio.sleep(0.1)


def orphans(world: World) -> list[str]:
    process = world.tree.process
    held = {p.name for pid in world.tree.workers() for p in files_of(pid)} if process else set()
    return sorted(p.name for p in world.proxy.state_dir.glob("*.flight") if p.name not in held)


async def live(world: World, crowd: Crowd, until: Callable[[], bool]) -> list[str]:
    """While calls run: the bill so far is within what is settled and reserved, and that within the limit."""
    wrong: list[str] = []
    while not until():
        await asyncio.sleep(1.0)
        answer = await world.control("GET", f"/_bill?since={world.billed}&refused_since=999999999")
        billed = {
            UUID(c["metadata"]["tollhouse-attempt"]): oracle.nanos(c["cost_usd"]) for c in answer["calls"]
        }
        try:
            async with (
                asyncio.timeout(5),
                world.db.acquire() as db,
                db.transaction(isolation="repeatable_read", readonly=True),
            ):
                accounts = await db.fetch(oracle._ACCOUNTS, crowd.budgets)
                rows = await db.fetch(
                    "SELECT attempt, holds FROM attempts WHERE tenant = ANY ($1)", crowd.tenants + crowd.apart
                )
        except AWAY:
            continue
        holds = {r["attempt"]: r["holds"] for r in rows}
        wrong += [f"missing row: {attempt} while calls ran" for attempt in billed if attempt not in holds]
        for a in accounts:
            bill = sum(n for attempt, n in billed.items() if a["id"] in holds.get(attempt, ()))
            committed, limit = a["reserved"] + a["settled"], a["limit_target"] + a["boost"]
            if not bill <= committed <= limit:
                wrong.append(f"overspent while calls ran: bill {bill}, committed {committed}, limit {limit}")
    return wrong


async def random_kills(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """SIGKILL of one worker after the other at moments that nothing in the program knows of."""
    killed = 0
    while killed < turn.kills:
        await world.tree.watch()
        await asyncio.sleep(rng.uniform(0.02, 0.35))
        ready = [pid for pid in world.tree.workers() if world.tree.may_kill(pid)]
        if ready and await world.tree.kill_worker(rng.choice(ready)):
            killed += 1


async def blind_kills(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """The same without stopping to look, so that the moment is the kernel's alone."""
    killed = 0
    while killed < turn.kills:
        await world.tree.watch()
        await asyncio.sleep(rng.uniform(0.02, 0.35))
        ready = [pid for pid in world.tree.workers() if world.tree.may_kill(pid)]
        if ready and await world.tree.kill_worker(rng.choice(ready), look=False):
            killed += 1


async def tree_kills(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """SIGKILL of the server with all its workers at once."""
    for _ in range(turn.kills):
        await asyncio.sleep(rng.uniform(0.2, 1.0))
        await world.tree.kill()
        await world.tree.start()


def at_points(*points: str) -> Storm:
    """Workers that stop themselves at a named place; they are looked into and killed there."""

    async def storm(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
        start = world.tree.log.stat().st_size
        for point in points:
            await world.tree.kill()
            world.tree.launch(TOLLHOUSE_FAIL_POINT=f"{point}:{rng.randint(1, 12)}:stop")
            await _kill_stopped(world, turn)
        await world.tree.kill()
        await world.tree.start()
        turn.evidence.reached = reached(world, start)
        for _, point in turn.evidence.reached:
            turn.counts[f"died at {point}"] += 1

    return storm


async def _kill_stopped(world: World, turn: Round) -> None:
    """Kills whoever stands still at the place. Where that would be the same place of granian's twice in a
    row, the other worker dies first, at whatever it is doing.
    """
    killed, patience, tree = 0, time.monotonic() + turn.longest / 2, world.tree
    while killed < turn.kills and time.monotonic() < patience:
        await tree.watch(ready=False)
        workers = tree.workers()
        stopped = [pid for pid in workers if stat_of(pid)[0] == "T"]
        for pid in stopped:
            others = [other for other in workers if other not in stopped and tree.may_kill(other)]
            if tree.may_kill(pid):
                killed += await tree.kill_worker(pid) is not None
            elif others:
                await tree.kill_worker(others[0])
        await asyncio.sleep(0.01)


def in_recovery(point: str) -> Storm:
    """A worker dies while it settles what another left behind; the next one must finish it."""

    async def storm(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
        for _ in range(turn.kills):
            await asyncio.sleep(rng.uniform(0.2, 0.6))
            await world.tree.kill()
            world.tree.launch(TOLLHOUSE_FAIL_POINT=f"{point}:1:stop")
            for _ in range(1500):
                if any(stat_of(pid)[0] == "T" for pid in world.tree.children()):
                    turn.counts[f"died at {point}"] += 1
                    break
                await asyncio.sleep(0.01)
            else:
                world.notes.append(f"{point} was not reached")
            await world.tree.kill()
            await world.tree.start()

    return storm


def failing(point: str) -> Storm:
    """The place fails as an I/O error now and then; nobody dies."""

    async def storm(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
        start = world.tree.log.stat().st_size
        await world.tree.kill()
        await world.tree.start(TOLLHOUSE_FAIL_POINT=f"{point}:*{rng.randint(3, 9)}:error")
        target = len(crowd.shots) + turn.calls
        while len(crowd.shots) < target:
            await asyncio.sleep(0.05)
        await world.tree.kill()
        await world.tree.start()
        if point in {"after_first_byte", "mid_stream", "after_usage"}:
            turn.evidence.sent |= {attempt for attempt, _ in reached(world, start)}

    return storm


def _wrong_ends(found: Books, evidence: Evidence) -> list[str]:
    wrong = []
    for attempt, point in evidence.reached:
        row = found.rows.get(attempt)
        end = oracle.NAMES[row["state"]] if row is not None else None
        if end not in ENDS[point]:
            wrong.append(f"attempt {attempt} died at {point} and ends as {end}, not {ENDS[point]}")
    return wrong


def reached(world: World, start: int) -> list[tuple[UUID, str]]:
    with world.tree.log.open("rb") as log:
        log.seek(start)
        text = log.read().decode(errors="replace")
    return [(UUID(a), point) for point, a, _ in _REACHED.findall(text) if a != "None"]
