"""The simulator's own tokenizer keeps inside the bound that its README promises."""

import statistics

import orjson
from hypothesis import given
from hypothesis import strategies as st

from proxy.simulator import tokens
from proxy.simulator.families.base import Prompt


@given(st.text())
def test_never_more_tokens_than_utf8_bytes(text):
    assert 0 <= tokens.count(text) <= len(text.encode("utf-8", "surrogatepass"))


@given(st.text(), st.text())
def test_more_text_is_never_fewer_tokens(one, other):
    assert tokens.count(one + " " + other) == tokens.count(one) + tokens.count(other)


def test_words_of_four_bytes_and_foreign_scripts():
    assert tokens.count("") == 0
    assert tokens.count("hello there") == 4
    assert tokens.count("one two   six") == 3
    # The bound is reached where every byte is a token.
    assert tokens.count("日本") == 6
    assert tokens.count("😀") == 4
    assert tokens.count("a\x00b") == 3


def test_tools_count_no_more_than_their_indented_ascii_json_and_the_hidden_prompt():
    tools = [{"name": "météo", "description": "日本 😀", "input_schema": {"type": "object"}}]
    prompt = Prompt()
    prompt.add_tools(tools)
    indented = __import__("json").dumps(tools, indent=2, ensure_ascii=True)
    assert tokens.count(orjson.dumps(tools).decode()) < prompt.tokens <= len(indented) + 350


def test_drawn_lengths_lie_between_20_and_100_around_60():
    lengths = [tokens.drawn_length(tokens.seed_of(b"%d" % place)) for place in range(2_000)]
    assert min(lengths) == 20
    assert max(lengths) == 100
    assert 57 < statistics.mean(lengths) < 63


@given(st.integers(0, 2**64 - 1), st.integers(0, 300))
def test_words_are_as_many_as_asked_and_always_the_same(seed, amount):
    words = tokens.words(seed, amount)
    assert len(words) == amount
    assert words == tokens.words(seed, amount)
    assert all(word.strip() for word in words)
