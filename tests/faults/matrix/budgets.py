"""Budgets at their edge: exactly so many calls, a limit lowered below what is out, a period and a price that turn."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import shutil
from collections import Counter
from typing import Any
from uuid import UUID

from tests.faults import load, oracle, roster
from tests.faults.client import Shot, request_of, shoot
from tests.faults.load import Crowd
from tests.faults.roster import Caller
from tests.faults.rounds import Round
from tests.faults.world import POLICIES, World

FIT, ASKED = 100, 500
#: simulator directive: output of exactly the limit, so that every call of a kind costs the same
_WORDS = "[[tokens=16]]"


def same(rng: random.Random, caller: Caller) -> bytes:
    """One of many requests that differ, and have the same ceiling and the same cost."""
    return request_of("localhost", "InvokeModel", caller.token, f"{rng.getrandbits(64):016x} {_WORDS}", 16)


async def exactly(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """500 callers at once and room for exactly 100: 100 get in while none has ended, on one and on three levels."""
    ceiling = await _ceiling(world, crowd, rng)
    for repeat in range(turn.kills):
        owner = await roster.tenant(world, concurrency=ASKED * 2)
        crowd.tenants.append(owner)
        project = await roster.project(world, owner)
        caller = await roster.key(world, owner, project)
        levels = [("tenant", owner, "month"), ("project", project, "week"), ("key", caller.key, "day")]
        for scope, subject, period in levels if repeat % 2 else levels[:1]:
            budget = await roster.budget(world, scope, subject, owner, period, FIT * ceiling)
            crowd.budgets.append(budget)
        await load.await_keys(world, [caller])
        await _rush(world, crowd, caller, rng, turn)


async def _ceiling(world: World, crowd: Crowd, rng: random.Random) -> int:
    shot = await shoot(Shot("InvokeModel"), world.address, same(rng, crowd.callers[1]))
    assert shot.complete, (shot.status, shot.reason)
    rows = await world.rows("SELECT ceiling FROM attempts WHERE call = $1", UUID(shot.call))
    return int(rows[0]["ceiling"])


async def _rush(world: World, crowd: Crowd, caller: Caller, rng: random.Random, turn: Round) -> None:
    await world.control("POST", "/_barrier", {"hold": True})
    shots = [Shot("InvokeModel") for _ in range(ASKED)]
    tasks = [asyncio.create_task(shoot(s, world.address, same(rng, caller))) for s in shots]
    try:
        for _ in range(600):
            await asyncio.sleep(0.05)
            if sum(task.done() for task in tasks) >= ASKED - FIT:
                break
        inside = await world.rows("SELECT count(*) FROM attempts WHERE key = $1 AND state = 0", caller.key)
    finally:
        await world.control("POST", "/_barrier", {"hold": False})
    await asyncio.gather(*tasks)
    crowd.shots += shots
    answered = sum(shot.complete for shot in shots)
    refused = Counter(shot.status for shot in shots if not shot.complete)
    turn.counts["rushes"] += 1
    if inside[0][0] != FIT or answered != FIT or refused != Counter({429: ASKED - FIT}):
        turn.wrong.append(
            f"room for {FIT}: {inside[0][0]} were in, {answered} answered, refused {dict(refused)}"
        )


async def edge(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """Forty callers on a budget with room for eight, whose calls cost nothing in the end: every admission is
    the last one that fits. The account is looked at all the time.
    """
    ceiling = await _ceiling(world, crowd, rng)
    owner = await roster.tenant(world)
    caller = await roster.key(world, owner)
    budget = await roster.budget(world, "tenant", owner, owner, "month", 8 * ceiling + ceiling // 2)
    crowd.tenants.append(owner)
    crowd.budgets.append(budget)
    await load.await_keys(world, [caller])
    end = asyncio.get_running_loop().time() + turn.kills
    tasks = [asyncio.create_task(_at_edge(world, crowd, caller, rng, end)) for _ in range(40)]
    most = 0
    while not all(task.done() for task in tasks):
        account = await _account(world, budget)
        most = max(most, account["reserved"] + account["settled"])
        turn.counts["looks at the edge"] += 1
        await asyncio.sleep(0.004)
    if most > 8 * ceiling + ceiling // 2:
        turn.wrong.append(f"overspent: {most / ceiling:.1f} calls were in where 8 fit")
    if most < 5 * ceiling:
        turn.wrong.append(f"only {most / ceiling:.1f} calls were in where 8 fit: the edge was not reached")


async def _at_edge(world: World, crowd: Crowd, caller: Caller, rng: random.Random, end: float) -> None:
    while asyncio.get_running_loop().time() < end:
        words = f"{rng.getrandbits(64):016x} {_WORDS} [[fault=error:ValidationException]] [[delay_ms=30]]"
        shot = Shot("InvokeModel", spoilt=True)
        await shoot(shot, world.address, request_of("localhost", "InvokeModel", caller.token, words, 16))
        crowd.shots.append(shot)


async def lowered(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """A limit lowered below what is committed holds at once for new calls and falls with every release."""
    for _ in range(turn.kills):
        owner = await roster.tenant(world)
        caller = await roster.key(world, owner)
        budget = await roster.budget(world, "tenant", owner, owner, "month", 2000 * load.MEAN_COST)
        crowd.tenants.append(owner)
        await load.await_keys(world, [caller])
        await world.control("POST", "/_barrier", {"hold": True})
        shots = [Shot("InvokeModel") for _ in range(60)]
        tasks = [asyncio.create_task(shoot(s, world.address, same(rng, caller))) for s in shots]
        await _until_held(world, caller, 60)
        held = await _account(world, budget)
        target = held["reserved"] // 2
        await world.write("UPDATE budgets SET limit_nano = $2 WHERE id = $1", budget, target)
        late = await shoot(Shot("InvokeModel"), world.address, same(rng, caller))
        if late.status not in {400, 429}:
            turn.wrong.append(f"the limit is below what is out and a call got {late.status}")
        await world.control("POST", "/_barrier", {"hold": False})
        seen = [(await _account(world, budget))["limit_effective"]]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0.02)
            seen.append((await _account(world, budget))["limit_effective"])
        await asyncio.sleep(0.2)
        end = await _account(world, budget)
        if seen != sorted(seen, reverse=True):
            turn.wrong.append("a lowered limit rose again")
        if end["limit_effective"] != max(target, end["settled"]) or end["reserved"]:
            turn.wrong.append(f"the limit should have fallen to {target}: {dict(end)}")
        crowd.shots += [*shots, late]
        turn.counts["limits lowered"] += 1


async def _until_held(world: World, caller: Caller, number: int) -> None:
    for _ in range(400):
        rows = await world.rows("SELECT count(*) FROM attempts WHERE key = $1 AND state = 0", caller.key)
        if rows[0][0] >= number:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{number} calls were not admitted")


async def _account(world: World, budget: UUID) -> Any:
    rows = await world.rows(
        "SELECT reserved, settled, limit_target, limit_effective FROM accounts "
        "WHERE budget = $1 AND starts_at <= now() AND ends_at > now()", budget,
    )  # fmt: skip
    return rows[0]


async def rollover(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """The period ends with many calls open: each belongs to the one it was admitted in, both to the nano-dollar."""
    for _ in range(turn.kills):
        owner = await roster.tenant(world)
        caller = await roster.key(world, owner)
        budget = await roster.budget(world, "tenant", owner, owner, "month", 5000 * load.MEAN_COST)
        crowd.tenants.append(owner)
        crowd.budgets.append(budget)
        await load.await_keys(world, [caller])
        ends = (await world.rows("SELECT now() + interval '2 seconds'"))[0][0]
        # As if the calendar had it so: this account ends in two seconds and the next begins there.
        await world.write(
            "UPDATE accounts SET ends_at = $2 WHERE budget = $1 AND starts_at <= now() AND ends_at > now()",
            budget,
            ends,
        )
        await world.write(
            "UPDATE accounts SET starts_at = $2 WHERE id = (SELECT id FROM accounts WHERE budget = $1 AND "
            "starts_at > now() ORDER BY starts_at LIMIT 1)", budget, ends,
        )  # fmt: skip
        shots = await _spread(world, caller, rng, 200, 4.0)
        crowd.shots += shots
        await _periods(world, owner, turn)


async def _spread(
    world: World, caller: Caller, rng: random.Random, number: int, seconds: float
) -> list[Shot]:
    """So many slow calls, begun evenly over a time."""
    shots, tasks = [], []
    for _ in range(number):
        shot = Shot("InvokeModel")
        words = f"{rng.getrandbits(64):016x} {_WORDS} [[delay_ms={rng.randint(200, 1500)}]]"
        request = request_of("localhost", "InvokeModel", caller.token, words, 16)
        tasks.append(asyncio.create_task(shoot(shot, world.address, request)))
        shots.append(shot)
        await asyncio.sleep(seconds / number)
    await asyncio.gather(*tasks)
    return shots


async def _periods(world: World, owner: UUID, turn: Round) -> None:
    rows = await world.rows(
        "SELECT t.admitted_at, a.starts_at, a.ends_at, a.id FROM attempts t, unnest(t.holds) AS h "
        "JOIN accounts a ON a.id = h WHERE t.tenant = $1", owner,
    )  # fmt: skip
    outside = [row for row in rows if not row["starts_at"] <= row["admitted_at"] < row["ends_at"]]
    if outside:
        turn.wrong.append(f"{len(outside)} attempts are in a period that they were not admitted in")
    periods = Counter(row["id"] for row in rows)
    if len(periods) != 2:
        turn.wrong.append(f"the attempts of a rollover are in {len(periods)} periods: {dict(periods)}")
    turn.counts["attempts at a rollover"] += len(rows)


async def price_change(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """A price turns with calls open: each costs what was in force when it was sent, under a ceiling of the dearer."""
    folder = world.directory / "policies"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(POLICIES, folder)
    turns = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(seconds=9)
    stamp = turns.isoformat().replace("+00:00", "Z")
    (folder / "prices" / "2026-06-01.yaml").write_text(
        f'effective_from: "{stamp}"\nsources: {{list: "the new list"}}\nprices:\n'
        '  meta.llama3-1-405b-instruct-v1:0:\n    - {input: "4.8", output: "7.2", source: list}\n'
    )
    await world.tree.kill()
    await world.tree.start(TOLLHOUSE_POLICIES_DIR=str(folder))
    owner = await roster.tenant(world)
    caller = await roster.key(world, owner)
    budget = await roster.budget(world, "tenant", owner, owner, "month", 9000 * load.MEAN_COST)
    crowd.apart.append(owner)
    await load.await_keys(world, [caller])
    billed_from = world.billed
    await asyncio.sleep(max(0.0, (turns - dt.datetime.now(dt.UTC)).total_seconds() - 2.5))
    crowd_shots = await _spread(world, caller, rng, 200, 5.0)
    await asyncio.sleep(0.5)
    bill = await world.control("GET", f"/_bill?since={billed_from}&refused_since=999999999")
    rows = {r["attempt"]: r for r in await world.rows(oracle._ATTEMPTS, [owner])}
    sides = Counter(_side(call, rows, turns, turn) for call in bill["calls"])
    if min(sides["old"], sides["new"]) < 20 or not all(shot.complete for shot in crowd_shots):
        turn.wrong.append(f"too few calls on one side of the change of price: {dict(sides)}")
    account = await _account(world, budget)
    if account["settled"] != sum(row["cost"] for row in rows.values()) or account["reserved"]:
        turn.wrong.append(f"the account of a change of price does not add up: {dict(account)}")
    turn.counts["calls at a change of price"] += sides["old"] + sides["new"] + sides["edge"]
    await world.tree.kill()
    await world.tree.start()


def _side(call: Any, rows: dict[UUID, Any], turns: dt.datetime, turn: Round) -> str:
    """Which price a call must have, worked out by hand: nano-dollars per token are the price times 1000."""
    row = rows.get(UUID(call["metadata"]["tollhouse-attempt"]))
    if row is None:
        return "another tenant"
    old = call["input_tokens"] * 2400 + call["output_tokens"] * 2400
    new = call["input_tokens"] * 4800 + call["output_tokens"] * 7200
    sent = dt.datetime.fromisoformat(call["started_at"])
    away = (sent - turns).total_seconds()
    if abs(away) < 0.25:
        if row["cost"] not in {old, new}:
            turn.wrong.append(f"a call at the change of price costs {row['cost']}, neither {old} nor {new}")
        return "edge"
    side, wanted = ("old", old) if away < 0 else ("new", new)
    if row["cost"] != wanted or row["ceiling"] < row["cost"]:
        turn.wrong.append(f"a call {away:.2f} s from the change of price costs {row['cost']}, not {wanted}")
    return side
