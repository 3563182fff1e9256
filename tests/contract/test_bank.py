"""What every bank promises, asked of the one in Postgres and of its twin in memory."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

from proxy.clock import now_us
from proxy.domain.ledger import Admission, EntryKind, Outcome, State, Verdict
from proxy.errors import BankAway
from tests.contract.bank_twin import (
    DAY_US,
    Money,
    PostgresWorld,
    World,
    at_ceiling,
    post,
    void,
)

WEEK_AHEAD_US = 7 * DAY_US


# ---- admission -------------------------------------------------------------------------------


async def test_without_a_budget_everything_is_admitted_and_its_ceiling_recorded(world: World) -> None:
    caller = await world.caller()
    attempt = caller.attempt(10**12)
    admitted = await world.bank.admit(attempt)
    assert (admitted.verdict, admitted.state) == (Verdict.OK, State.OPEN)
    assert abs(admitted.admitted_at_us - now_us()) < 5_000_000
    settled = await world.bank.settle(post(attempt, 12))
    assert (settled.outcome, settled.budgets) == (Outcome.SETTLED, ())


async def test_money_is_reserved_in_every_scope_or_in_none(world: World) -> None:
    caller = await world.caller()
    tenant = await world.budget("tenant", caller.tenant, caller.tenant, 1000)
    project = await world.budget("project", caller.project, caller.tenant, 1000)
    key = await world.budget("key", caller.key, caller.tenant, 150)
    first = caller.attempt(100)
    assert (await world.bank.admit(first)).verdict is Verdict.OK
    denied = await world.bank.admit(caller.attempt(100))
    assert (denied.verdict, denied.budget) == (Verdict.DENIED, key)
    assert (denied.settled, denied.reserved, denied.limit, denied.resets_at) == (0, 100, 150, 0)
    assert [(await world.money(b)).reserved for b in (tenant, project, key)] == [100, 100, 100]
    settled = await world.bank.settle(post(first, 30))
    assert set(settled.budgets) == {tenant, project, key}
    assert await world.money(key) == Money(limit=150, reserved=0, settled=30, overrun=0, effective=150)


async def test_a_budget_of_a_model_counts_only_that_model(world: World) -> None:
    caller = await world.caller(project=False)
    budget = await world.budget("key", caller.key, caller.tenant, 100, models=(7, 3))
    assert (await world.bank.admit(caller.attempt(500, model=8))).verdict is Verdict.OK
    assert (await world.bank.admit(caller.attempt(101, model=7))).verdict is Verdict.DENIED
    assert (await world.bank.admit(caller.attempt(100, model=3))).verdict is Verdict.OK
    assert (await world.money(budget)).reserved == 100


async def test_budgets_of_others_do_not_count(world: World) -> None:
    caller = await world.caller()
    sibling = await world.caller(tenant=caller)
    stranger = await world.caller()
    await world.budget("key", sibling.key, sibling.tenant, 0)
    await world.budget("tenant", stranger.tenant, stranger.tenant, 0)
    assert (await world.bank.admit(caller.attempt())).verdict is Verdict.OK
    assert (await world.bank.admit(sibling.attempt())).verdict is Verdict.DENIED


async def test_the_same_attempt_again_is_a_duplicate_and_reserves_once(world: World) -> None:
    caller = await world.caller()
    budget = await world.budget("tenant", caller.tenant, caller.tenant, 150)
    attempt = caller.attempt(100)
    first = await world.bank.admit(attempt)
    again = await world.bank.admit(attempt)
    assert (again.verdict, again.state) == (Verdict.DUPLICATE, State.OPEN)
    assert again.admitted_at_us == first.admitted_at_us
    await world.bank.settle(void(attempt))
    again = await world.bank.admit(attempt)
    assert (again.verdict, again.state) == (Verdict.DUPLICATE, State.VOID)
    assert (await world.money(budget)).reserved == 0


async def test_a_duplicate_is_one_whatever_became_true_since(world: World) -> None:
    caller = await world.caller()
    budget = await world.budget("tenant", caller.tenant, caller.tenant, 100)
    attempt = caller.attempt(100)
    await world.bank.admit(attempt)
    await world.set_limit(budget, 1)
    await world.revoke(caller)
    assert (await world.bank.admit(attempt)).verdict is Verdict.DUPLICATE


async def test_an_id_of_another_time_is_stale(world: World) -> None:
    caller = await world.caller()
    for minutes, verdict in ((-6, Verdict.STALE), (-4, Verdict.OK), (4, Verdict.OK), (6, Verdict.STALE)):
        attempt = caller.attempt()
        moved = UUID(int=attempt.attempt.int + ((minutes * 60_000) << 80))
        attempt = caller.attempt(attempt=moved)
        assert (await world.bank.admit(attempt)).verdict is verdict, minutes


async def test_revoked_and_expired_credentials_may_not_spend(world: World) -> None:
    caller = await world.caller()
    other = await world.caller(tenant=caller)
    running = caller.attempt()
    await world.bank.admit(running)
    await world.revoke(caller)
    await world.expire(other)
    assert (await world.bank.admit(caller.attempt())).verdict is Verdict.REVOKED
    assert (await world.bank.admit(other.attempt())).verdict is Verdict.REVOKED
    assert (await world.bank.settle(post(running, 5))).outcome is Outcome.SETTLED


async def test_a_credential_spends_for_its_own_key_and_tenant_only(world: World) -> None:
    caller, other = await world.caller(), await world.caller()
    for stolen in ({"tenant": other.tenant}, {"key": other.key}, {"project": None}, {"credential": uuid4()}):
        assert (await world.bank.admit(caller.attempt(**stolen))).verdict is Verdict.REVOKED


async def test_a_live_budget_without_a_current_account_admits_nothing(world: World) -> None:
    caller, other = await world.caller(), await world.caller()
    budget = await world.budget("tenant", caller.tenant, caller.tenant, 100)
    await world.without_account(budget)
    answers = await asyncio.gather(
        world.bank.admit(caller.attempt()), world.bank.admit(other.attempt()), return_exceptions=True
    )
    if isinstance(world, PostgresWorld):  # it helps itself to the missing account
        assert [a.verdict for a in answers if isinstance(a, Admission)] == [Verdict.OK, Verdict.OK]
        assert (await world.money(budget)).reserved == 100
    else:
        assert isinstance(answers[0], BankAway)
        assert isinstance(answers[1], Admission)
        assert answers[1].verdict is Verdict.OK


async def test_only_the_current_period_counts(world: World) -> None:
    caller = await world.caller()
    now = now_us()
    budget = await world.budget(
        "tenant", caller.tenant, caller.tenant, 100, period_us=(now - DAY_US, now + DAY_US)
    )
    denied = await world.bank.admit(caller.attempt(101))
    assert denied.verdict is Verdict.DENIED
    assert denied.resets_at == (now + DAY_US) // 1_000_000
    assert denied.budget == budget


# ---- blame -----------------------------------------------------------------------------------


async def test_a_spent_budget_is_blamed_before_a_held_one(world: World) -> None:
    caller = await world.caller()
    held = await world.budget("tenant", caller.tenant, caller.tenant, 200)
    spent = await world.budget("key", caller.key, caller.tenant, 190)
    done, running = caller.attempt(150), caller.attempt(40)
    await world.bank.admit(done)
    await world.bank.settle(post(done, 150))
    await world.bank.admit(running)
    denied = await world.bank.admit(caller.attempt(60, floor=45))
    assert denied.budget == spent
    await world.top_up(spent, 5)  # now 45 would fit once the reservation falls: both are held
    denied = await world.bank.admit(caller.attempt(60, floor=45))
    assert (denied.budget, denied.settled, denied.reserved, denied.limit) == (spent, 150, 40, 195)
    await world.set_limit(held, 194)
    denied = await world.bank.admit(caller.attempt(60, floor=1))
    assert denied.budget == held, "the one with the least left"


async def test_a_small_call_may_fit_where_a_large_one_did_not(world: World) -> None:
    caller = await world.caller()
    await world.budget("tenant", caller.tenant, caller.tenant, 100)
    answers = await asyncio.gather(
        *(world.bank.admit(caller.attempt(ceiling)) for ceiling in (60, 60, 40, 1, 0))
    )
    assert [a.verdict.name for a in answers] == ["OK", "DENIED", "OK", "DENIED", "OK"]
    assert (answers[1].reserved, answers[3].reserved) == (60, 100)


# ---- settlement ------------------------------------------------------------------------------


async def test_the_first_terminal_entry_wins(world: World) -> None:
    caller = await world.caller()
    budget = await world.budget("tenant", caller.tenant, caller.tenant, 1000)
    attempt = caller.attempt(100)
    await world.bank.admit(attempt)
    assert (await world.bank.settle(post(attempt, 70))).outcome is Outcome.SETTLED
    for late in (post(attempt, 70), post(attempt, 10), void(attempt), at_ceiling(attempt)):
        again = await world.bank.settle(late)
        assert (again.outcome, again.state) == (Outcome.ALREADY, State.POST)
    assert await world.entries(attempt.attempt) == [(0, EntryKind.POST, 70, 70)]
    assert (await world.money(budget)).settled == 70


async def test_a_ceiling_charges_the_rows_own_ceiling(world: World) -> None:
    caller = await world.caller()
    budget = await world.budget("tenant", caller.tenant, caller.tenant, 1000)
    attempt = caller.attempt(100)
    await world.bank.admit(attempt)
    assert (await world.bank.settle(at_ceiling(attempt))).outcome is Outcome.SETTLED
    assert await world.cost(attempt.attempt) == (State.CEILING, 100, 100)
    assert (await world.money(budget)).settled == 100


async def test_a_late_post_lowers_a_ceiling_once(world: World) -> None:
    caller = await world.caller()
    budget = await world.budget("tenant", caller.tenant, caller.tenant, 1000)
    attempt = caller.attempt(100)
    await world.bank.admit(attempt)
    await world.bank.settle(at_ceiling(attempt))
    late = await world.bank.settle(post(attempt, 30, upstream_cost=25))
    assert (late.outcome, late.state, late.budgets) == (Outcome.REFUNDED, State.CEILING, (budget,))
    assert (await world.bank.settle(post(attempt, 30, upstream_cost=25))).outcome is Outcome.ALREADY
    assert await world.entries(attempt.attempt) == [
        (0, EntryKind.CEILING, 100, 100),
        (1, EntryKind.REFUND, -70, -75),
    ]
    assert await world.cost(attempt.attempt) == (State.CEILING, 30, 25)
    assert (await world.money(budget)).settled == 30


async def test_cost_above_the_ceiling_is_an_overrun_and_takes_headroom(world: World) -> None:
    caller = await world.caller()
    budget = await world.budget("tenant", caller.tenant, caller.tenant, 150)
    attempt = caller.attempt(100)
    await world.bank.admit(attempt)
    settled = await world.bank.settle(post(attempt, 130))
    assert (settled.outcome, settled.overrun) == (Outcome.SETTLED, 30)
    assert await world.entries(attempt.attempt) == [
        (0, EntryKind.POST, 100, 130),
        (1, EntryKind.OVERRUN, 30, 0),
    ]
    assert await world.cost(attempt.attempt) == (State.POST, 130, 130)
    assert await world.money(budget) == Money(limit=150, reserved=0, settled=100, overrun=30, effective=150)
    denied = await world.bank.admit(caller.attempt(21))
    assert (denied.verdict, denied.settled) == (Verdict.DENIED, 130)
    assert (await world.bank.admit(caller.attempt(20))).verdict is Verdict.OK


async def test_a_late_post_above_the_ceiling_is_an_overrun_too(world: World) -> None:
    caller = await world.caller()
    budget = await world.budget("tenant", caller.tenant, caller.tenant, 1000)
    attempt = caller.attempt(100)
    await world.bank.admit(attempt)
    await world.bank.settle(at_ceiling(attempt))
    late = await world.bank.settle(post(attempt, 140))
    assert (late.outcome, late.overrun) == (Outcome.REFUNDED, 40)
    assert (await world.bank.settle(post(attempt, 140))).outcome is Outcome.ALREADY
    assert await world.cost(attempt.attempt) == (State.CEILING, 140, 140)
    assert (await world.money(budget)).overrun == 40


async def test_a_void_by_absence_needs_the_recorder_of_the_row(world: World) -> None:
    caller = await world.caller()
    budget = await world.budget("tenant", caller.tenant, caller.tenant, 1000)
    attempt = caller.attempt(100)
    await world.bank.admit(attempt)
    refused = await world.bank.settle(void(attempt, recorder=uuid4()))
    assert (refused.outcome, refused.state) == (Outcome.REFUSED, State.OPEN)
    assert (await world.money(budget)).reserved == 100
    assert (await world.bank.settle(void(attempt, recorder=attempt.recorder))).outcome is Outcome.SETTLED
    assert await world.money(budget) == Money(limit=1000, reserved=0, settled=0, overrun=0, effective=1000)


async def test_an_unknown_attempt_is_unknown(world: World) -> None:
    caller = await world.caller()
    assert (await world.bank.settle(post(caller.attempt(), 1))).outcome is Outcome.UNKNOWN


async def test_moving_on_settles_one_sending_and_reserves_the_next(world: World) -> None:
    caller = await world.caller()
    budget = await world.budget("tenant", caller.tenant, caller.tenant, 100)
    first, second = caller.attempt(100), caller.attempt(100)
    await world.bank.admit(first)
    assert (await world.bank.settle_and_admit(void(first), second)).verdict is Verdict.OK
    assert (await world.money(budget)).reserved == 100
    third = caller.attempt(100)
    denied = await world.bank.settle_and_admit(post(second, 1), third)
    assert denied.verdict is Verdict.DENIED
    assert await world.money(budget) == Money(limit=100, reserved=0, settled=1, overrun=0, effective=100)


async def test_a_hit_costs_nothing_and_needs_a_credential_that_may_spend(world: World) -> None:
    caller = await world.caller()
    budget = await world.budget("tenant", caller.tenant, caller.tenant, 0)
    hit = caller.attempt(0)
    answer = await world.record_hit(hit, post(hit, 40, state=State.HIT), 40)
    assert (answer.verdict, answer.state) == (Verdict.OK, State.HIT)
    again = await world.record_hit(hit, post(hit, 40, state=State.HIT), 40)
    assert (again.verdict, again.state) == (Verdict.DUPLICATE, State.HIT)
    assert await world.entries(hit.attempt) == [(0, EntryKind.HIT, 0, 0)]
    assert await world.cost(hit.attempt) == (State.HIT, 0, 0)
    await world.revoke(caller)
    other = caller.attempt(0)
    assert (await world.record_hit(other, post(other, 1, state=State.HIT), 1)).verdict is Verdict.REVOKED
    assert (await world.money(budget)).reserved == 0


async def test_the_sweeper_charges_what_nobody_resolved(world: World) -> None:
    caller = await world.caller()
    budget = await world.budget("tenant", caller.tenant, caller.tenant, 1000)
    lost, done = caller.attempt(100), caller.attempt(100)
    await world.bank.admit(lost)
    await world.bank.admit(done)
    await world.bank.settle(post(done, 10))
    assert await world.sweep() == 1
    assert await world.sweep() == 0
    assert await world.cost(lost.attempt) == (State.CEILING, 100, 100)
    assert (await world.bank.settle(post(lost, 60))).outcome is Outcome.REFUNDED
    assert (await world.money(budget)).settled == 70


# ---- limits ----------------------------------------------------------------------------------


async def test_a_lowered_limit_gives_way_and_falls_with_each_release(world: World) -> None:
    caller = await world.caller()
    budget = await world.budget("tenant", caller.tenant, caller.tenant, 1000)
    first, second = caller.attempt(400), caller.attempt(400)
    await world.bank.admit(first)
    await world.bank.admit(second)
    await world.set_limit(budget, 300)
    assert (await world.money(budget)).effective == 800
    denied = await world.bank.admit(caller.attempt(1))
    assert (denied.verdict, denied.limit, denied.reserved) == (Verdict.DENIED, 300, 800)
    await world.bank.settle(void(first))
    assert (await world.money(budget)).effective == 400
    await world.bank.settle(post(second, 50))
    assert await world.money(budget) == Money(limit=300, reserved=0, settled=50, overrun=0, effective=300)
    assert (await world.bank.admit(caller.attempt(250))).verdict is Verdict.OK


async def test_changing_a_limit_never_resets_usage_and_keeps_top_ups(world: World) -> None:
    caller = await world.caller()
    budget = await world.budget("tenant", caller.tenant, caller.tenant, 100)
    attempt = caller.attempt(100)
    await world.bank.admit(attempt)
    await world.bank.settle(post(attempt, 90))
    await world.top_up(budget, 20)
    await world.set_limit(budget, 150)
    assert await world.money(budget) == Money(limit=170, reserved=0, settled=90, overrun=0, effective=170)


async def test_a_top_up_with_an_end_ends_by_itself(world: World) -> None:
    caller = await world.caller()
    budget = await world.budget("tenant", caller.tenant, caller.tenant, 100)
    await world.top_up(budget, 50, now_us() + WEEK_AHEAD_US)
    attempt = caller.attempt(150)
    assert (await world.bank.admit(attempt)).verdict is Verdict.OK
    await world.expire_boosts(budget)
    denied = await world.bank.admit(caller.attempt(1))
    assert (denied.verdict, denied.limit) == (Verdict.DENIED, 100)
    await world.bank.settle(post(attempt, 120))
    assert await world.money(budget) == Money(limit=100, reserved=0, settled=120, overrun=0, effective=120)


async def test_a_deleted_budget_no_longer_counts_but_its_reservations_settle_on_it(world: World) -> None:
    caller = await world.caller()
    budget = await world.budget("tenant", caller.tenant, caller.tenant, 100)
    attempt = caller.attempt(100)
    await world.bank.admit(attempt)
    await world.end_budget(budget)
    assert (await world.bank.admit(caller.attempt(500))).verdict is Verdict.OK
    assert (await world.bank.settle(post(attempt, 40))).budgets == (budget,)
    assert (await world.money(budget)).settled == 40
