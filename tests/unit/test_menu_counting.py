"""What a count of its input does to the ways of serving a call."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from proxy import policyfile
from proxy.bedrock.wires import BedrockWires
from proxy.breaker import Breakers
from proxy.clock import uuid7
from proxy.domain.evidence import TERMS_TAG
from proxy.domain.ledger import Operation
from proxy.domain.policy import Policy
from proxy.offer import Menu, Offer, output_limit
from proxy.policyfile import PolicySet
from tests.unit.test_menu import POLICIES, Labels

SONNET, HAIKU = "anthropic.claude-sonnet-4-20250514-v1:0", "anthropic.claude-3-5-haiku-20241022-v1:0"
NOVA = "amazon.nova-pro-v1:0"
LLAMA = "meta.llama3-1-405b-instruct-v1:0"
INPUT, OUTPUT = 3_000, 15_000
TEXT = "toll " * 1000


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> PolicySet:
    folder: Path = tmp_path_factory.mktemp("policies")
    shutil.copytree(POLICIES, folder, dirs_exist_ok=True)
    return policyfile.load(folder)


def offer(book: PolicySet, name: str, **body: Any) -> Offer:
    wires = BedrockWires(first_byte=1, idle=1)
    said = {
        "messages": [{"role": "user", "content": [{"text": TEXT}]}], "inferenceConfig": {"maxTokens": 100}, **body,
    }  # fmt: skip
    route = book.resolve(name)
    spoken = wires.speak(Operation.CONVERSE, route, said, orjson.dumps(said), {})
    bound = spoken.dialect.bound(spoken.body, spoken.raw, route.model, {})
    limit, raw = output_limit(Policy(plan="default", version="1"), route.model, spoken, bound)
    return Offer(
        call=uuid7(), operation=spoken.operation, route=route, book=book, dialect=spoken.dialect, bound=bound,
        body=spoken.body, raw=raw, limit=limit, headers={}, sender=wires, labels=Labels(), horizon=60,
    )  # fmt: skip


def test_a_count_lowers_ceiling_floor_and_clamp_of_the_model_that_was_counted(book):
    menu = Menu([offer(book, SONNET), offer(book, HAIKU)], Breakers())
    before, stand_in = (leg.ceiling for leg in menu.legs())
    menu.counted(1_200)
    first, second = menu.legs()
    assert first.ceiling == 1_200 * INPUT + 100 * OUTPUT < before
    assert second.ceiling == stand_in, "another model's tokens are other tokens"
    assert menu.floor(1) == 1_200 * INPUT + OUTPUT
    clamped = menu.clamp(1_200 * INPUT + 30 * OUTPUT, 1)
    assert clamped is not None
    assert clamped[0].limit == 30


def test_a_count_above_the_byte_bound_changes_nothing(book):
    menu = Menu([offer(book, SONNET)], Breakers())
    before = menu.legs()[0].ceiling
    menu.counted(1 << 40)
    assert menu.legs()[0].ceiling == before


def test_no_count_is_below_at_best(book):
    menu = Menu([offer(book, SONNET)], Breakers())
    best = menu.at_best()
    assert best < len(TEXT) // 5 * INPUT + 100 * OUTPUT < menu.legs()[0].ceiling
    assert menu.at_best(1) == best - 99 * OUTPUT


async def test_the_question_costs_nothing_and_goes_to_the_base_model_where_it_would_run(book):
    menu = Menu([offer(book, f"us.{SONNET}")], Breakers())
    question = await menu.question()
    assert question is not None
    assert question.leg.ceiling == 0
    assert question.leg.target.model_id == SONNET
    assert question.leg.target.region == menu.legs()[0].target.region
    request = question.leg.request(uuid7())
    assert request.path == f"/model/{SONNET.replace(':', '%3A')}/count-tokens"
    assert set(orjson.loads(request.body)["input"]) == {"converse"}
    assert question.read(b'{"inputTokens":3}') == 3


async def test_what_is_not_counted(book):
    guarded = offer(book, SONNET)
    guarded = replace(guarded, bound=replace(guarded.bound, guardrail=True))
    for one in (guarded, offer(book, LLAMA)):
        assert await Menu([one], Breakers()).question() is None


def test_a_call_under_other_than_the_usual_terms_tells_them_to_the_log(book):
    plain, dear = offer(book, NOVA), offer(book, NOVA, serviceTier={"type": "priority"})
    pairs = []
    for one in (plain, dear):
        request = Menu([one], Breakers()).legs()[0].request(uuid7())
        pairs.append(orjson.loads(request.body)["requestMetadata"])
    assert TERMS_TAG not in pairs[0]
    assert pairs[1][TERMS_TAG] == "priority/standard/5m"
