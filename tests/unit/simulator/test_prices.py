"""The bill's arithmetic, against sums done by hand with fractions."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.simulator.config import PRICES
from proxy.simulator.prices import Prices, Rates, Usage, cost_nanos, load, usd


@pytest.fixture(scope="module")
def prices() -> Prices:
    return load(PRICES)


counts = st.lists(st.integers(0, 10**7), min_size=4, max_size=4)
rates = st.lists(st.decimals("0", "100", places=6), min_size=4, max_size=4)


@given(counts, rates)
def test_cost_is_the_exact_sum_rounded_up_once(amounts, per_million):
    usage = Usage(*amounts)
    pairs = zip(amounts, per_million, strict=True)
    exact = sum(Fraction(amount) * Fraction(rate) / 10**6 for amount, rate in pairs)
    nanos = cost_nanos(
        usage, Rates(per_million[0], per_million[1], per_million[2], per_million[3], per_million[3])
    )
    assert Fraction(nanos, 10**9) >= exact
    assert Fraction(nanos - 1, 10**9) < exact


def test_llama_405b_by_hand(prices):
    price = prices.find("meta.llama3-1-405b-instruct-v1:0", "us-west-2")
    usage = Usage(input=1_000, output=500)
    assert cost_nanos(usage, price.rates(usage, "default", "standard")) == 3_600_000
    assert usd(3_600_000) == "0.003600000"


def test_a_fraction_of_a_nano_dollar_is_rounded_up(prices):
    price = prices.find("amazon.titan-embed-text-v2:0", "us-east-1")
    assert price.standard.input == Decimal("0.02")
    assert cost_nanos(Usage(input=1), price.standard) == 20
    assert cost_nanos(Usage(input=1), Rates(Decimal("0.0001"), *[Decimal(0)] * 4)) == 1


def test_latency_optimized_has_its_price_only_in_its_regions(prices):
    name = "us.meta.llama3-1-405b-instruct-v1:0"
    assert prices.find(name, "us-east-2").optimized.output == 3
    assert prices.find(name, "us-east-1").optimized is None
    usage = Usage(input=1, output=1)
    assert prices.find(name, "us-east-2").rates(usage, "default", "optimized").input == 3


def test_long_context_moves_the_whole_request(prices):
    price = prices.find("anthropic.claude-sonnet-4-5-20250929-v1:0", "us-east-1")
    below, above = Usage(input=200_000, output=1), Usage(input=100_000, cache_read=100_001, output=1)
    assert price.rates(below, "default", "standard").output == Decimal("16.5")
    assert price.rates(above, "default", "standard").output == Decimal("24.75")
    assert price.rates(above, "default", "standard").cache_read == Decimal("0.66")


def test_cache_rates_by_time_to_live(prices):
    price = prices.find("anthropic.claude-sonnet-4-5-20250929-v1:0", "us-east-1")
    usage = Usage(cache_write=1_000_000, cache_write_1h=1_000_000, cache_read=1_000_000)
    cheap = Usage(cache_write=100, cache_write_1h=100, cache_read=100)
    assert cost_nanos(cheap, price.rates(cheap, "default", "standard")) == 1_108_000 - 2_500
    assert cost_nanos(usage, price.standard) == (4_125_000_000 + 6_600_000_000 + 330_000_000)


def test_tiers_have_their_own_rates_and_inherit_the_rest(prices):
    name = next(
        name for name in prices if prices.find(name, "us-east-1") and prices.find(name, "us-east-1").tiers
    )
    price = prices.find(name, "us-east-1")
    tier = next(iter(price.tiers))
    usage = Usage(input=1, output=1)
    assert price.rates(usage, tier, "standard") == price.tiers[tier]
    assert price.rates(usage, "default", "standard") == price.standard


def test_pictures_by_size_and_quality(prices):
    price = prices.find("amazon.nova-canvas-v1:0", "us-east-1")
    assert price.image(1_024, 1_024, "standard") == Decimal("0.04")
    assert price.image(1_025, 1_024, "premium") == Decimal("0.08")
    assert prices.find("stability.sd3-5-large-v1:0", "us-east-1").image(1, 1, "standard") == Decimal("0.08")


def test_a_region_of_its_own_beats_all_regions(prices):
    here = prices.find("amazon.nova-lite-v1:0", "us-gov-west-1")
    everywhere = prices.find("amazon.nova-lite-v1:0", "us-east-1")
    assert here.standard.input > everywhere.standard.input


def test_unknown_models_have_no_price(prices):
    assert prices.find("meta.llama3-1-405b-instruct-v10", "us-east-1") is None


def test_nothing_per_token_costs_only_its_extras():
    assert cost_nanos(Usage(input=5, output=5), None, Decimal("0.00015")) == 150_000
