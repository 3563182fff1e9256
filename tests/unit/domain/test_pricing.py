"""The arithmetic of money, by hand and by property over every model of the packaged price book."""

from decimal import ROUND_CEILING, Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy import policyfile
from proxy.domain.catalogue import Model, Target
from proxy.domain.pricing import PriceBook
from proxy.domain.rates import LongContext, Price, PriceKey, PriceVersion, Rates, usd
from proxy.domain.request import Bound
from proxy.domain.usage import Usage
from proxy.errors import Refusal, UnboundedCost, UnknownModel

NOW = 1_800_000_000
HOUR = 3_600
SEED = "us.meta.llama3-1-405b-instruct-v1:0"
POLICIES = policyfile.load()


def priced(name, region="us-east-1"):
    policies = POLICIES if region == "us-east-1" else policyfile.load(region=region)
    route = policies.resolve(name)
    return policies.priced(route.model, route.targets[0])


def bound(tokens, limit=None, **more):
    return Bound(input_tokens=tokens, output_limit=limit, **more)


def model(**more):
    facts = {"id": "acme.one", "provider": "Acme", "name": "One", "family": "llama"}
    return Model(**{**facts, "context_tokens": 10_000, "max_output_tokens": 1_000, **more})


def target(region="us-east-1", prefix=None, **more):
    return Target(model="acme.one", model_id="acme.one", region=region, prefix=prefix, **more)


def version(prices, name="a", start=0, guardrails=None):
    return PriceVersion(id=name, effective_from=start, prices=prices, guardrails=guardrails or {})


def rates(dollars_in, dollars_out, **more):
    """From whole USD per million."""
    more = {kind: usd * 10**9 for kind, usd in more.items()}
    return Rates(input=dollars_in * 10**9, output=dollars_out * 10**9, **more)


def book_of(price, **more):
    return PriceBook([version({PriceKey("acme.one"): price}, **more)]).priced(model(), target())


class TestSeed:
    """Llama 3.1 405B: 2.40 USD per million both ways, 3.00 latency-optimized."""

    def test_ceiling_and_cost(self):
        price = priced(SEED)
        assert price.ceiling(bound(11, 512), 512, NOW, HOUR) == (11 + 512) * 2_400
        assert price.cost(Usage(input_tokens=11, output_tokens=22), "default", "standard", NOW) == (
            33 * 2_400,
            "2026-11-23",
        )

    def test_latency_optimized_reserves_the_dearer_and_pays_what_was_served(self):
        price = priced(SEED)
        usage = Usage(input_tokens=11, output_tokens=22)
        assert price.ceiling(bound(11, 512, latency="optimized"), 512, NOW, HOUR) == (11 + 512) * 3_000
        assert price.cost(usage, "default", "optimized", NOW)[0] == 33 * 3_000
        assert price.cost(usage, "default", "standard", NOW)[0] == 33 * 2_400  # the silent fallback

    def test_input_is_capped_by_the_context_which_is_rounded(self):
        price = priced(SEED)
        assert price.ceiling(bound(10**9, 1), 1, NOW, HOUR) == (131_072 + 1) * 2_400

    def test_choices_multiply_the_output_only(self):
        assert priced(SEED).ceiling(bound(10, 100, choices=3), 100, NOW, HOUR) == (10 + 300) * 2_400

    def test_tiers_and_caching_it_does_not_have_are_refused(self):
        price = priced(SEED)
        for shape in ({"tier": "priority"}, {"tier": "batch"}, {"cache_ttl": "5m"}, {"latency": "fast"}):
            with pytest.raises(UnboundedCost):
                price.ceiling(bound(10, 10, **shape), 10, NOW, HOUR)

    def test_explained_line_by_line(self):
        usage = Usage(input_tokens=11, output_tokens=22)
        assert [
            " ".join(line.split()) for line in priced(SEED).explain(usage, "default", "standard", NOW)
        ] == [
            f"{SEED} in us-east-1, prices of 2026-11-23, tier default, latency standard",
            "input 11 x 2.4 USD per million = 0.0000264 USD",
            "output 22 x 2.4 USD per million = 0.0000528 USD",
            "sum 0.0000792 USD, rounded up to 0.0000792 USD",
        ]


class TestArithmetic:
    def test_the_sum_is_rounded_up_once(self):
        price = book_of(Price(rates=Rates(input=1, output=1)))
        assert price.cost(Usage(input_tokens=1, output_tokens=1), "default", "standard", NOW)[0] == 1
        assert price.cost(Usage(input_tokens=10**6, output_tokens=1), "default", "standard", NOW)[0] == 2
        assert price.cost(Usage(), "default", "standard", NOW)[0] == 0

    def test_negative_usage_counts_as_nothing(self):
        price = book_of(Price(rates=rates(1, 1)))
        usage = Usage(input_tokens=-5, output_tokens=3, cache_read_tokens=-9, images=-1)
        assert price.cost(usage, "default", "standard", NOW)[0] == 3_000

    def test_a_cached_token_without_a_rate_costs_what_input_costs(self):
        price = book_of(Price(rates=rates(7, 9)))
        usage = Usage(cache_read_tokens=1, cache_write_5m_tokens=1, cache_write_1h_tokens=1)
        assert price.cost(usage, "default", "standard", NOW)[0] == 3 * 7_000

    def test_usd_is_exact(self):
        assert [usd(n) for n in (0, 1, 10**9, 10 * 10**9, 1_500_000_000, -2)] == [
            *("0", "0.000000001", "1", "10", "1.5", "-0.000000002"),
        ]

    def test_output_of_a_model_without_an_output_rate_is_refused(self):
        with pytest.raises(UnboundedCost, match="no price per token"):
            book_of(Price(rates=Rates(input=1))).ceiling(bound(1, 1), 1, NOW, HOUR)


class TestWhere:
    def test_the_region_beats_every_region_and_the_runtime_beats_the_other_endpoint(self):
        keys = [
            (PriceKey("acme.one", None, "*", "standard", "mantle"), 1),
            (PriceKey("acme.one", None, "us-west-2", "standard", "mantle"), 2),
            (PriceKey("acme.one", None, "*"), 3),
            (PriceKey("acme.one", None, "eu-west-1"), 4),
            (PriceKey("acme.one", "us", "*"), 5),
        ]
        book = PriceBook([version({key: Price(rates=rates(n, n)) for key, n in keys})])

        def paid(*args):
            found = book.priced(model(), target(*args))
            return found.cost(Usage(input_tokens=1), "default", "standard", NOW)[0] // 1_000

        assert [paid("eu-west-1"), paid("us-west-2"), paid("us-east-1", "us")] == [4, 3, 5]
        only_mantle = PriceBook([version({keys[0][0]: Price(rates=rates(1, 1))})])
        assert only_mantle.priced(model(), target()).where == "acme.one in us-east-1"

    def test_no_price_is_no_model(self):
        with pytest.raises(UnknownModel, match=r"us\.acme\.one in us-east-1 has no price"):
            PriceBook([version({PriceKey("acme.one"): Price(rates=rates(1, 1))})]).priced(
                model(), target("us-east-1", "us")
            )

    def test_what_is_paid_by_the_hour_is_free_upstream(self):
        book = PriceBook([version({PriceKey("acme.one"): Price(rates=rates(1, 1))})])
        assert not book.priced(model(), target()).upstream_free
        assert book.priced(model(), target(kind="provisioned")).upstream_free


class TestTime:
    def book(self):
        key, other = PriceKey("acme.one"), PriceKey("acme.two")
        first = {key: Price(rates=rates(2, 4)), other: Price(rates=rates(9, 9))}
        later = {key: Price(rates=rates(3, 1))}
        last = {other: Price(rates=rates(1, 1))}  # names only what changed
        return PriceBook(
            [version(last, "c", NOW + 200), version(first, "a", NOW), version(later, "b", NOW + 100)]
        ).priced(model(), target())

    def test_the_version_in_force_when_it_was_sent_decides(self):
        usage = Usage(input_tokens=1, output_tokens=1)
        paid = [self.book().cost(usage, "default", "standard", NOW + at) for at in (-50, 0, 99, 100, 300)]
        assert paid == [(6_000, "a"), (6_000, "a"), (6_000, "a"), (4_000, "b"), (4_000, "c")]

    def test_the_ceiling_takes_the_dearest_of_each_kind_within_the_horizon(self):
        price = self.book()
        assert price.ceiling(bound(1, 1), 1, NOW, 99) == 6_000
        assert price.ceiling(bound(1, 1), 1, NOW, 100) == 3_000 + 4_000
        assert price.ceiling(bound(1, 1), 1, NOW + 100, 10) == 4_000


class TestModifiers:
    tiered = Price(
        rates=rates(10, 20, cache_read=1, cache_write_5m=12),
        tiers={"flex": rates(5, 10), "priority": rates(18, 36), "batch": rates(50, 99)},
    )

    def test_the_dearest_tier_that_may_be_served_is_reserved(self):
        price = book_of(self.tiered)
        tiers = ("default", "reserved", "flex", "priority", "auto")
        assert [price.ceiling(bound(1, 1, tier=t), 1, NOW, HOUR) // 1_000 for t in tiers] == [
            *(12 + 20, 12 + 20, 12 + 20, 18 + 36, 18 + 36),
        ]

    def test_the_served_tier_is_paid(self):
        price = book_of(self.tiered)
        usage = Usage(input_tokens=1, output_tokens=1, cache_read_tokens=1)
        paid = [price.cost(usage, t, "standard", NOW)[0] // 1_000 for t in ("default", "flex", "unheard-of")]
        assert paid == [31, 16, 31]

    def test_a_long_context_prices_the_whole_request(self):
        price = book_of(Price(rates=rates(1, 2), long_context=(LongContext(100, rates(3, 5)),)))
        assert price.ceiling(bound(100, 1), 1, NOW, HOUR) == 102_000
        assert price.ceiling(bound(101, 1), 1, NOW, HOUR) == 308_000
        within = Usage(input_tokens=60, cache_read_tokens=40, output_tokens=1)
        over = Usage(input_tokens=61, cache_read_tokens=40, output_tokens=1)
        assert price.cost(within, "default", "standard", NOW)[0] == 102_000
        assert price.cost(over, "default", "standard", NOW)[0] == 308_000

    def test_cache_writes_are_reserved_at_the_dearest_lifetime_asked_for(self):
        listed = rates(10, 0, cache_read=1, cache_write_5m=12, cache_write_1h=20)
        book = PriceBook([version({PriceKey("acme.one"): Price(rates=listed)})])
        price = book.priced(model(family="anthropic"), target())
        paid = [
            price.ceiling(bound(1, 0, cache_ttl=ttl), 0, NOW, HOUR) // 1_000 for ttl in (None, "5m", "1h")
        ]
        assert paid == [10, 12, 20]

    def test_an_hour_without_a_price_is_refused(self):
        price = book_of(Price(rates=rates(10, 0, cache_read=1, cache_write_5m=12)))
        with pytest.raises(UnboundedCost, match="one hour"):
            price.ceiling(bound(1, 0, cache_ttl="1h"), 0, NOW, HOUR)

    def test_doubtful_prices_are_reserved_at_the_higher_ones(self):
        bare, us = priced("anthropic.claude-haiku-5-5"), priced("us.anthropic.claude-haiku-5-5")
        shape = bound(1_000, 10)
        assert bare.ceiling(shape, 10, NOW, HOUR) == us.ceiling(shape, 10, NOW, HOUR) == 115_500
        assert bare.cost(Usage(input_tokens=1_000), "default", "standard", NOW)[0] == 100_000

    def test_images_cost_their_variant_and_reserve_the_dearest(self):
        price = priced("amazon.nova-canvas-v1:0")
        assert price.ceiling(bound(100, images=2), 0, NOW, HOUR) == 160_000_000
        usage = Usage(images=2)
        assert price.cost(usage, "default", "standard", NOW)[0] == 160_000_000
        small = "up-to-1024x1024/standard"
        assert price.cost(usage, "default", "standard", NOW, small)[0] == 80_000_000
        with pytest.raises(UnboundedCost, match="how many"):
            price.ceiling(bound(100), 0, NOW, HOUR)

    def test_images_given_to_a_chat_model_are_in_its_tokens(self):
        price = priced("us.anthropic.claude-sonnet-4-6")
        with_image, without = bound(500, 9, images=3), bound(500, 9)
        assert price.ceiling(with_image, 9, NOW, HOUR) == price.ceiling(without, 9, NOW, HOUR)

    @pytest.mark.parametrize(
        "name",
        [
            *("cohere.rerank-v3-5:0", "twelvelabs.pegasus-1-2-v1:0", "amazon.nova-reel-v1:1"),
            *("amazon.nova-sonic-v1:0", "twelvelabs.marengo-embed-2-7-v1:0"),
        ],
    )
    def test_what_is_priced_by_something_else_is_refused(self, name):
        with pytest.raises(UnboundedCost):
            priced(name).ceiling(bound(1, 1), 1, NOW, HOUR)

    def test_a_guardrail_is_reserved_over_input_and_output_for_every_policy(self):
        price, plain, guarded = priced(SEED), bound(2_500, 10), bound(2_500, 10, guardrail=True)
        units = (2_500 + 10 * 128) // 1_000 + 2
        extra = price.ceiling(guarded, 10, NOW, HOUR) - price.ceiling(plain, 10, NOW, HOUR)
        assert extra == units * 5 * 170_000
        counts = {"contentPolicyUnits": units, "topicPolicyUnits": units, "wordPolicyUnits": units}
        assert POLICIES.prices.guardrail_cost(counts, NOW) == units * 300_000 < extra


@st.composite
def calls(draw):
    """A model anywhere, a request it may get, and any usage within that request's bounds."""
    name = draw(st.sampled_from(POLICIES.ids))
    tokens = draw(st.integers(0, 2_500_000) | st.integers(0, 2_000))
    limit, choices = draw(st.integers(0, 200_000)), draw(st.integers(1, 16))
    ttl = draw(st.sampled_from([None, "5m", "1h"]))
    tier = draw(st.sampled_from(["default", "priority", "flex", "ultrafast", "auto", "reserved"]))
    latency = draw(st.sampled_from(["standard", "optimized"]))
    shape = bound(
        tokens,
        limit,
        choices=choices,
        images=draw(st.integers(0, 5)),
        cache_ttl=ttl,
        tier=tier,
        latency=latency,
    )
    read = draw(st.integers(0, tokens))
    write = draw(st.integers(0, tokens - read)) if ttl else 0
    hour = draw(st.integers(0, write)) if ttl == "1h" else 0
    usage = Usage(
        input_tokens=draw(st.integers(0, tokens - read - write)),
        cache_read_tokens=read,
        cache_write_5m_tokens=write - hour,
        cache_write_1h_tokens=hour,
        output_tokens=draw(st.integers(0, limit * choices)),
        images=draw(st.integers(0, shape.images)),
    )
    served = draw(st.sampled_from([tier, "default"])) if tier not in {"auto", "reserved"} else "default"
    return name, shape, usage, served, draw(st.sampled_from([latency, "standard"]))


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(calls(), st.sampled_from(["us-east-1", "eu-west-2", "us-gov-west-1", "ap-northeast-1"]))
def test_no_usage_within_its_bounds_costs_more_than_its_ceiling(call, region):
    name, shape, usage, served, latency = call
    route = POLICIES.resolve(name)
    place = Target(
        model=route.model.id,
        model_id=name,
        region=region,
        kind=route.targets[0].kind,
        prefix=route.targets[0].prefix,
    )
    if usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens > route.model.context_tokens:
        return  # the service refuses it before anything is billed
    try:
        price = POLICIES.priced(route.model, place)
        ceiling = price.ceiling(shape, shape.output_limit or 0, NOW, HOUR)
    except Refusal:
        return
    assert price.cost(usage, served, latency, NOW)[0] <= ceiling


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(POLICIES.ids), *(st.integers(0, 10**9) for _ in range(3)))
def test_cost_equals_decimals(name, given_tokens, read, out):
    route = POLICIES.resolve(name)
    price = POLICIES.priced(route.model, route.targets[0])
    usage = Usage(input_tokens=given_tokens, cache_read_tokens=read, output_tokens=out)
    listed = price.rates(NOW)
    over = [step for step in listed.long_context if given_tokens + read > step.over]
    used = over[-1].rates.over(listed.rates) if over else listed.rates
    exact = sum(
        Decimal(count) * Decimal(rate or 0) / 10**6
        for count, rate in ((given_tokens, used.input), (read, used.cache_read), (out, used.output))
    )
    assert price.cost(usage, "default", "standard", NOW)[0] == int(
        Decimal(exact).to_integral_value(ROUND_CEILING)
    )
