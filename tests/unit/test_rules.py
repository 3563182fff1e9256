"""Rules: conditions are typed, effects add up, and what has no answer fails closed."""

import asyncio
import datetime as dt
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from proxy.domain.catalogue import Model, Route, Target
from proxy.domain.control import BudgetShare
from proxy.domain.ledger import Operation
from proxy.domain.policy import Policy
from proxy.domain.request import Bound
from proxy.domain.rules import Rule, RuleError, decide
from proxy.domain.tenant import Caller
from proxy.errors import BankAway, Forbidden, Unavailable
from proxy.offer import Offer
from proxy.policyfile.expressions import VARIABLES, Condition, ConditionError
from proxy.ruling import Asked, Ruler, Shares

NOW = dt.datetime(2026, 11, 24, 9, tzinfo=dt.UTC)
VALUES = {
    "request.model": "anthropic.big", "request.name": "us.anthropic.big", "request.family": "anthropic",
    "request.operation": "Converse", "request.output_limit": 4096, "request.input_bytes": 100,
    "request.stream": False, "request.tools": False, "request.tier": "default", "request.latency": "standard",
    "request.guardrail": "", "request.tags": {"team": "x"}, "tenant": "acme", "project": "", "key": "k",
    "key.name": "ci", "plan": "default", "budget.used": 0.9, "time": NOW,
}  # fmt: skip


def rule(name: str, when: str, effect: Any = "deny", **more) -> Rule:
    condition = Condition(when)
    return Rule(name=name, when=when, holds=condition, reads=condition.reads, effect=effect, **more)


@pytest.mark.parametrize(
    ("when", "holds"),
    [
        ('request.model.startsWith("anthropic.") && budget.used > 0.8', True),
        ('tenant in ["other", "acme"]', True),
        ('"team" in request.tags && request.tags["team"] == "y"', False),
        ('request.model.matches("^anth(a|ropic)\\\\.b+ig$")', True),
        ('time.getHours("Europe/Berlin") == 10 && time < timestamp("2027-01-01T00:00:00Z")', True),
        ("double(request.output_limit) / 2.0 > 2000.0", True),
        ('has(request.tags.team) && size(key.name) == 2 && project == ""', True),
    ],
)
def test_conditions(when, holds):
    assert Condition(when)(VALUES) is holds


def test_every_variable_has_a_value_here():
    assert set(VALUES) == set(VARIABLES)
    for name, value in VALUES.items():
        quoted = {str: '""', bool: "false", int: "0", float: "0.0", dict: "{}"}.get(type(value))
        if quoted:
            assert Condition(f"{name} == {quoted}")(VALUES) in (True, False)


@pytest.mark.parametrize(
    "when",
    ["tenant", "budget.used > 1", "request.modle == ''", "request", "tenant ==", "1 + 1", "x" * 3000, ""],
)
def test_conditions_that_are_wrong_are_found_when_they_are_read(when):
    with pytest.raises(ConditionError):
        Condition(when)


def test_a_hostile_pattern_takes_no_time():
    slow = Condition('request.name.matches("(a+)+$")')
    began = time.perf_counter()
    assert slow(VALUES | {"request.name": "a" * 5000 + "b"}) is False
    assert time.perf_counter() - began < 0.5


@pytest.mark.parametrize("when", ["request.input_bytes / 0 > 1", 'request.tags["none"] == "x"'])
def test_a_condition_without_an_answer_fails_closed(when):
    with pytest.raises(RuleError, match="'r'"):
        decide([rule("r", when)], VALUES)
    ruling = decide([replace(rule("r", when), observe=True)], VALUES)
    assert len(ruling.unanswered) == 1 and not ruling.enforced


def test_effects_add_up():
    ruling = decide(
        [
            rule("cap", "true", "cap", tokens=300),
            rule("lower", "true", "cap", tokens=200),
            rule("higher", "true", "cap", tokens=900),
            rule("no", "false", text="never"),
            rule("first", "true", "substitute", text="a"),
            rule("second", "true", "substitute", text="b"),
            rule("g", "true", "require_guardrail", text="gr-*"),
            rule("look", "true", text="x", observe=True),
            rule("here", "true", "route", targets=("eu-*",)),
        ],
        VALUES,
    )
    assert (ruling.tokens, ruling.model, ruling.deny, ruling.targets) == (200, "a", None, ("eu-*",))
    assert ruling.by == {"cap": "lower", "substitute": "first", "route": "here"}
    assert ruling.guardrails == (("g", "gr-*"),) and [r.name for r in ruling.observed] == ["look"]


# -- the ruler --------------------------------------------------------------------------------


class Dialect:
    name = "double"

    def with_output_limit(self, body, raw, limit):
        return raw + f"|{limit}".encode()


def model(name: str) -> Model:
    return Model(
        id=name,
        provider="p",
        name=name,
        family=name.split(".", maxsplit=1)[0],
        context_tokens=1000,
        max_output_tokens=500,
    )


NOTHING: Any = None
DIALECT: Any = Dialect()


def offer(name: str = "anthropic.big", **bound) -> Offer:
    found = model(name)
    targets = tuple(
        Target(model=name, model_id=f"{prefix}{name}", region=region)
        for prefix, region in (("", "us-east-1"), ("eu.", "eu-west-1"))
    )
    book = SimpleNamespace(resolve=lambda other: Route(name=other, model=model(other), targets=targets))
    return Offer(
        call=uuid4(), operation=Operation.CONVERSE, route=Route(name=name, model=found, targets=targets), book=book,
        dialect=DIALECT, bound=Bound(input_tokens=10, output_limit=None, **bound), body={}, raw=b"raw", limit=400,
        headers={}, sender=NOTHING, labels=NOTHING, horizon=1,
    )  # fmt: skip


CALLER = Caller(
    tenant=UUID(int=1), tenant_slug="acme", project=None, project_slug=None, key=UUID(int=3), key_name="ci",
    credential=UUID(int=4), policy=Policy(plan="default", version="1", models_denied=("secret.*",)),
)  # fmt: skip
ASKED = Asked(name="big", operation=Operation.CONVERSE, stream=False, size=7)


def ruled(*rules: Rule, used: float | None = 0.9, **bound) -> Offer:
    ruler = Ruler(lambda: rules, lambda caller, model: used, clock=NOW.timestamp)
    return ruler(CALLER, offer(**bound), ASKED, lambda route: replace(offer(), route=route))


def test_no_rule_leaves_the_offer_as_it_is():
    one = offer()
    assert Ruler(lambda: (), lambda *_: None)(CALLER, one, ASKED, lambda route: one) is one


def test_a_deny_says_why_and_by_what():
    with pytest.raises(Forbidden, match=r"not at night \(rule night\)") as raised:
        ruled(rule("night", "true", text="not at night"))
    assert raised.value.reason == "rule_denied"


def test_a_cap_lowers_the_limit_and_never_raises_it():
    capped = ruled(rule("cap", "true", "cap", tokens=100))
    assert (capped.limit, capped.raw) == (100, b"raw|100")
    assert ruled(rule("cap", "true", "cap", tokens=1000)).limit == 400


def test_another_model_must_be_one_the_key_may_call():
    assert (
        ruled(rule("s", "budget.used > 0.8", "substitute", text="meta.small")).route.model.id == "meta.small"
    )
    with pytest.raises(Forbidden, match="not allowed"):
        ruled(rule("s", "true", "substitute", text="secret.model"))


def test_a_guardrail_must_be_named():
    required = rule("g", "true", "require_guardrail", text="gr-*")
    with pytest.raises(Forbidden, match="guardrail gr-"):
        ruled(required)
    assert ruled(required, guardrail=True, guardrail_id="gr-1")


def test_targets_are_picked_in_order():
    picked = ruled(rule("r", "true", "route", targets=("eu-*", "us-east-1/*"))).route.targets
    assert [target.region for target in picked] == ["eu-west-1", "us-east-1"]
    assert len(ruled(rule("r", "true", "route", targets=("eu.*",))).route.targets) == 1
    with pytest.raises(Forbidden, match="no target"):
        ruled(rule("r", "true", "route", targets=("ap-*",)))


def test_a_rule_about_budgets_needs_to_know_them():
    nearly = rule("b", 'request.model.startsWith("anthropic") && budget.used > 0.8', text="spent")
    with pytest.raises(Unavailable) as raised:
        ruled(nearly, used=None)
    assert raised.value.reason == "rule_error"
    assert ruled(rule("b", 'tenant == "other" && budget.used > 0.8', text="spent"), used=None)


def test_a_fallback_is_ruled_like_any_other_call():
    rules = (rule("no", 'request.model == "meta.other"', text="no"), rule("cap", "true", "cap", tokens=50),
             rule("s", 'request.model == "meta.old"', "substitute", text="meta.new"))  # fmt: skip
    ruler = Ruler(lambda: rules, lambda *_: 0.0)
    left = list(ruler.stand_ins(CALLER, [offer("meta.other"), offer("meta.good"), offer("meta.old")], ASKED))
    assert [(one.route.model.id, one.limit) for one in left] == [("meta.good", 50)]


# -- the snapshot of budgets ------------------------------------------------------------------


async def test_the_largest_share_that_applies_counts_and_grows_old():
    clock = [100.0]
    rows = [
        BudgetShare(subject=CALLER.tenant, models=None, used=0.3),
        BudgetShare(subject=CALLER.key, models=frozenset({"meta.a"}), used=0.7),
        BudgetShare(subject=UUID(int=99), models=None, used=0.9),
    ]

    class Source:
        away = False

        async def shares(self):
            if self.away:
                raise BankAway("away")
            return rows

    source = Source()
    shares = Shares(source, lambda: True, monotonic=lambda: clock[0])
    assert shares.used(CALLER, "meta.a") is None
    await shares.refresh()
    assert (shares.used(CALLER, "meta.a"), shares.used(CALLER, "meta.b")) == (0.7, 0.3)
    source.away = True
    running = asyncio.create_task(shares.run())
    await asyncio.sleep(0)
    clock[0] += 4
    assert shares.used(CALLER, "meta.b") == 0.3
    clock[0] += 2
    assert shares.used(CALLER, "meta.b") is None
    running.cancel()
