"""Rows become requests: when, whose, which, and with what text."""

import itertools
from typing import Any

import pytest

from proxy.replay.plan import LLAMA_TOKENS_MAX, MODELS, OPERATIONS, OUTPUT_TOKENS_MAX, shapes
from proxy.replay.trace import Row


def plan(rows, **changed):
    given: dict[str, Any] = {"run": "abc", "tenants": 3, "models": MODELS, "speed": 60.0} | changed
    return list(shapes(rows, **given))


def test_time_is_compressed():
    assert [s.due_s for s in plan([Row(0.0, 1, 1), Row(30.0, 1, 1), Row(90.0, 1, 1)])] == [0.0, 0.5, 1.5]


def test_every_model_meets_every_operation_and_tenants_take_turns():
    made = plan([Row(0.0, 10, 5)] * 8)
    assert {(s.model, s.operation) for s in made} == set(itertools.product(MODELS, OPERATIONS))
    assert [s.tenant for s in made] == [0, 1, 2, 0, 1, 2, 0, 1]


def test_a_client_stays_with_its_tenant():
    names = ["a", "b", "a", "c", "d", "b"]
    made = plan([Row(0.0, 1, 1, client=name) for name in names])
    assert [s.tenant for s in made] == [0, 1, 0, 2, 0, 1]


def test_models_of_the_trace_are_mapped_in_order_of_appearance():
    names = ["big", "small", "big", "third"]
    made = plan([Row(0.0, 1, 1, model=name) for name in names], models=["x", "y"])
    assert [s.model for s in made] == ["x", "y", "x", "x"]


@pytest.mark.parametrize("tokens", [1, 20, 374, 4083])
def test_texts_are_unique_and_have_four_bytes_a_token(tokens):
    made = plan([Row(0.0, tokens, 44)] * 50)
    texts = [s.text for s in made]
    assert len(set(texts)) == 50
    assert all("[[tokens=44]]" in text for text in texts)
    head = len("replay abc request 49 [[tokens=44]] ") + 3
    assert all(abs(len(t.encode()) - 4 * tokens) <= 4 or len(t) <= head for t in texts)
    assert texts == [s.text for s in made]


def test_two_runs_share_no_text():
    rows = [Row(0.0, 100, 10), Row(0.0, 100, 10, prompt_id="p")]
    assert not {s.text for s in plan(rows)} & {s.text for s in plan(rows, run="def")}


def test_the_same_prompt_id_is_the_same_request_whoever_sends_it():
    rows = [Row(0.0, 100, 10, prompt_id="p"), Row(1.0, 5, 5), Row(2.0, 70, 30, prompt_id="p")]
    first, other, again = plan(rows)
    assert (first.text, first.model, first.operation, first.output_tokens) == (
        again.text, again.model, again.operation, again.output_tokens,
    )  # fmt: skip
    assert other.text != first.text
    assert again.due_s == 2.0 / 60.0


def test_output_is_cut_to_what_the_models_give_and_never_below_one():
    llama, claude = MODELS
    (native, _, chat, _), (own, *_) = (
        plan([Row(0.0, 1, 9_999)] * 4, models=[model]) for model in (llama, claude)
    )
    assert (native.operation, native.output_tokens, native.cut) == ("invoke", LLAMA_TOKENS_MAX, True)
    assert (chat.operation, chat.output_tokens, chat.cut) == ("converse", OUTPUT_TOKENS_MAX, True)
    assert (own.operation, own.output_tokens, own.cut) == ("invoke", OUTPUT_TOKENS_MAX, True)
    (none,) = plan([Row(0.0, 1, 0)])
    assert (none.output_tokens, none.cut) == (1, False)
