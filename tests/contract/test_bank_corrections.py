"""What operators change about money that has moved, and what comes again after it; of both banks."""

from __future__ import annotations

import pytest

from proxy.clock import now_us
from proxy.domain.admission import Amendment
from proxy.domain.ledger import EntryKind, Outcome, Verdict, Why
from tests.contract.bank_twin import DAY_US, Money, World, at_ceiling, post

WEEK_AHEAD_US = 7 * DAY_US


@pytest.mark.parametrize(("first", "then", "kept"), [(140, -10, 130), (30, 20, 50)])
async def test_a_report_that_comes_again_after_a_correction_changes_nothing(
    world: World, first: int, then: int, kept: int
) -> None:
    """The operator has corrected what the first one said. Evidence counts once per attempt and kind."""
    caller = await world.caller()
    budget = await world.budget("tenant", caller.tenant, caller.tenant, 1000)
    attempt = caller.attempt(100)
    await world.bank.admit(attempt)
    await world.bank.settle(at_ceiling(attempt))
    await world.bank.settle(post(attempt, first))
    adjust = Amendment(
        attempt=attempt.attempt, kind=EntryKind.ADJUST, amount=then, upstream_amount=0, why=Why.LOG, evidence="x"
    )  # fmt: skip
    assert await world.bank.amend([adjust]) == [Outcome.SETTLED]
    before = await world.money(budget)
    again = await world.bank.settle(post(attempt, first))
    assert (again.outcome, again.overrun, again.budgets) == (Outcome.ALREADY, 0, ())
    assert await world.money(budget) == before
    assert before.settled + before.overrun == kept


async def test_a_limit_that_is_set_to_what_it_is_changes_nothing(world: World) -> None:
    """A top-up that has ended stays in the ceiling of the check until money moves or the limit does."""
    caller = await world.caller()
    budget = await world.budget("tenant", caller.tenant, caller.tenant, 100)
    await world.top_up(budget, 50, now_us() + WEEK_AHEAD_US)
    await world.expire_boosts(budget)
    await world.set_limit(budget, 100)
    assert await world.money(budget) == Money(limit=100, reserved=0, settled=0, overrun=0, effective=150)
    assert (await world.bank.admit(caller.attempt(101))).verdict is Verdict.DENIED
    await world.set_limit(budget, 90)
    assert await world.money(budget) == Money(limit=90, reserved=0, settled=0, overrun=0, effective=90)
