"""Random histories: the bank in Postgres and its twin in memory must answer alike, step by step, and the
invariants of the money must hold after each."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from typing import Any, TypeVar
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from proxy.clock import now_us
from proxy.domain.admission import Amendment
from proxy.domain.ledger import Admission, Attempt, EntryKind, Settled, Settlement, Why
from proxy.postgres.bank import PostgresBank
from proxy.postgres.engine import create_engine
from tests.contract.bank_twin import DAY_US, Caller, PostgresWorld, TwinWorld, at_ceiling, post, void

T = TypeVar("T")
NOBODY = uuid4()

# Few and round amounts, so that budgets are often met exactly and often exceeded by one step.
ceilings = st.sampled_from([10, 20, 30, 50, 0])
limits = st.sampled_from([30, 50, 20, 60, 100, 0])
costs = st.sampled_from([10, 0, 20, 30, 40, 70])
models = st.sampled_from([7, 8])
picks = st.integers(0, 10**6)
endings = st.sampled_from(["post", "void", "void by absence", "void of another", "ceiling"])


class Loop:
    """A loop in a thread of its own, so that the machine's steps can be plain functions."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def __call__(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=30)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def real(app_database_url: str) -> Iterator[tuple[Loop, PostgresWorld]]:
    loop = Loop()

    async def build() -> PostgresWorld:
        engine = create_engine(app_database_url, pool_size=4)
        bank = PostgresBank(engine, lanes=1)
        await bank.start()
        return PostgresWorld(engine, bank)

    world = loop(build())
    yield loop, world
    loop(world.bank.aclose())
    loop(world.engine.dispose())
    loop.close()


class Histories(RuleBasedStateMachine):
    loop: Loop
    real: PostgresWorld

    def __init__(self) -> None:
        super().__init__()
        self.twin = TwinWorld()
        self.budgets: list[tuple[UUID, UUID]] = []  # (real, twin)
        self.kinds: dict[tuple[str, UUID, bool], int] = {}
        self.attempts: list[Attempt] = []
        self.evidence = 0

    # ---- the stage ---------------------------------------------------------------------------

    @initialize()
    def callers(self) -> None:
        first = self.loop(self.real.caller())
        second = self.loop(self.real.caller(tenant=first))
        self.people: list[Caller] = [first, second]
        for caller in self.people:
            self.twin.bank.add_spender(caller.tenant, caller.project, caller.key, caller.credential)

    @rule(scope=st.sampled_from(["tenant", "project", "key"]), limit=limits, narrow=st.booleans(), pick=picks)
    def add_budget(self, scope: str, limit: int, narrow: bool, pick: int) -> None:
        caller = self.people[pick % 2]
        subject = {"tenant": caller.tenant, "project": caller.project, "key": caller.key}[scope]
        assert subject is not None
        if (scope, subject, narrow) in self.kinds:
            return
        self.kinds[scope, subject, narrow] = len(self.budgets)
        chosen = (7,) if narrow else ()
        self.budgets.append(
            (
                self.loop(self.real.budget(scope, subject, caller.tenant, limit, models=chosen)),
                self.loop(self.twin.budget(scope, subject, caller.tenant, limit, models=chosen)),
            )
        )

    # ---- the callers -------------------------------------------------------------------------

    @rule(ceiling=ceilings, floor=st.sampled_from([0, 10, 20]), model=models, pick=picks)
    def admit(self, ceiling: int, floor: int, model: int, pick: int) -> None:
        self._admit(self.people[pick % 2].attempt(ceiling, floor=floor, model=model))

    @precondition(lambda self: self.attempts)
    @rule(pick=picks)
    def admit_again(self, pick: int) -> None:
        self._admit(self.attempts[pick % len(self.attempts)])

    @rule(pick=picks, minutes=st.sampled_from([-10, -4, 4, 10]))
    def admit_with_another_clock(self, pick: int, minutes: int) -> None:
        attempt = self.people[pick % 2].attempt(10)
        moved = UUID(int=attempt.attempt.int + ((minutes * 60_000) << 80))
        self._admit(replace(attempt, attempt=moved))

    @precondition(lambda self: self.attempts)
    @rule(pick=picks, ending=endings, cost=costs, discount=st.integers(0, 3))
    def settle(self, pick: int, ending: str, cost: int, discount: int) -> None:
        settlement = self._ending(self.attempts[pick % len(self.attempts)], ending, cost, discount)
        answers = (
            self.loop(self.real.bank.settle(settlement)),
            self.loop(self.twin.bank.settle(settlement)),
        )
        self._alike(*answers)

    @precondition(lambda self: self.attempts)
    @rule(pick=picks, ending=endings, cost=costs, ceiling=ceilings)
    def move_on(self, pick: int, ending: str, cost: int, ceiling: int) -> None:
        settlement = self._ending(self.attempts[pick % len(self.attempts)], ending, cost, 0)
        attempt = self.people[0].attempt(ceiling)
        self.attempts.append(attempt)
        self._alike(
            self.loop(self.real.bank.settle_and_admit(settlement, attempt)),
            self.loop(self.twin.bank.settle_and_admit(settlement, attempt)),
        )

    @rule(
        sizes=st.lists(st.tuples(ceilings, models, picks), min_size=1, max_size=8),
        ending=endings,
        picks=st.sets(picks, max_size=4),
    )
    def many_at_once(self, sizes: list[tuple[int, int, int]], ending: str, picks: set[int]) -> None:
        """One batch: its settlements count before its admissions."""
        known = {self.attempts[p % len(self.attempts)].attempt: p for p in picks} if self.attempts else {}
        by_id = {a.attempt: a for a in self.attempts}
        settlements = [self._ending(by_id[i], ending, 40, 0) for i in known]
        new = [self.people[p % 2].attempt(ceiling, model=model) for ceiling, model, p in sizes]
        self.attempts += new

        async def at_once() -> list[Any]:
            bank = self.real.bank
            return await asyncio.gather(*(bank.settle(s) for s in settlements), *(bank.admit(a) for a in new))

        async def in_turn() -> list[Any]:
            bank = self.twin.bank
            return [await bank.settle(s) for s in settlements] + [await bank.admit(a) for a in new]

        for one, other in zip(self.loop(at_once()), self.loop(in_turn()), strict=True):
            self._alike(one, other)

    # ---- the others --------------------------------------------------------------------------

    @precondition(lambda self: self.budgets)
    @rule(pick=picks, limit=limits)
    def set_limit(self, pick: int, limit: int) -> None:
        one, other = self.budgets[pick % len(self.budgets)]
        self.loop(self.real.set_limit(one, limit))
        self.loop(self.twin.set_limit(other, limit))

    @precondition(lambda self: self.budgets)
    @rule(pick=picks, amount=st.sampled_from([10, 20, -10, -30]), ends=st.booleans())
    def top_up(self, pick: int, amount: int, ends: bool) -> None:
        one, other = self.budgets[pick % len(self.budgets)]
        until = now_us() + DAY_US if ends else None
        self.loop(self.real.top_up(one, amount, until))
        self.loop(self.twin.top_up(other, amount, until))

    @precondition(lambda self: self.budgets)
    @rule(pick=picks)
    def let_top_ups_end(self, pick: int) -> None:
        one, other = self.budgets[pick % len(self.budgets)]
        self.loop(self.real.expire_boosts(one))
        self.loop(self.twin.expire_boosts(other))

    @precondition(lambda self: self.budgets)
    @rule(pick=picks)
    def end_budget(self, pick: int) -> None:
        number = pick % len(self.budgets)
        self.loop(self.real.end_budget(self.budgets[number][0]))
        self.loop(self.twin.end_budget(self.budgets[number][1]))
        self.kinds = {kind: n for kind, n in self.kinds.items() if n != number}

    @precondition(lambda self: self.attempts)
    @rule(
        pick=picks,
        refund=st.booleans(),
        amount=st.sampled_from([-10, -20, 10, 30, -50, 0]),
        upstream=st.sampled_from([-10, 0, 10, -40]),
        anew=st.booleans(),
    )
    def amend(self, pick: int, refund: bool, amount: int, upstream: int, anew: bool) -> None:
        self.evidence += anew
        amendment = Amendment(
            attempt=self.attempts[pick % len(self.attempts)].attempt,
            kind=EntryKind.REFUND if refund else EntryKind.ADJUST,
            amount=amount, upstream_amount=upstream, why=Why.LOG, evidence=f"log-{self.evidence}",
        )  # fmt: skip
        one = self.loop(self.real.bank.amend([amendment]))
        assert one == self.loop(self.twin.bank.amend([amendment]))

    @rule()
    def sweep(self) -> None:
        self.loop(self.real.sweep())
        self.loop(self.twin.sweep())

    @rule()
    def revoke(self) -> None:
        self.loop(self.real.revoke(self.people[1]))
        self.loop(self.twin.revoke(self.people[1]))

    # ---- what must hold ----------------------------------------------------------------------

    @invariant()
    def money_is_alike(self) -> None:
        for one, other in self.budgets:
            assert self.loop(self.real.money(one)) == self.loop(self.twin.money(other))

    @invariant()
    def the_twin_is_sound(self) -> None:
        assert self.loop(self.twin.faults()) == []

    def teardown(self) -> None:
        for attempt in self.attempts:
            one = self.loop(self.real.entries(attempt.attempt))
            assert one == self.loop(self.twin.entries(attempt.attempt))
        assert self.loop(self.real.faults()) == []
        self.loop(self.real.sweep())

    # ---- inside ------------------------------------------------------------------------------

    def _admit(self, attempt: Attempt) -> None:
        if attempt not in self.attempts:
            self.attempts.append(attempt)
        self._alike(self.loop(self.real.bank.admit(attempt)), self.loop(self.twin.bank.admit(attempt)))

    def _ending(self, attempt: Attempt, ending: str, cost: int, discount: int) -> Settlement:
        if ending == "post":
            return post(attempt, cost, upstream_cost=max(0, cost - discount))
        if ending == "ceiling":
            return at_ceiling(attempt)
        return void(attempt, {"void": None, "void by absence": attempt.recorder}.get(ending, NOBODY))

    def _alike(self, real: Admission | Settled, twin: Admission | Settled) -> None:
        names = {other: one for one, other in self.budgets}
        if isinstance(twin, Settled):
            assert isinstance(real, Settled)
            mapped: Any = replace(twin, budgets=tuple(sorted(names[b] for b in twin.budgets)))
            assert replace(real, budgets=tuple(sorted(real.budgets))) == mapped
        else:
            assert isinstance(real, Admission)
            assert abs(real.admitted_at_us - twin.admitted_at_us) < 5_000_000
            mapped = replace(
                twin,
                budget=names[twin.budget] if twin.budget is not None else None,
                admitted_at_us=real.admitted_at_us,
            )
            assert real == mapped


@pytest.mark.slow
def test_both_banks_tell_the_same_history(real: tuple[Loop, PostgresWorld]) -> None:
    real_pair = real

    class Machine(Histories):
        loop, real = real_pair

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking would replay for minutes
            suppress_health_check=list(HealthCheck),
        ),
    )
