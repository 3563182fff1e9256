"""Both loops, for the tests of the client's sockets; both banks, for those of the money."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest
import uvloop

from proxy.postgres.bank import PostgresBank
from proxy.postgres.engine import create_engine
from tests.contract.bank_twin import PostgresWorld, TwinWorld, World
from tests.contract.peers import Run


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def running(scenario: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(scenario, 20))

    return running


@pytest.fixture(params=["memory", "postgres"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """Every test ends with the invariants of the money."""
    if request.param == "memory":
        twin = TwinWorld()
        yield twin
        assert await twin.faults() == []
        return
    engine = create_engine(request.getfixturevalue("app_database_url"), pool_size=6)
    bank = PostgresBank(engine, admit_timeout_s=1.0)
    await bank.start()
    world = PostgresWorld(engine, bank)
    yield world
    assert await world.faults() == []
    await bank.aclose()
    await engine.dispose()
