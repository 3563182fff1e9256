"""What a line of the invocation log proves: which attempt is meant, at which terms, and what it cost."""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

import pytest

from proxy import policyfile
from proxy.domain.evidence import (
    ATTEMPT_TAG,
    TERMS_TAG,
    USUAL,
    LogLine,
    Terms,
    Unproven,
    joined,
    prove,
    spell,
    terms_of,
    told,
)
from proxy.domain.pricing import Priced
from proxy.domain.request import Bound

NOVA, LLAMA = "amazon.nova-pro-v1:0", "meta.llama3-1-405b-instruct-v1:0"
SONNET = "anthropic.claude-sonnet-4-5-20250929-v1:0"
AT = 1_795_000_000.0


@pytest.fixture(scope="module")
def book():
    return policyfile.load()


def priced(book, name: str) -> tuple[str, Priced]:
    route = book.resolve(name)
    return route.model.family, book.priced(route.model, route.targets[0])


def line(**fields) -> LogLine:
    given = {
        "request_id": "r-1", "attempt": None, "terms": USUAL, "input_tokens": 1000, "output_tokens": 100,
        "cache_read_tokens": 0, "cache_write_tokens": 0, "error": None, "source": "test",
    }  # fmt: skip
    return LogLine(**{**given, **fields})


QUESTION = Unproven(
    attempt=uuid4(), tenant=uuid4(), model=LLAMA, target=f"us-west-2/{LLAMA}", ceiling=10**9,
    upstream_request_id="r-9", admitted_at=AT, finished_at=AT + 1, status=200, latency_ms=1, first_byte_ms=1,
)  # fmt: skip


@pytest.mark.parametrize(
    "terms",
    [
        Terms(tier="priority"),
        Terms(tier="flex", latency="optimized", cache_ttl="1h", more=True),
        Terms(cache_ttl="1h"),
        Terms(more=True),
    ],
)
def test_unusual_terms_are_told_and_read_back(terms):
    said = spell(terms)
    assert said is not None
    assert told({ATTEMPT_TAG: "x", TERMS_TAG: said}) == terms


def test_usual_terms_need_no_pair():
    assert spell(terms_of(Bound(input_tokens=1, output_limit=1, cache_ttl="5m"))) is None
    assert told({ATTEMPT_TAG: "x", "team": "blue"}) == USUAL


def test_nothing_is_concluded_where_our_pair_may_have_yielded():
    assert told({}) is None
    assert told({ATTEMPT_TAG: "x", **{f"k{n}": "v" for n in range(15)}}) is None
    assert told({ATTEMPT_TAG: "x", **{f"k{n}": "v" * 250 for n in range(30)}}) is None
    assert told({ATTEMPT_TAG: "x", TERMS_TAG: "nonsense"}) is None


def test_guardrails_and_images_are_more_than_tokens():
    assert terms_of(Bound(input_tokens=1, output_limit=1, guardrail=True)).more
    assert terms_of(Bound(input_tokens=1, output_limit=0, images=1)).more


def test_a_line_is_joined_by_attempt_and_without_one_by_request():
    own = line(attempt=QUESTION.attempt)
    seen = line(request_id="r-9")
    others = [line(request_id="r-2", attempt=uuid4()), line(request_id="r-9", attempt=uuid4())]
    assert joined(QUESTION, [own, *others]) == (own,)
    assert joined(QUESTION, [seen, *others[:1]]) == (seen,)
    assert joined(QUESTION, others) == ()
    assert joined(QUESTION, [own, own]) == (own,), "read twice, billed once"
    again = replace(own, request_id="r-3")
    assert joined(QUESTION, [own, again]) == (own, again), "served twice, billed twice"


def test_the_cost_is_the_price_book_s(book):
    family, prices = priced(book, LLAMA)
    proof = prove([line()], family, prices, AT)
    assert proof is not None
    assert proof.cost == 1100 * 2_400
    assert (proof.usage.input_tokens, proof.usage.output_tokens, proof.usage.exact) == (1000, 100, True)
    twice = prove([line(), line(request_id="r-2")], family, prices, AT)
    assert twice is not None
    assert (twice.cost, twice.usage.input_tokens) == (2 * proof.cost, 2000)


def test_terms_asked_for_and_unknown_terms_cost_the_dearer(book):
    family, prices = priced(book, NOVA)
    usual, dear, unknown = (
        prove([line(terms=terms)], family, prices, AT) for terms in (USUAL, Terms(tier="priority"), None)
    )
    flex = prove([line(terms=Terms(tier="flex"))], family, prices, AT)
    assert usual and dear and unknown and flex
    assert usual.cost == flex.cost < dear.cost <= unknown.cost


def test_cache_writes_cost_by_their_longest_life(book):
    family, prices = priced(book, f"us.{SONNET}")
    short = prove([line(cache_write_tokens=500)], family, prices, AT)
    long = prove([line(cache_write_tokens=500, terms=Terms(cache_ttl="1h"))], family, prices, AT)
    assert short and long
    assert short.usage.cache_write_5m_tokens == long.usage.cache_write_1h_tokens == 500
    assert short.cost < long.cost


@pytest.mark.parametrize(
    "wrong",
    [
        {"input_tokens": None},
        {"output_tokens": None},
        {"error": "ModelStreamErrorException"},
        {"terms": Terms(more=True)},
        {"cache_read_tokens": None},
    ],
)
def test_a_line_that_does_not_tell_all_proves_nothing(book, wrong):
    family, prices = priced(book, f"us.{SONNET}")
    assert prove([line(**wrong)], family, prices, AT) is None
    assert prove([line(), line(request_id="r-2", **wrong)], family, prices, AT) is None
    assert prove([], family, prices, AT) is None


def test_a_family_without_a_cache_need_not_show_its_counts(book):
    family, prices = priced(book, LLAMA)
    bare = line(cache_read_tokens=None, cache_write_tokens=None)
    proof = prove([bare], family, prices, AT)
    assert proof is not None
    assert proof.cost == 1100 * 2_400


def test_what_is_paid_by_the_image_is_not_proven_by_tokens(book):
    family, prices = priced(book, "amazon.nova-canvas-v1:0")
    assert prove([line()], family, prices, AT) is None
