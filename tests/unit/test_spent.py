"""A no of the bank is repeated for a moment, to nobody who might fit."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from proxy.domain.denial import not_admitted
from proxy.domain.ledger import Admission, Verdict
from proxy.errors import BudgetSpent, Refusal
from proxy.reservation import unless_spent
from proxy.spent import LONGEST_SECONDS, SECONDS, Spent

KEY = uuid4()
MODEL = 7


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def spent(clock: Clock) -> Spent:
    return Spent(clock)


def no(settled: int = 90, reserved: int = 0, limit: int = 100, clamp_floor: int = 0) -> Admission:
    return Admission(
        verdict=Verdict.DENIED, budget=uuid4(), settled=settled, reserved=reserved, limit=limit,
        clamp_floor=clamp_floor,
    )  # fmt: skip


def judged(
    spent: Spent, ceiling: int, *, least: int | None = None, best: int | None = None, key: UUID = KEY,
    model: int = MODEL,
) -> Refusal | None:  # fmt: skip
    """What a call hears: `least` its ceiling when clamped, `best` when its input is counted."""
    call: Any = SimpleNamespace(
        caller=SimpleNamespace(key=key),
        legs=(SimpleNamespace(model_label=model, ceiling=ceiling),),
        floor=lambda _: least,
        countable=None if best is None else SimpleNamespace(at_best=lambda _: best),
        deny=lambda admission, asked, floor: not_admitted(admission, asked, floor, "acme"),
    )
    kit: Any = SimpleNamespace(spent=spent)
    try:
        unless_spent(kit, call)
    except Refusal as refusal:
        return refusal
    return None


def test_who_was_denied_is_denied_again_for_a_moment(spent: Spent, clock: Clock) -> None:
    assert judged(spent, 11) is None
    spent.note(KEY, MODEL, no())
    assert isinstance(judged(spent, 11), BudgetSpent)
    clock.now += SECONDS
    assert isinstance(judged(spent, 11), BudgetSpent)
    clock.now += 0.001
    assert judged(spent, 11) is None


def test_one_asks_again_and_the_others_hear_the_old_answer_until_there_is_a_new_one(
    spent: Spent, clock: Clock
) -> None:
    spent.note(KEY, MODEL, no())
    clock.now += SECONDS + 0.001
    assert [judged(spent, 11) is None for _ in range(4)] == [True, False, False, False]
    spent.note(KEY, MODEL, no(settled=95))
    clock.now += SECONDS
    assert isinstance(judged(spent, 11), BudgetSpent)
    clock.now += 0.001
    assert judged(spent, 11) is None
    spent.note(KEY, MODEL, Admission(verdict=Verdict.OK))
    assert judged(spent, 11) is None, "money came in"
    assert judged(spent, 11) is None


def test_an_answer_that_does_not_come_back_is_not_repeated_for_ever(spent: Spent, clock: Clock) -> None:
    spent.note(KEY, MODEL, no())
    clock.now += SECONDS + 0.001
    assert judged(spent, 11) is None
    clock.now += LONGEST_SECONDS - SECONDS - 0.002
    assert isinstance(judged(spent, 11), BudgetSpent)
    clock.now += 0.002
    assert [judged(spent, 11) for _ in range(3)] == [None] * 3


def test_who_might_fit_asks_the_bank(spent: Spent) -> None:
    spent.note(KEY, MODEL, no(settled=90, reserved=10))
    assert judged(spent, 10) is None, "it would fit if what is held came back"
    assert judged(spent, 11, best=10) is None, "its input might be counted"
    assert isinstance(judged(spent, 11, best=11), BudgetSpent)
    spent.note(KEY, MODEL, no(clamp_floor=5))
    assert judged(spent, 50, least=10) is None, "it might be clamped"
    assert isinstance(judged(spent, 50, least=11), BudgetSpent)


def test_it_is_nobody_elses_no(spent: Spent) -> None:
    spent.note(KEY, MODEL, no())
    assert judged(spent, 11, key=uuid4()) is None
    assert judged(spent, 11, model=8) is None


@pytest.mark.parametrize("verdict", [v for v in Verdict if v is not Verdict.DENIED])
def test_only_a_budgets_no_is_remembered(spent: Spent, verdict: Verdict) -> None:
    spent.note(KEY, MODEL, Admission(verdict=verdict, settled=100, limit=0))
    assert judged(spent, 11) is None


def test_who_is_denied_again_leaves_nothing_to_collect(spent: Spent) -> None:
    spent.note(KEY, MODEL, no())
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            judged(spent, 11)
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_its_memory_is_bounded(spent: Spent) -> None:
    for model in range(25_000):
        spent.note(KEY, model, no())
    assert len(spent._known) <= 10_000
