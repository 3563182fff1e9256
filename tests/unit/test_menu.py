"""The ways of serving one call: which targets and stand-ins it is offered to, in which order, at what ceiling."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pytest

from proxy import policyfile
from proxy.bedrock.wires import BedrockWires
from proxy.breaker import Breakers
from proxy.clock import uuid7
from proxy.domain.ledger import Operation
from proxy.domain.policy import Policy
from proxy.domain.routing import Signal, Tolerance
from proxy.errors import UnboundedCost, UpstreamUnavailable
from proxy.offer import Menu, Offer, output_limit
from proxy.policyfile import PolicySet

POLICIES = Path(__file__).parents[2] / "policies"
LLAMA, SMALL = "meta.llama3-1-405b-instruct-v1:0", "meta.llama3-1-8b-instruct-v1:0"
CAPACITY = "arn:aws:bedrock:us-east-1:123456789012:provisioned-model/llama31405b0"
ROUTES = f"""
routes:
  ordered:
    model: {LLAMA}
    targets: [{{profile: us, region: us-east-2}}, {{region: us-west-2}}]
    fallbacks: [{SMALL}]
  spilling:
    model: {LLAMA}
    policy: spill
    targets: [{{region: us-west-2}}, {{arn: "{CAPACITY}", rates: {{input: "0.5", output: "0.75"}}}}]
  bought:
    model: {LLAMA}
    policy: provisioned_only
    targets: [{{region: us-west-2}}, {{arn: "{CAPACITY}"}}]
  thrifty:
    model: {LLAMA}
    policy: cheapest
    targets: [{{region: us-west-2}}, {{arn: "{CAPACITY}", rates: {{input: "0.5", output: "0.75"}}}}]
"""  # fmt: skip


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> PolicySet:
    folder = tmp_path_factory.mktemp("policies")
    shutil.copytree(POLICIES, folder, dirs_exist_ok=True)
    (folder / "routes" / "own.yaml").write_text(ROUTES)
    return policyfile.load(folder)


class Labels:
    """Numbers every name; nothing is ever unknown."""

    def __init__(self) -> None:
        self.ids: dict[tuple[int, str], int] = {}

    def known(self, kind: int, value: str) -> int | None:
        return self.ids.setdefault((kind, value), len(self.ids) + 1)

    async def intern(self, kind: int, value: str) -> int:
        return self.known(kind, value) or 0


def offer(book: PolicySet, name: str, **body: Any) -> Offer:
    wires = BedrockWires(first_byte=1, idle=1)
    said = {"prompt": "hello", "max_gen_len": 1000, **body}
    route = book.resolve(name)
    spoken = wires.speak(Operation.INVOKE_MODEL, route, said, orjson.dumps(said), {})
    bound = spoken.dialect.bound(spoken.body, spoken.raw, route.model, {})
    limit, raw = output_limit(Policy(plan="default", version="1"), route.model, spoken, bound)
    return Offer(
        call=uuid7(), operation=spoken.operation, route=route, book=book, dialect=spoken.dialect, bound=bound,
        body=spoken.body, raw=raw, limit=limit, headers={}, sender=wires, labels=Labels(), horizon=60,
    )  # fmt: skip


def tried(menu: Menu) -> list[str]:
    return [leg.target.label for leg in menu.legs()]


BY_GEOGRAPHY, IN_REGION = f"us-east-2/us.{LLAMA}", f"us-west-2/{LLAMA}"
PAID = f"us-east-1/{CAPACITY}"


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("ordered", [BY_GEOGRAPHY, IN_REGION]),
        ("spilling", [PAID, IN_REGION]),
        ("bought", [PAID]),
        ("thrifty", [PAID, IN_REGION]),
    ],
)
def test_a_route_s_policy_orders_its_targets(book, name, order):
    assert tried(Menu([offer(book, name)], Breakers())) == order


def test_capacity_is_charged_at_the_operator_s_rate_and_costs_nothing_upstream(book):
    paid, listed = Menu([offer(book, "spilling")], Breakers()).legs()
    assert (paid.priced.upstream_free, listed.priced.upstream_free) == (True, False)
    bound = offer(book, "spilling").bound.input_tokens
    assert paid.ceiling == bound * 500 + 1000 * 750
    assert listed.ceiling == bound * 2400 + 1000 * 2400
    [unrated] = Menu([offer(book, "bought")], Breakers()).legs()
    assert unrated.ceiling == listed.ceiling, "the list price where the operator sets none"


def test_stand_ins_come_after_every_target_of_the_model(book):
    first, other = offer(book, "ordered"), offer(book, SMALL)
    menu = Menu([first, other], Breakers())
    assert tried(menu) == [BY_GEOGRAPHY, IN_REGION, f"us-east-1/{SMALL}"]
    assert menu.legs()[2].ceiling < menu.legs()[0].ceiling / 5


def test_open_targets_are_left_out_and_resting_ones_come_last(book):
    breakers = Breakers(Tolerance(faults=2))
    breakers.report(BY_GEOGRAPHY, Signal.THROTTLED)
    assert tried(Menu([offer(book, "ordered")], breakers)) == [IN_REGION, BY_GEOGRAPHY]
    breakers.report(BY_GEOGRAPHY, Signal.FAULT)
    assert tried(Menu([offer(book, "ordered")], breakers)) == [IN_REGION]


def test_a_call_with_no_target_left_is_refused_with_the_time_of_the_next_probe(book):
    clock = [100.0]
    breakers = Breakers(Tolerance(faults=1, open_for=7, probe=2), lambda: clock[0])
    for target in (BY_GEOGRAPHY, IN_REGION):
        breakers.report(target, Signal.FAULT)
    with pytest.raises(UpstreamUnavailable, match="left alone for a while") as refused:
        Menu([offer(book, "ordered")], breakers)
    assert (refused.value.reason, refused.value.retry_after_ms) == ("target_down", 7000)
    stand_in = Menu([offer(book, "ordered"), offer(book, SMALL)], breakers)
    assert tried(stand_in) == [f"us-east-1/{SMALL}"]
    clock[0] = 107.0
    assert tried(Menu([offer(book, "ordered")], breakers)) == [BY_GEOGRAPHY, IN_REGION], "the probe"
    assert tried(Menu([offer(book, "ordered")], breakers)) == [IN_REGION], "one probe at a time"


def test_a_target_that_cannot_be_bounded_is_left_out_unless_it_is_the_only_one(book):
    asked = replace(offer(book, "spilling").bound, tier="flex")
    with pytest.raises(UnboundedCost, match="flex"):
        Menu([replace(offer(book, "spilling"), bound=asked)], Breakers())
    fast = replace(offer(book, "spilling").bound, latency="optimized")
    assert tried(Menu([replace(offer(book, "spilling"), bound=fast)], Breakers())) == [IN_REGION]


def test_a_short_budget_clamps_every_way(book):
    menu = Menu([offer(book, "ordered"), offer(book, SMALL)], Breakers())
    legs = menu.clamp(menu.floor(400), 10)
    assert legs is not None
    assert legs[0].ceiling == menu.floor(400)
    bodies = [leg.request(UUID(int=1)).body for leg in legs]
    assert all(b'"max_gen_len":400' in body.replace(b" ", b"") for body in bodies)
    assert menu.clamp(menu.floor(10) - 1, 10) is None


def test_a_stand_in_is_asked_for_no_more_than_it_gives(book):
    large = offer(book, LLAMA, max_gen_len=2048)
    small = replace(large.route.model, max_output_tokens=300)
    assert large.within(small).limit == 300
    assert large.within(replace(small, max_output_tokens=0)) is large
