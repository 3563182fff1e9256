"""What workers do for the desk: changed plans reach their tenants, old months go, days stay in step."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from proxy import background, telemetry
from proxy.errors import BankAway
from proxy.policyfile import BudgetTemplate, Plan
from proxy.postgres.bank import PostgresBank
from proxy.postgres.keeper import Keeper
from proxy.postgres.templated import PostgresTemplated
from proxy.postgres.upkeep import PostgresUpkeep
from proxy.settings import Settings
from proxy.worker.reports import Bookkeeper
from proxy.worker.templates import Gardener
from tests.integration.admin.ledgers import Past

USD = 10**9


class Files:
    """Policies whose plan `team` changes; a version for each."""

    def __init__(self, deps: Any) -> None:
        self.deps, self.number = deps, 0

    def set(self, *budgets: BudgetTemplate) -> None:
        self.number += 1
        plans = self.deps.policies.plans
        plans["team"] = Plan(name="team", version=f"v{self.number}", budgets=budgets)

    def current(self) -> Any:
        policies = self.deps.policies
        return SimpleNamespace(
            version=str(self.number), plans=policies.plans, models=policies.models, plan=policies.plan
        )


@pytest.fixture
def files(deps: Any) -> Files:
    return Files(deps)


async def test_a_template_hands_its_floor_on(admin, files) -> None:
    files.set(
        BudgetTemplate(scope="tenant", period="day", limit=USD, on_short="clamp", floor_output_tokens=48)
    )
    await admin.tenant(plan="team")
    [made] = (await admin.get("/budgets?tenant=acme"))["items"]
    assert (made["on_short"], made["floor_output_tokens"]) == ("clamp", 48)


async def test_a_changed_plan_reaches_its_tenants_upwards_only(admin, deps, engine, files) -> None:
    month = BudgetTemplate(scope="tenant", period="month", limit=100 * USD)
    files.set(month)
    for slug in ("acme", "other"):
        await admin.tenant(slug, plan="team")
    await admin.tenant("plain")
    gardeners = [Gardener(PostgresTemplated(engine), files.current) for _ in range(2)]

    async def grow() -> int:
        return sum([await one.round() for one in gardeners])

    async def limits(slug: str) -> dict[str, str]:
        found = (await admin.get(f"/budgets?tenant={slug}"))["items"]
        return {one["period"]: one["limit_usd"] for one in found}

    assert await grow() == 0 and await limits("acme") == {"month": "100.00"}
    files.set(BudgetTemplate(scope="tenant", period="month", limit=150 * USD),
              BudgetTemplate(scope="tenant", period="day", limit=9 * USD))  # fmt: skip
    assert await grow() == 4
    assert await limits("acme") == await limits("other") == {"month": "150.00", "day": "9.00"}
    assert await limits("plain") == {}
    files.set(month)
    assert await grow() == 0 and (await limits("acme"))["month"] == "150.00"
    [day] = [b for b in (await admin.get("/budgets?tenant=acme"))["items"] if b["period"] == "day"]
    await admin.delete(f"/budgets/{day['id']}")
    assert await Gardener(PostgresTemplated(engine), files.current).round() == 0
    assert set(await limits("acme")) == {"month"}
    assert (await admin.get("/audit?limit=200"))["items"][1]["action"] == "budget.template"


async def test_a_deleted_template_budget_is_not_made_again(admin, deps, engine, files) -> None:
    files.set(BudgetTemplate(scope="key", period="month", limit=USD))
    await admin.tenant("acme", plan="team")
    await admin.key("acme")
    [made] = (await admin.get("/budgets"))["items"]
    await admin.delete(f"/budgets/{made['id']}")
    assert await Gardener(PostgresTemplated(engine), files.current).round() == 0
    assert (await admin.get("/budgets"))["items"] == []


async def test_a_bookkeeper_rolls_everything_up_and_drops_what_is_old(admin, engine, owner) -> None:
    past = Past(owner)
    await admin.tenant("acme")
    key = UUID((await admin.key("acme"))["id"])
    old = (dt.date.today().replace(day=1) - dt.timedelta(days=130)).replace(day=1)
    await past.partition(old)
    for n in range(70):
        when = dt.datetime(old.year, old.month, 1 + n % 28, 12, tzinfo=dt.UTC)
        await past.call(key, when, USD)
    upkeep = PostgresUpkeep(engine)
    await Bookkeeper(upkeep, 3).retain()  # its days are not in step yet: nothing is lost
    assert (await past.run("SELECT count(*) FROM attempts"))[0][0] == 70
    await asyncio.sleep(1.1)
    await asyncio.gather(*(Bookkeeper(upkeep, 3).roll() for _ in range(3)))
    assert (await past.run("SELECT count(*), sum(cost) FROM usage_days"))[0] == (28, 70 * USD)
    await Bookkeeper(upkeep, 0).retain()  # 0 keeps everything
    assert (await past.run("SELECT count(*) FROM attempts"))[0][0] == 70
    await Bookkeeper(upkeep, 3).retain()
    assert (await past.run("SELECT count(*) FROM attempts"))[0][0] == 0
    assert (await admin.get("/reports/spend"))["total_usd"] == "70.00"
    assert await upkeep.drop_months(3) == []


async def test_a_check_of_the_invariants_that_takes_too_long_says_so(admin, engine, owner) -> None:
    keeper = Keeper(engine)
    assert await keeper.broken_invariants(10.0) == {}
    async with owner.begin() as other:
        await other.execute(text("LOCK TABLE accounts"))
        with pytest.raises(BankAway, match=r"the month cannot be read within 0\.2 s"):
            await keeper.broken_invariants(0.2)
    async with engine.connect() as db:  # the limit was that transaction's alone
        assert await db.scalar(text("SELECT current_setting('statement_timeout')")) == "10s"


async def test_a_worker_tells_when_it_last_came_to_the_end_of_the_check(monkeypatch, engine) -> None:
    outcomes: Iterator[dict[str, int] | BankAway] = iter([{}, {"I3": 2}, BankAway("not checked")])
    times = iter([100.0, 200.0])
    monkeypatch.setattr(background, "time", SimpleNamespace(time=lambda: next(times)))

    class Judge:
        async def broken_invariants(self, seconds: float) -> dict[str, int]:
            assert seconds == 7
            outcome = next(outcomes)
            if isinstance(outcome, BankAway):
                raise outcome
            return outcome

    settings = Settings(
        database_url="postgresql://x/y", redis_url="redis://x", master_key="00" * 32, invariants_seconds=7
    )
    duties = background.duties(settings, engine, PostgresBank(engine, lanes=1), Judge())  # type: ignore[arg-type]
    [duty] = [one for one in duties if one.name == "invariants"]
    seen = []
    for _ in range(3):
        with contextlib.suppress(BankAway):
            await duty.act()
        seen.append(
            (telemetry.INVARIANTS_CHECKED._value.get(), telemetry.INVARIANT.labels("I3")._value.get())
        )
    assert seen == [(100.0, 0), (200.0, 2), (200.0, 2)]
