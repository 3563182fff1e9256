"""Fail points do nothing unless ordered, and then exactly what was ordered."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID, uuid4

import pytest

from proxy import failpoints
from proxy.errors import ConfigurationError
from proxy.failpoints import POINTS, arm, reach, reach_statement


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    arm("")


def test_unarmed_nothing_happens():
    for point in POINTS:
        reach(point, uuid4())
    reach_statement("before", [])


def test_the_ordered_time_and_no_other():
    arm("after_sent:3:error")
    reach("after_sent")
    reach("before_sent")
    reach("after_sent")
    with pytest.raises(OSError, match="after_sent"):
        reach("after_sent")
    reach("after_sent")


def test_every_so_many_times():
    arm("mid_stream:*2:error")
    struck = 0
    for _ in range(6):
        try:
            reach("mid_stream")
        except OSError:
            struck += 1
    assert struck == 3


def test_it_says_which_attempt(capfd):
    attempt = uuid4()
    arm("before_done:1:sleep=0")
    reach("before_done", attempt)
    assert f"fail point before_done reached by {attempt} in " in capfd.readouterr().err


@dataclass
class _Item:
    settlement: object | None
    attempt: object | None
    ids: tuple[UUID, ...]


@pytest.mark.parametrize(
    ("place", "settles", "admits"),
    [("after_admit", False, True), ("after_settle", True, False), ("after_move", True, True)],
)
def test_statements_are_told_apart(place, settles, admits):
    first, second = uuid4(), uuid4()
    ids = tuple(i for i, there in ((first, settles), (second, admits)) if there)
    arm(f"{place}:1:error")
    reach_statement("before", [_Item(settles or None, admits or None, ids)])
    with pytest.raises(OSError, match=place):
        reach_statement("after", [_Item(settles or None, admits or None, ids)])


@pytest.mark.parametrize(
    "spec", ["nowhere", "after_sent:0", "after_sent:x", "after_sent:1:explode", "after_sent:1:sleep=long"]
)
def test_an_order_that_makes_no_sense_is_refused(spec):
    with pytest.raises(ConfigurationError, match="TOLLHOUSE_FAIL_POINT"):
        arm(spec)


def test_kill_is_sigkill():
    code = (
        "from proxy.failpoints import arm, reach\narm('after_opened')\nreach('after_opened')\nprint('alive')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == b""


def test_no_place_is_named_twice():
    assert len(set(failpoints.POINTS)) == len(failpoints.POINTS) == 24
