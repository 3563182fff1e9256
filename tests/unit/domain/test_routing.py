"""Which targets are left alone, for how long, and in which order the others are tried."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.domain.routing import (
    WELL,
    Health,
    Signal,
    Standing,
    Tolerance,
    after,
    by_policy,
    probed,
    standing,
    tried,
)

T = Tolerance(
    faults=3, ceilings=4, open_for=5, open_most=60, throttled_for=1, rest=0.25, rest_most=5, probe=2
)
GOOD, FAULT, THROTTLED, CEILING, NEUTRAL = (
    Signal.GOOD, Signal.FAULT, Signal.THROTTLED, Signal.CEILING, Signal.NEUTRAL,
)  # fmt: skip


def lived(*signals: Signal, at: float = 100.0, health: Health = WELL, tolerance: Tolerance = T) -> Health:
    for signal in signals:
        health = after(health, signal, at, tolerance)
    return health


#: sums of binary fractions
ROUNDING = 1e-6


def test_failures_in_a_row_open_and_an_answer_between_them_does_not():
    assert standing(lived(FAULT, FAULT), 100.0) is Standing.READY
    assert standing(lived(FAULT, FAULT, GOOD, FAULT, FAULT), 100.0) is Standing.READY
    assert standing(lived(FAULT, FAULT, FAULT), 100.0) is Standing.OPEN
    assert standing(lived(FAULT, NEUTRAL, FAULT, NEUTRAL, FAULT), 100.0) is Standing.OPEN


def test_an_open_target_is_probed_by_one_call_at_a_time():
    opened = lived(FAULT, FAULT, FAULT)
    assert standing(opened, 104.9) is Standing.OPEN
    assert standing(opened, 105.0) is Standing.PROBE
    under_way = probed(opened, 105.0, T)
    assert standing(under_way, 106.9) is Standing.OPEN
    assert standing(under_way, 107.0) is Standing.PROBE, "a probe that never reported is not waited for"


def test_a_probe_that_answers_closes_and_one_that_fails_opens_for_twice_as_long():
    under_way = probed(lived(FAULT, FAULT, FAULT), 105.0, T)
    assert after(under_way, GOOD, 105.5, T) == WELL
    again = after(under_way, FAULT, 106.0, T)
    assert (again.open_until, again.probing) == (116.0, False)
    for _ in range(10):
        again = after(probed(again, 200.0, T), FAULT, 200.0, T)
    assert again.open_until == 260.0, "never longer than the most"


def test_failures_of_calls_that_were_under_way_do_not_lengthen_it():
    opened = lived(FAULT, FAULT, FAULT)
    assert after(opened, FAULT, 104.0, T).open_until == opened.open_until


def test_throttles_alone_open_for_a_short_time_and_rest_meanwhile():
    once = lived(THROTTLED)
    assert standing(once, 100.2) is Standing.RESTING
    assert standing(once, 100.25) is Standing.READY
    assert lived(THROTTLED, THROTTLED).rests_until == 100.5
    assert lived(THROTTLED, THROTTLED, THROTTLED).open_until == 101.0
    assert lived(THROTTLED, FAULT, THROTTLED).open_until == 105.0


def test_too_many_ceilings_open_although_answers_come_between():
    assert standing(lived(*[CEILING, GOOD] * 3), 100.0) is Standing.READY
    under_way = "what was under way does not close it"
    assert standing(lived(*[CEILING, GOOD] * 4), 100.0) is Standing.OPEN, under_way
    assert standing(lived(*[GOOD, CEILING] * 4), 100.0) is Standing.OPEN
    assert standing(lived(*[GOOD, GOOD, CEILING] * 4), 100.0) is not Standing.OPEN, "less than half of all"
    slow = lived(*[GOOD, CEILING] * 3)
    assert standing(after(slow, CEILING, 161.0, T), 161.0) is Standing.READY, "in another window"


def test_a_target_that_fails_a_fifth_of_its_calls_rests():
    mixed = lived(*[GOOD, GOOD, GOOD, FAULT] * 4)
    assert standing(mixed, 100.0) is Standing.RESTING
    rare = lived(*[GOOD, GOOD, GOOD, GOOD, GOOD, FAULT] * 4)
    assert standing(rare, 100.0) is Standing.READY


def test_it_can_be_turned_off():
    off = replace(T, faults=0)
    assert lived(*[FAULT, CEILING, THROTTLED] * 9, tolerance=off) == WELL


@given(st.lists(st.tuples(st.sampled_from(Signal), st.floats(0.0, 20.0)), max_size=60))
def test_no_history_shuts_a_target_for_longer_than_the_most(history: list[tuple[Signal, float]]):
    now, health = 0.0, WELL
    for signal, pause in history:
        now += pause
        if standing(health, now) is Standing.PROBE:
            health = probed(health, now, T)
        health = after(health, signal, now, T)
        assert health.open_until is None or health.open_until - now <= T.open_most + ROUNDING
        assert health.rests_until - now <= T.rest_most + ROUNDING
        healed = after(probed(health, now, T), GOOD, now, T)
        assert standing(healed, now) in {Standing.READY, Standing.RESTING}


WAYS = [
    ("us-east-1", "on_demand", 30),
    ("arn", "provisioned", 20),
    ("us", "profile", 10),
    ("own", "imported", 20),
]


@pytest.mark.parametrize(
    ("policy", "order"),
    [
        ("order", ["us-east-1", "arn", "us", "own"]),
        ("spill", ["arn", "own", "us-east-1", "us"]),
        ("provisioned_only", ["arn"]),
        ("cheapest", ["us", "arn", "own", "us-east-1"]),
    ],
)
def test_a_policy_orders_the_ways(policy, order):
    assert [way[0] for way in by_policy(policy, WAYS, lambda w: w[1], lambda w: w[2])] == order  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("seen", "order"),
    [
        ([("a", Standing.READY), ("b", Standing.READY)], ["a", "b"]),
        ([("a", Standing.RESTING), ("b", Standing.READY)], ["b", "a"]),
        ([("a", Standing.OPEN), ("b", Standing.READY)], ["b"]),
        ([("a", Standing.PROBE), ("b", Standing.READY)], ["a", "b"]),
        ([("a", Standing.RESTING), ("b", Standing.RESTING)], ["a"]),
        ([("a", Standing.OPEN), ("b", Standing.OPEN)], []),
    ],
)
def test_what_is_left_alone_and_what_is_tried_last(seen, order):
    assert tried(seen) == order
