"""Clocks that jump: a replica's, which then refuses, and the database's, by which periods and expiry go."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.faults.client import Shot, request_of, shoot
from tests.faults.load import Crowd
from tests.faults.rounds import Round
from tests.faults.world import World

SHIFTS = ("+3600", "-3600", "+3456000", "-3456000")  # an hour and forty days, seconds
_PLACES = ("/usr/lib/x86_64-linux-gnu/faketime", "/usr/lib/aarch64-linux-gnu/faketime", "/usr/lib/faketime")


def library() -> Path | None:
    """libfaketime (Debian: `faketime`), None where it is not installed."""
    for place in _PLACES:
        found = Path(place) / "libfaketimeMT.so.1"
        if found.is_file():
            return found
    return None


def _set(file: Path, shift: str) -> None:
    """As a whole, since it is read at any moment."""
    new = file.with_suffix(".new")
    new.write_text(shift + "\n")
    new.replace(file)


def _preload(found: Path, file: Path) -> dict[str, str]:
    return {
        "LD_PRELOAD": str(found), "FAKETIME_TIMESTAMP_FILE": str(file), "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip


@asynccontextmanager
async def shifted_replica(world: World, turn: Round) -> AsyncIterator[Path | None]:
    """The tree under libfaketime; yields the file that says by how much its clock is off."""
    found = library()
    if found is None:
        print("SKIPPED: clock shifts need libfaketime (Debian: apt install faketime)", flush=True)
        turn.counts["clock shifts SKIPPED, no libfaketime"] += 1
        yield None
        return
    file = world.directory / "shift"
    _set(file, "+0")
    await world.tree.kill()
    await world.tree.start(quiet=False, **_preload(found, file))
    try:
        yield file
    finally:
        await world.tree.kill()
        await world.tree.start()


async def replica(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """A replica whose clock jumps refuses within seconds and serves again when it is right: nothing is lost."""
    async with shifted_replica(world, turn) as file:
        if file is None:
            return
        accounts = await _accounts(world)
        for shift in SHIFTS:
            await asyncio.sleep(rng.uniform(0.3, 0.8))
            _set(file, shift)
            await asyncio.sleep(3.5)
            shot = await _call(world, crowd)
            if shot.status != 503:
                turn.wrong.append(
                    f"the clock is off by {shift} s and a call got {shot.status} {shot.reason[:80]}"
                )
            _set(file, "+0")
            await _until_served(world, crowd, turn)
            turn.counts["clock shifts of a replica"] += 1
        if await _accounts(world) != accounts:
            turn.wrong.append("a replica's clock opened a period")


async def database(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """The same in mirror: every replica is off, seen from a database whose clock jumped. No period opens."""
    async with shifted_replica(world, turn) as file:
        if file is None:
            return
        before = await _accounts(world)
        _set(file, "+3456000")
        await asyncio.sleep(3.5)
        swept = (await world.rows("SELECT swept FROM bank_sweep(3600, 256)"))[0]["swept"]
        made = (await world.rows("SELECT roll_periods() AS made"))[0]["made"]
        if swept or made or await _accounts(world) != before:
            turn.wrong.append(f"{swept} attempts were swept and {made} accounts made while clocks disagree")
        _set(file, "+0")
        await _until_served(world, crowd, turn)
        turn.counts["clock disagreements"] += 1


async def starts_refused(world: World, crowd: Crowd, rng: random.Random, turn: Round) -> None:
    """A replica that is off by an hour does not even start."""
    found = library()
    if found is None:
        turn.counts["clock shifts SKIPPED, no libfaketime"] += 1
        return
    file = world.directory / "shift"
    _set(file, "-3600")
    environment = world.proxy.environment() | _preload(found, file) | {"TOLLHOUSE_PORT": "0"}
    process = subprocess.Popen(
        [sys.executable, "-m", "proxy", "worker"], env=environment, cwd=world.tree.root,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        _, said = await asyncio.to_thread(process.communicate, None, 30)
    except subprocess.TimeoutExpired:
        process.kill()
        _, said = process.communicate()
        turn.wrong.append("a replica whose clock is an hour behind started")
    if process.returncode == 0 or b"clock" not in said:
        turn.wrong.append(f"it ended with {process.returncode}: {said[-200:].decode(errors='replace')}")
    turn.counts["starts refused"] += 1


async def _call(world: World, crowd: Crowd) -> Shot:
    request = request_of("localhost", "InvokeModel", crowd.callers[1].token, f"{random.random()}", 16)
    return await shoot(Shot("InvokeModel"), world.address, request, 10)


async def _until_served(world: World, crowd: Crowd, turn: Round) -> None:
    for _ in range(100):
        if (await _call(world, crowd)).status == 200:
            return
        await asyncio.sleep(0.1)
    turn.wrong.append("the clock is right again and calls are still refused after 10 s")


async def _accounts(world: World) -> int:
    return int((await world.rows("SELECT count(*) FROM accounts"))[0][0])
