from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.domain import bucket
from proxy.domain.bucket import (
    Charge,
    Decision,
    Lease,
    Snapshot,
    Spend,
    decision,
    rate_headers,
    share,
    spend_for,
)
from proxy.domain.bucketstore import Buckets
from proxy.domain.policy import Limit, Policy
from proxy.domain.tenant import Caller

SECOND = 1_000_000
NOW = 1_700_000_000 * SECOND
LIMIT = UUID(int=1)
TENANT = UUID(int=2)


def charge(per_minute=60, burst=10, cost=1, *, dimension="requests", enforce=True, key="k", scope="key"):
    return Charge(key, scope, dimension, per_minute, burst, cost, LIMIT, enforce)


def test_worked_example_of_the_module():
    full_at = NOW
    for _ in range(10):
        step = bucket.spend(full_at, NOW, charge())
        assert step.allowed
        full_at = step.full_at_us
    assert full_at == NOW + 10 * SECOND
    refused = bucket.spend(full_at, NOW, charge())
    assert not refused.allowed
    assert refused.wait_us == SECOND
    assert bucket.spend(full_at, NOW + SECOND, charge()).allowed


@pytest.mark.parametrize("per_minute", [1, 7, 59, 60, 61, 997, 12_345, 1_000_000])
def test_burst_is_exact_at_rates_that_do_not_divide_a_minute(per_minute):
    full_at, taken = 0, 0
    item = charge(per_minute, min(per_minute, 500))
    while (step := bucket.spend(full_at, NOW, item)).allowed:
        full_at, taken = step.full_at_us, taken + 1
    assert taken == item.burst


def test_cost_above_burst_needs_a_full_bucket_and_leaves_debt():
    big = charge(per_minute=600, burst=100, cost=1_000, dimension="tokens")
    first = bucket.spend(0, NOW, big)
    assert first.allowed
    assert first.full_at_us == NOW + 100 * SECOND
    assert bucket.remaining(first.full_at_us - NOW, big) == 0
    one = replace(big, cost=1)
    refused = bucket.spend(first.full_at_us, NOW, one)
    assert not refused.allowed
    assert refused.wait_us == 90 * SECOND + 100_000
    not_full = bucket.spend(NOW + 1, NOW, big)
    assert not not_full.allowed
    assert not_full.wait_us == 1


def test_rate_zero_refuses_everything():
    closed = charge(per_minute=0, burst=1)
    assert not bucket.spend(0, NOW, closed).allowed
    assert bucket.remaining(0, closed) == 0


def test_correction_gives_back_and_charges_more():
    tokens = charge(per_minute=6_000, burst=6_000, cost=1_000, dimension="tokens")
    taken = bucket.spend(0, NOW, tokens).full_at_us
    assert taken == NOW + 10 * SECOND
    assert bucket.correct(taken, NOW, tokens, 400) == NOW + 4 * SECOND
    assert bucket.correct(taken, NOW, tokens, 1_500) == NOW + 15 * SECOND
    assert bucket.correct(taken, NOW, tokens, 0) == NOW


def test_debt_is_bounded():
    slow = charge(per_minute=1, burst=1, cost=bucket.UNITS_MAX, dimension="tokens")
    assert bucket.spend(0, NOW, slow).full_at_us == NOW + bucket.DEBT_MAX_US
    cheap = replace(slow, cost=1)
    assert bucket.correct(NOW, NOW, cheap, bucket.UNITS_MAX) <= NOW + bucket.DEBT_MAX_US


@given(
    per_minute=st.integers(1, bucket.RATE_MAX),
    burst=st.integers(1, bucket.UNITS_MAX),
    costs=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), max_size=30),
)
def test_never_more_than_burst_plus_rate_passes(per_minute, burst, costs):
    """Whatever the pattern of calls: taken <= burst + rate x time + 1 cost of debt + rounding."""
    now, full_at, taken, largest = NOW, 0, 0, 0
    for cost, pause in costs:
        now += pause
        step = bucket.spend(full_at, now, charge(per_minute, burst, cost))
        if step.allowed:
            full_at, taken, largest = step.full_at_us, taken + cost, max(largest, cost)
        assert 0 <= bucket.remaining(max(full_at - now, 0), charge(per_minute, burst)) <= burst
    rounding = (len(costs) + 1) * (per_minute // bucket.MINUTE_US + 1)
    earned = (now - NOW) * per_minute // bucket.MINUTE_US
    assert taken <= burst + earned + largest + rounding


@given(
    rate=st.integers(1, bucket.RATE_MAX), units=st.integers(0, bucket.UNITS_MAX), more=st.integers(0, 1_000)
)
def test_every_number_stays_within_what_lua_can_count_to(rate, units, more):
    span = bucket.span_us(units, rate)
    assert 0 <= span <= bucket.DEBT_MAX_US
    assert units * bucket.MINUTE_US < 2**53
    assert NOW + span < 2**53
    assert span <= bucket.span_us(min(units + more, bucket.UNITS_MAX), rate)


def limit(**kwargs: Any) -> Limit:
    defaults: dict[str, Any] = {"scope": "key", "subject": uuid4()}
    return Limit(id=uuid4(), **(defaults | kwargs))


def caller(*limits):
    return Caller(
        tenant=TENANT,
        tenant_slug="acme",
        project=None,
        project_slug=None,
        key=uuid4(),
        key_name="ci\r\n{evil}:",
        credential=uuid4(),
        policy=Policy(plan="p", version="1", limits=limits),
    )


def test_spend_for_makes_one_charge_per_limited_dimension():
    tenant = limit(
        scope="tenant", subject=TENANT, requests_per_minute=600, tokens_per_minute=90_000, burst_seconds=10
    )
    key = limit(concurrency=3, mode="observe")
    who = caller(tenant, key)
    spend = spend_for(who, "meta.llama3-1-405b-instruct-v1:0", 700, call := uuid4())
    assert spend is not None
    assert (spend.tenant, spend.id) == (TENANT, call)
    requests, tokens = spend.charges
    assert (requests.dimension, requests.per_minute, requests.burst, requests.cost) == (
        "requests",
        600,
        100,
        1,
    )
    assert (tokens.dimension, tokens.per_minute, tokens.burst, tokens.cost) == ("tokens", 90_000, 15_000, 700)
    assert requests.enforce and tokens.enforce
    assert spend.leases == (Lease(spend.leases[0].key, "key", key.id, 3, enforce=False),)
    assert requests.key != tokens.key
    keys = [spend.record, spend.buckets, spend.leases[0].key]
    assert len(set(keys)) == 3
    assert all(k.startswith(f"th:{{{TENANT}}}:") and "evil" not in k and k.count("{") == 1 for k in keys)


def test_spend_for_obeys_the_model_filter_and_may_be_nothing():
    only = limit(requests_per_minute=1, models=frozenset({"a.b"}))
    assert spend_for(caller(only), "a.b", 1, uuid4()) is not None
    assert spend_for(caller(only), "a.c", 1, uuid4()) is None
    assert spend_for(caller(), "a.b", 1, uuid4()) is None
    assert spend_for(caller(limit(tokens_per_minute=5)), "a.b", 0, uuid4()) is None


def test_spend_for_keeps_numbers_in_range():
    huge = limit(requests_per_minute=10**12, tokens_per_minute=10**12, burst_seconds=3600)
    spend = spend_for(caller(huge, limit(requests_per_minute=3, burst_seconds=1)), "a.b", 10**12, uuid4())
    assert spend is not None
    for item in spend.charges:
        assert 1 <= item.burst <= bucket.UNITS_MAX
        assert item.per_minute <= bucket.RATE_MAX
        assert item.cost <= bucket.UNITS_MAX
    assert spend.charges[-1].burst == 1


def test_same_limit_of_two_subjects_has_two_buckets():
    shared = limit(requests_per_minute=5)
    other = replace(shared, subject=uuid4())
    first, second = (spend_for(caller(each), "a.b", 1, uuid4()) for each in (shared, other))
    assert first is not None and second is not None
    assert first.charges[0].key != second.charges[0].key


def test_share_is_an_equal_part_and_never_nothing():
    whole = Spend(TENANT, uuid4(), (charge(60, 10), charge(0, 1)), (Lease("l", "key", LIMIT, 2),))
    part = share(whole, 4)
    assert (part.charges[0].per_minute, part.charges[0].burst) == (15, 2)
    assert part.charges[1].per_minute == 0
    assert part.leases[0].slots == 1
    assert share(whole, 1) is whole


def test_decision_names_the_limit_with_the_longest_wait():
    slow = charge(per_minute=6, burst=1, key="slow", scope="tenant")
    fast = charge(per_minute=60, burst=1, key="fast")
    spend = Spend(TENANT, uuid4(), (fast, slow), (Lease("l", "key", LIMIT, 1),))
    buckets = Buckets()
    assert buckets.spend(spend, NOW) == (1, SECOND, 10 * SECOND, 1)
    again = replace(spend, id=uuid4())
    made = decision(again, buckets.spend(again, NOW), "redis")
    assert not made.allowed
    assert made.limited == slow
    assert made.retry_after_ms == 10_000
    assert [s.remaining for s in made.snapshots] == [0, 0, 0]
    assert made.snapshots[1] == Snapshot("requests", "tenant", 6, 0, 10_000, 1)


def test_observed_limits_never_refuse_and_are_not_shown():
    shadow = charge(per_minute=60, burst=1, key="shadow", enforce=False)
    buckets = Buckets()
    made = [
        decision(s, buckets.spend(s, NOW), "redis")
        for s in (Spend(TENANT, uuid4(), (shadow,)) for _ in range(3))
    ]
    assert [d.allowed for d in made] == [True, True, True]
    assert [d.observed for d in made] == [(), (shadow,), (shadow,)]
    assert made[2].snapshots == () and made[2].retry_after_ms == 0


def test_headers_show_the_tightest_limit_of_each_dimension():
    made = Decision(
        allowed=True,
        mode="redis",
        snapshots=(
            Snapshot("requests", "tenant", 600, 90, 1_000, 100),
            Snapshot("requests", "key", 60, 3, 7_000, 10),
            Snapshot("tokens", "key", 90_000, 14_300, 467, 15_000),
            Snapshot("concurrency", "key", 8, 5, 0, 8),
        ),
    )
    assert [(name.decode(), value.decode()) for name, value in rate_headers(made)] == [
        ("x-ratelimit-limit-requests", "60"),
        ("x-ratelimit-remaining-requests", "3"),
        ("x-ratelimit-reset-requests", "7s"),
        ("x-ratelimit-limit-tokens", "90000"),
        ("x-ratelimit-remaining-tokens", "14300"),
        ("x-ratelimit-reset-tokens", "467ms"),
        (
            "ratelimit-policy",
            (
                '"tenant-requests";q=100;w=10, "key-requests";q=10;w=10, "key-tokens";q=15000;qu="tokens";w=10'
                ', "key-concurrency";q=8;qu="concurrent-requests"'
            ),
        ),
        (
            "ratelimit",
            '"tenant-requests";r=90;t=1, "key-requests";r=3;t=7, "key-tokens";r=14300;t=1, "key-concurrency";r=5',
        ),
    ]
    assert rate_headers(Decision(allowed=True, mode="allow")) == []


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0ms"),
        (120, "120ms"),
        (1_500, "1.5s"),
        (59_999, "59.999s"),
        (360_000, "6m0s"),
        (3_600_001, "1h0m1s"),
    ],
)
def test_durations_are_written_as_openai_does(ms, text):
    assert bucket.duration(ms) == text


def test_prune_forgets_only_what_is_over():
    buckets = Buckets()
    spend = Spend(TENANT, uuid4(), (charge(),), (Lease("l", "key", LIMIT, 1),))
    reply = buckets.spend(spend, NOW)
    buckets.prune(NOW + 100_000)
    assert buckets.spend(spend, NOW + 200_000) == reply
    buckets.prune(NOW + 2 * bucket.LEASE_TTL_US)
    assert not buckets.knows(spend.id)
    assert buckets == Buckets()
