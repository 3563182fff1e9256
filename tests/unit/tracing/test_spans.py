"""What spans say of a call that went its way through a watched kit."""

from __future__ import annotations

import dataclasses
import gc
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.bedrock import dialects
from proxy.call import Call, Ending, Kit
from proxy.clock import uuid7
from proxy.domain.catalogue import Target
from proxy.domain.ledger import Attempt, Operation, Settlement, State, Why
from proxy.domain.usage import Usage
from proxy.errors import Refusal
from proxy.exchange import Exchange
from proxy.testing_upstream import Scripted
from proxy.tracing.sampling import Origin
from proxy.tracing.spans import Span, Trace, trace_of
from proxy.tracing.trail import Sending, Trail
from tests.support.exchanges import BODY, CEILING, FIRST, HEADERS, LAST, STREAM, Client, World

ORIGIN = Origin(7, 3)


def address(region: str) -> tuple[str, int]:
    return f"bedrock-runtime.{region}.amazonaws.com", 443


def trail_of(call: Call, told: Callable[[Trail], None] = lambda _: None, sink: Client | None = None) -> Trail:
    return Trail(origin=ORIGIN, call_id=call.id, operation=call.operation, began=call.began, told=told,
                 sink=sink or Client(), caller=call.caller, call=call)  # fmt: skip


async def traced(world: World, call: Call) -> Trace:
    """The trace of an exchange, whatever became of it."""
    found: list[Trace] = []
    trail = trail_of(call, lambda over: found.append(trace_of(over, address)))
    trail.enter()
    call.concluded = trail.concluded
    try:
        await Exchange(trail.watched(world.kit), call, trail.sink).run()
    except Refusal as refusal:
        trail.refusal = refusal
    trail.leave()
    [trace] = found
    return trace


def sendings(trace: Trace) -> list[Span]:
    return [span for span in trace.children if span.kind == "client"]


def answering(headers: dict[str, str] = HEADERS, *chunks: bytes) -> Callable[[Any], Scripted]:
    return lambda _: Scripted(headers=headers, chunks=chunks or (BODY,))


async def test_the_order_of_what_happened(tmp_path: Path) -> None:
    world = World(tmp_path, answering())
    call = world.call()
    trace = await traced(world, call)
    assert [span.name for span in trace.children] == ["admit", "text_completion m-0", "settle"]
    times = [trace.root.began, *(t for s in trace.children for t in (s.began, s.ended)), trace.root.ended]
    assert times == sorted(times)
    assert abs(trace.root.ended - time.time_ns()) < 5_000_000_000
    assert trace.root.attributes["tollhouse.call.id"] == str(call.id)
    assert trace.root.attributes["tollhouse.cost.nanodollars"] == 5
    assert trace.root.attributes["tollhouse.ceiling.nanodollars"] == CEILING
    [sending] = sendings(trace)
    assert sending.attributes["gen_ai.usage.input_tokens"] == 3
    assert sending.attributes["server.port"] == 443
    assert sending.error == trace.root.error == ""


async def test_a_stream_says_when_it_began(tmp_path: Path) -> None:
    world = World(tmp_path, answering(STREAM, FIRST, LAST))
    [sending] = sendings(await traced(world, world.call(stream=True)))
    [(name, at)] = sending.events
    assert name == "first_byte" and sending.began <= at <= sending.ended
    assert sending.attributes["gen_ai.request.stream"] is True
    assert 0 <= float(sending.attributes["gen_ai.response.time_to_first_chunk"]) < 5


@pytest.mark.parametrize(
    ("answer", "state", "error"),
    [(Scripted(unreachable=True), "VOID", "unreachable"), (Scripted(dropped=True), "CEILING", "cut")],
)
async def test_a_sending_without_an_answer_says_why(
    tmp_path: Path, answer: Scripted, state: str, error: str
) -> None:
    world = World(tmp_path, lambda _: answer)
    trace = await traced(world, world.call())
    [sending] = sendings(trace)
    assert (sending.attributes["tollhouse.outcome"], sending.error, sending.events) == (state, error, ())
    assert trace.root.error in {"upstream_unavailable", "upstream_error"}


def test_a_watched_kit_shares_what_changes(tmp_path: Path) -> None:
    """A number in a kit or a pipeline would be counted apart by every traced call."""
    world = World(tmp_path, answering())
    own = trail_of(world.call()).watched(world.kit)
    for field in dataclasses.fields(Kit):
        mine, shared = getattr(own, field.name), getattr(world.kit, field.name)
        assert mine is shared or getattr(mine, "inner", None) is shared or field.name == "classify", (
            field.name
        )
        assert not isinstance(shared, int | float), field.name


def test_it_is_told_once_when_handler_and_answer_have_left(tmp_path: Path) -> None:
    told: list[Trail] = []
    trail = trail_of(World(tmp_path, answering()).call(), told.append)
    trail.enter()
    trail.enter()
    trail.leave()
    assert told == []
    trail.leave()
    trail.enter()
    trail.leave()
    assert told == [trail]


async def test_a_call_is_gone_once_it_is_told(tmp_path: Path) -> None:
    """Without the garbage collector, which a worker lets look seldom."""
    world, calls = World(tmp_path, answering()), []
    gc.disable()
    try:
        for _ in range(3):
            call = world.call()
            calls.append(weakref.ref(call.clamp))
            await traced(world, call)
            del call
        assert [gone() for gone in calls] == [None] * 3
    finally:
        gc.enable()


# ---- by hand ---------------------------------------------------------------------------------------------------


@pytest.fixture
def call(tmp_path: Path) -> Call:
    return World(tmp_path, answering()).call()


def attempt_of(call: Call, operation: Operation | None = None) -> Attempt:
    caller = call.caller
    return Attempt(attempt=uuid7(), call=call.id, tenant=caller.tenant, project=None, key=caller.key,
                   credential=caller.credential, recorder=uuid7(), operation=operation or call.operation,
                   model=1, target=1, price=1, ceiling=900)  # fmt: skip


def sent(call: Call, state: State, why: Why, operation: Operation | None = None, **settled: Any) -> Sending:
    attempt = attempt_of(call, operation)
    settlement = Settlement(attempt=attempt.attempt, state=state, why=why, **settled)
    target = call.legs[0].target
    return Sending(call.began, target, attempt, call.began + 0.2, call.began + 0.5, settlement)


def only(trail: Trail) -> tuple[Span, Span]:
    trail.ended = trail.began + 1
    trace = trace_of(trail, address)
    [sending] = sendings(trace)
    return trace.root, sending


def test_cached_tokens_are_input_by_the_convention(call: Call) -> None:
    usage = Usage(
        input_tokens=5,
        output_tokens=7,
        cache_read_tokens=11,
        cache_write_5m_tokens=13,
        cache_write_1h_tokens=17,
    )
    trail = trail_of(call)
    trail.sendings = [
        sent(call, State.POST, Why.USAGE, usage=usage, cost=42, status=200, upstream_request_id="req-9")
    ]
    _, sending = only(trail)
    assert sending.attributes.items() >= {
        "gen_ai.usage.input_tokens": 46, "gen_ai.usage.output_tokens": 7, "aws.request_id": "req-9",
        "gen_ai.usage.cache_read.input_tokens": 11, "gen_ai.usage.cache_creation.input_tokens": 30,
        "tollhouse.cost.nanodollars": 42, "http.response.status_code": 200,
    }.items()  # fmt: skip


@pytest.mark.parametrize(
    ("operation", "dialect", "name"),
    [
        (Operation.CONVERSE, "nova", "chat"), (Operation.CHAT_COMPLETIONS, "openai", "chat"),
        (Operation.INVOKE_MODEL, "anthropic", "chat"), (Operation.INVOKE_MODEL, "llama", "text_completion"),
        (Operation.INVOKE_MODEL, "titan-embed", "embeddings"), (Operation.INVOKE_MODEL, "stability", "generate_content"),
        (Operation.COUNT_TOKENS, "llama", "count_tokens"),
        (Operation.MESSAGES_COUNT_TOKENS, "anthropic", "count_tokens"),
        (Operation.APPLY_GUARDRAIL, "llama", "apply_guardrail"),
    ],
)  # fmt: skip
def test_operations_have_the_names_of_the_convention(
    call: Call, operation: Operation, dialect: str, name: str
) -> None:
    call.dialect, call.operation = dialects.native(dialect), operation
    trail = trail_of(call)
    trail.sendings = [sent(call, State.POST, Why.USAGE)]
    root, sending = only(trail)
    assert (root.name, sending.name) == (operation.label, f"{name} {call.legs[0].target.model_id}")
    assert sending.attributes["gen_ai.operation.name"] == name


def test_every_family_has_an_operation_on_purpose(call: Call) -> None:
    chats = {family for family in dialects.FAMILIES if _named(call, family) == "chat"}
    assert chats == {"anthropic", "cohere-command", "jamba", "mistral", "nova", "openai", "openai-compatible"}


def _named(call: Call, family: str) -> Any:
    call.dialect = dialects.native(family)
    trail = trail_of(call)
    trail.sendings = [sent(call, State.POST, Why.USAGE)]
    return only(trail)[1].attributes["gen_ai.operation.name"]


def test_a_count_of_the_input_is_a_sending_of_its_own_kind(call: Call) -> None:
    """Its target is none of the call's, so nothing of the call is said of it."""
    trail = trail_of(call)
    counted = sent(call, State.POST, Why.USAGE, Operation.COUNT_TOKENS)
    counted.target = Target(model="m", model_id="m", region="us-east-1")
    trail.sendings = [counted]
    _, sending = only(trail)
    assert sending.name == "count_tokens m"
    assert "gen_ai.request.max_tokens" not in sending.attributes


def test_a_guardrail_is_named(call: Call) -> None:
    call.legs[0].guardrail, call.legs[0].limit = "gr-1", 64
    trail = trail_of(call)
    trail.sendings = [sent(call, State.POST, Why.USAGE)]
    _, sending = only(trail)
    assert sending.attributes["aws.bedrock.guardrail.id"] == "gr-1"
    assert sending.attributes["gen_ai.request.max_tokens"] == 64


@pytest.mark.parametrize("why", [Why.CUT, Why.SILENCE, Why.DRAIN_LIMIT])
def test_what_is_charged_its_ceiling_says_so_and_why(call: Call, why: Why) -> None:
    trail = trail_of(call, sink=Client(leave_after=0))
    sending = sent(call, State.CEILING, why)
    assert sending.settlement is not None
    trail.sendings, trail.ending = [sending], Ending(settlement=sending.settlement)
    root, span = only(trail)
    assert root.error == span.error == why.name.lower()
    assert root.attributes["tollhouse.outcome"] == "CEILING"
    assert root.attributes["tollhouse.cost.nanodollars"] == 900
    assert root.attributes["tollhouse.client.left"] is True


def test_a_sending_that_nobody_saw_the_end_of(call: Call) -> None:
    trail = trail_of(call)
    trail.sendings, trail.failure = (
        [Sending(call.began, call.legs[0].target, attempt_of(call))],
        "RuntimeError",
    )
    root, sending = only(trail)
    assert (sending.error, sending.ended) == ("abandoned", root.ended)
    assert (root.error, root.attributes["tollhouse.outcome"]) == ("RuntimeError", "FAILED")
    assert root.attributes["tollhouse.cost.nanodollars"] == 900


def test_a_client_that_left_before_anything_came_of_it(call: Call) -> None:
    trail = trail_of(call)
    trail.call = trail.caller = None
    trail.ended = trail.began + 1
    root = trace_of(trail, address).root
    assert root.attributes == {
        "tollhouse.call.id": str(call.id), "tollhouse.operation": "InvokeModel", "tollhouse.outcome": "LEFT",
    }  # fmt: skip
