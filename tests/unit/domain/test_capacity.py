"""Hours of provisioned throughput bought against hours used."""

from typing import Any

import pytest

from proxy import policyfile
from proxy.domain.capacity import HOUR, model_unit_hour, used
from proxy.domain.discovery import Capacity
from proxy.domain.rates import NANO, CapacityPrice

ARN, MODEL = "arn:aws:bedrock:us-west-2:123456789012:provisioned-model/a", "meta.llama3-1-8b-instruct-v1:0"


def capacity(**changes: Any) -> Capacity:
    facts: dict[str, Any] = {
        "arn": ARN,
        "model": MODEL,
        "units": 2,
        "status": "InService",
        "commitment": "OneMonth",
        "since": 0,
    }
    return Capacity(**(facts | changes))


def price(usd, subject=MODEL, **terms):
    rates = {"model_unit_hour": usd * NANO}
    return CapacityPrice(kind="provisioned", subject=subject, terms=tuple(terms.items()), rates=rates)


def test_every_hour_is_paid_and_an_hour_with_a_call_is_used():
    calls = [(10 * HOUR + 5, 100), (10 * HOUR + 50, 200), (12 * HOUR, 300)]
    use = used(capacity(), calls, [price(21, commitment="OneMonth")], 10 * HOUR, 20 * HOUR)
    assert (use.hours, use.unit_hours, use.paid) == (10, 20, 20 * 21 * NANO)
    assert (use.used_hours, use.calls, use.charged) == (2, 3, 600)


@pytest.mark.parametrize(("since", "hours"), [(0, 10), (15 * HOUR, 5), (15 * HOUR + 1, 5), (99 * HOUR, 0)])
def test_it_is_paid_from_its_beginning_on(since, hours):
    assert used(capacity(since=since), [], [], 10 * HOUR, 20 * HOUR).hours == hours


@pytest.mark.parametrize(
    ("prices", "rate"),
    [
        ([], None),
        ([price(24, commitment="NoCommitment")], None),
        ([price(21, commitment="OneMonth")], 21),
        ([price(21, commitment="OneMonth"), price(25, commitment="OneMonth", region="us-west-2")], 25),
        ([price(25, commitment="OneMonth", region="eu-west-1")], None),
        (
            [
                price(21, f"{MODEL}:128k", commitment="OneMonth"),
                price(9, f"{MODEL}:24k", commitment="OneMonth"),
            ],
            21,
        ),
        ([price(21, f"{MODEL}x", commitment="OneMonth")], None),
    ],
)
def test_the_price_of_an_hour(prices, rate):
    assert model_unit_hour(capacity(), prices) == (None if rate is None else rate * NANO)


def test_the_book_has_the_price_of_an_hour():
    book = policyfile.load().capacity
    assert model_unit_hour(capacity(), book) == 21_180_000_000
    assert model_unit_hour(capacity(commitment=None), book) == 24 * NANO
