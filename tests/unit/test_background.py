"""How often the worker does what it does: what grows must not take the database from the calls."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace

import pytest

from proxy import background
from proxy.background import FAILED_REST_SECONDS, REST_TIMES, Duty
from proxy.errors import BankAway


async def nothing() -> None: ...


def test_a_short_round_is_repeated_when_its_time_comes():
    assert Duty("watch", 15.0, nothing).rest(0.1) == 15.0


def test_a_long_round_takes_a_twentieth_of_the_time():
    duty = Duty("roll", 15.0, nothing)
    for took in (1.0, 60.0, 3600.0):
        rest = duty.rest(took)
        assert rest == REST_TIMES * took
        assert took / (took + rest) < 0.05


def test_after_a_failure_it_is_tried_again_soon():
    """Postgres may be away for three seconds of waiting, and back at once."""
    duty = Duty("gauges", 10.0, nothing)
    assert duty.rest(0.0, failed=True) == 10.0
    assert duty.rest(2.0, failed=True) == 40.0
    assert duty.rest(3600.0, failed=True) == FAILED_REST_SECONDS
    assert Duty("invariants", 300.0, nothing).rest(10.0, failed=True) == 300.0


def test_money_and_messages_do_not_wait():
    assert Duty("sweep", 10.0, nothing, paced=False).rest(60.0) == 10.0


async def test_the_worker_rests_so_long(monkeypatch, caplog):
    """With a clock of its own: rounds of 2 s, then one that finds Postgres away for 5 s."""
    now, rests = [100.0], []
    rounds = iter([2.0, 2.0, 5.0])

    async def act() -> None:
        took = next(rounds)
        now[0] += took
        if took == 5.0:
            raise BankAway("away")

    async def sleep(seconds: float) -> None:
        rests.append(seconds)
        if len(rests) == 3:
            raise asyncio.CancelledError

    monkeypatch.setattr(background, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(background, "asyncio", SimpleNamespace(sleep=sleep))
    with caplog.at_level(logging.WARNING), pytest.raises(asyncio.CancelledError):
        await background._repeat(Duty("roll", 15.0, act))
    assert rests == [40.0, 40.0, 60.0]
    assert "roll: away" in caplog.text
