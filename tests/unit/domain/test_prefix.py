"""Prompts that begin alike: counted by hash, valued by the price book, within bounds."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from proxy.domain.prefix import BLOCK_BYTES, Advice, PrefixMeter, Tally, advice, minimum_tokens, parts_of
from proxy.domain.rates import Rates
from proxy.domain.usage import Usage

TENANT, SONNET = UUID(int=1), "anthropic.claude-sonnet-4-5-20250929-v1:0"
KEY = b"k" * 32
#: nano-dollars per million tokens: 3, 0.30, 3.75 and 6 USD
RATES = Rates(
    input=3_000_000_000, output=15_000_000_000, cache_read=300_000_000,
    cache_write_5m=3_750_000_000, cache_write_1h=6_000_000_000,
)  # fmt: skip


def converse(system: str, *messages: str) -> dict[str, Any]:
    return {
        "system": [{"text": system}],
        "messages": [{"role": "user", "content": [{"text": text}]} for text in messages],
    }


def seen(*prompts: tuple[float, dict[str, Any]], model: str = SONNET, tokens: int = 10_000) -> Tally:
    """The tally of prompts at these seconds, each of so many input tokens."""
    import orjson

    meter = PrefixMeter(KEY)
    for at, body in prompts:
        meter.observe(TENANT, model, body, len(orjson.dumps(body)), Usage(input_tokens=tokens), at)
    [tally] = meter.take().values()
    return tally


LONG = "You are a careful assistant. " * 300


def test_a_system_prompt_that_repeats_in_time_is_written_once_and_then_read():
    tally = seen(*((60.0 * i, converse(LONG, f"question {i}")) for i in range(10)))
    assert tally.calls == 10
    assert tally.system_read_5m == 9 * tally.system_write_5m > 0
    assert tally.system_write_5m == pytest.approx(10_000, rel=0.05)
    assert tally.repeated_5m == pytest.approx(0.9 * tally.tokens, rel=0.12)
    assert tally.tools_write_5m == 0


def test_one_that_repeats_too_late_is_only_written():
    tally = seen(*((400.0 * i, converse(LONG, "q")) for i in range(5)))
    assert (tally.system_read_5m, tally.repeated_5m) == (0, 0)
    assert tally.system_read_1h == 4 * tally.system_write_1h
    assert tally.system_write_5m == 5 * tally.system_write_1h


def test_each_use_renews_the_life_of_a_prefix():
    tally = seen(*((250.0 * i, converse(LONG, "q")) for i in range(5)))
    assert tally.system_read_5m == 4 * tally.system_write_5m


def test_a_system_prompt_that_begins_with_the_time_never_repeats():
    tally = seen(*((i, converse(f"It is {i} o'clock. " + LONG, "q")) for i in range(5)))
    assert (tally.system_read_5m, tally.repeated_5m) == (0, 0)


def test_a_conversation_reads_its_last_turn_and_writes_the_new_one():
    turns = ["a " * 3000, "b " * 3000, "c " * 3000]
    tally = seen(*((i, converse("s", *turns[: i + 1])) for i in range(3)), tokens=9_000)
    assert tally.messages_read_5m == pytest.approx(4_500 + 6_000, rel=0.01)
    assert tally.messages_write_5m == pytest.approx(9_000 + 4_500 + 3_000, rel=0.01)


def test_prefixes_below_the_models_minimum_are_not_cached():
    tally = seen(*((i, converse(LONG, "q")) for i in range(5)), tokens=500)
    assert (tally.system_write_5m, tally.system_read_5m) == (0, 0)
    assert tally.repeated_5m > 0


def test_other_tenants_and_models_share_nothing():
    meter = PrefixMeter(KEY)
    for tenant, model in ((TENANT, SONNET), (UUID(int=2), SONNET), (TENANT, SONNET + "x")):
        meter.observe(tenant, model, converse(LONG, "q"), 9_000, Usage(input_tokens=9_000), 1.0)
    assert all((t.system_read_1h, t.repeated_1h) == (0, 0) for t in meter.take().values())


def test_what_is_cached_already_is_told():
    meter = PrefixMeter(KEY)
    usage = Usage(input_tokens=100, cache_read_tokens=900, cache_write_1h_tokens=50)
    meter.observe(TENANT, SONNET, converse(LONG, "q"), 9_000, usage, 1.0)
    [tally] = meter.take().values()
    assert (tally.tokens, tally.cached) == (1_050, 900)


def test_only_hashes_are_remembered_and_the_key_changes_them():
    one, other = PrefixMeter(KEY), PrefixMeter(b"l" * 32)
    for meter in (one, other):
        meter.observe(TENANT, SONNET, converse(LONG, "q"), 9_000, Usage(input_tokens=9_000), 1.0)
    assert not one._seen.keys() & other._seen.keys()
    assert b"careful" not in repr(one._seen).encode()


def test_memory_is_bounded_and_what_is_left_out_is_scaled_up():
    meter = PrefixMeter(KEY, prefixes_max=500, pairs_max=10)
    for i in range(3_000):
        body = converse(f"{i % 400} " * 700, "q")
        meter.observe(TENANT, SONNET, body, 2_100, Usage(input_tokens=2_000), float(i) / 100)
    assert len(meter._seen) <= 500
    assert meter.sampling > 0
    [tally] = meter.take().values()
    assert 1_000 < tally.calls < 9_000
    for i in range(100):
        meter.observe(UUID(int=i), SONNET, converse(LONG, "q"), 9_000, Usage(input_tokens=9_000), 50.0)
    assert len(meter.take()) <= 10


def test_a_prompt_is_taken_apart_in_the_order_of_the_cache():
    anthropic = {"messages": [{"role": "user"}, {"role": "assistant"}], "system": "s", "tools": [1]}
    assert [p.place for p in parts_of(anthropic)] == ["tools", "system", "messages", "messages"]
    assert [p.place for p in parts_of({"toolConfig": {"tools": []}, "messages": [1]})] == [
        "tools",
        "messages",
    ]
    assert [p.place for p in parts_of({"input": "text", "instructions": "s"})] == ["system", ""]
    assert [(p.place, p.data) for p in parts_of({"prompt": "text"})] == [("", b"text")]


def test_blocks_do_not_depend_on_where_the_pieces_end():
    text = "x" * (3 * BLOCK_BYTES)
    tally = seen((0.0, {"prompt": text}), (1.0, {"prompt": text + "y"}), model="meta.llama3", tokens=3_000)
    assert tally.repeated_5m == pytest.approx(3_000, rel=0.02)


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        (SONNET, 1024), ("anthropic.claude-haiku-4-5-20251001-v1:0", 4096), ("amazon.nova-pro-v1:0", 1000),
        ("anthropic.claude-3-5-haiku-20241022-v1:0", 2048), ("anthropic.claude-opus-5", 4096),
        ("anthropic.claude-3-haiku-20240307-v1:0", None), ("meta.llama3-1-405b-instruct-v1:0", None),
        ("openai.gpt-5.5", None),
    ],
)  # fmt: skip
def test_minimum(model, tokens):
    assert minimum_tokens(model) == tokens


# ---- what it is worth ----------------------------------------------------------------------------


def test_advice_is_worth_what_the_price_book_says():
    tally = Tally(
        system_read_5m=9_000_000, system_write_5m=1_000_000, system_read_1h=9_500_000, system_write_1h=500_000
    )
    best, other = advice(tally, RATES)
    # 9 M read at 0.30 instead of 3 USD, 1 M written at 3.75 instead of 3
    assert other == Advice(
        place="system", ttl="5m", read_tokens=9_000_000, write_tokens=1_000_000, saved=23_550_000_000
    )
    assert best == Advice(
        place="system", ttl="1h", read_tokens=9_500_000, write_tokens=500_000, saved=24_150_000_000
    )


def test_a_loss_is_told_as_one():
    [found] = advice(
        Tally(messages_write_5m=1_000_000),
        Rates(input=3_000_000_000, cache_read=300_000_000, cache_write_5m=3_750_000_000),
    )
    assert found.saved == -750_000_000


def test_models_without_a_prompt_cache_get_no_advice():
    tally = Tally(system_read_5m=1)
    assert advice(tally, Rates(input=1, output=1)) == []
    assert advice(tally, Rates(input=5, cache_read=5)) == []


def test_an_hours_life_that_is_not_sold_is_not_advised():
    rates = Rates(input=60, cache_read=15, cache_write_5m=60, cache_write_1h=60)
    assert {a.ttl for a in advice(Tally(system_read_5m=1, system_read_1h=2), rates)} == {"5m"}


def test_counts_of_a_tally():
    tally = Tally(calls=1)
    tally.add("system_read_5m", 3)
    assert tally.counts() == {"calls": 1, "system_read_5m": 3}
