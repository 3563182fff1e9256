import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.bedrock import sse as wire
from proxy.bedrock.dialects import CHAT_COMPLETIONS, MESSAGES, RESPONSES
from proxy.bedrock.eventstream import BrokenStream
from proxy.domain.usage import Usage
from tests.unit.bedrock.support import metrics, sse

TEXT = {
    "id": "c",
    "choices": [{"index": 0, "delta": {"content": 'say "usage" and "error"'}}],
    "usage": None,
    "service_tier": "flex",
}
STOP = {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
USAGE = {
    "id": "c",
    "choices": [],
    "usage": {
        "prompt_tokens": 30, "completion_tokens": 7, "total_tokens": 37,
        "prompt_tokens_details": {"cached_tokens": 10, "cache_write_tokens": 5},
    },
}  # fmt: skip
ASKED = {"stream": True, "stream_options": {"include_usage": True}}
TOTAL = Usage(input_tokens=15, output_tokens=7, cache_read_tokens=10, cache_write_5m_tokens=5)


def fed(meter, stream, cuts=()):
    places = sorted(cut % (len(stream) + 1) for cut in cuts)
    bounds = zip([0, *places], [*places, len(stream)], strict=True)
    out = b"".join(meter.feed(stream[a:b]) for a, b in bounds)
    meter.finish()
    return out


cuts = st.lists(st.integers(0, 10**6), max_size=15)


@given(cuts, st.booleans())
def test_chat_holds_the_usage_and_done(where, carriage):
    body, end = sse(("", TEXT), ("", STOP)), sse(("", USAGE), ("", b"[DONE]"))
    if carriage:
        body, end = body.replace(b"\n", b"\r\n"), end.replace(b"\n", b"\r\n")
    meter = CHAT_COMPLETIONS.meter(ASKED)
    assert fed(meter, body + end, where) == body
    assert meter.held() == end
    assert meter.usage == TOTAL and meter.ended and meter.events == 4
    assert meter.served.tier == "flex"


@given(cuts)
def test_chat_hides_the_usage_chunk_from_a_client_that_did_not_ask(where):
    body, done = sse(("", TEXT), ("", STOP)), sse(("", b"[DONE]"))
    meter = CHAT_COMPLETIONS.meter({"stream": True})
    assert fed(meter, body + sse(("", USAGE)) + done, where) == body
    assert meter.held() == done
    assert meter.usage == TOTAL


def test_chat_with_usage_on_the_last_choice_passes_it_and_holds_done():
    last = STOP | {"usage": USAGE["usage"]}
    meter = CHAT_COMPLETIONS.meter({"stream": True})
    assert fed(meter, sse(("", last), ("", b"[DONE]"))) == sse(("", last))
    assert meter.usage == TOTAL


def test_chat_prefers_bedrocks_metrics():
    meter = CHAT_COMPLETIONS.meter(ASKED)
    fed(meter, sse(("", USAGE | metrics(15, 8, cacheReadInputTokenCount=10, cacheWriteInputTokenCount=5))))
    assert meter.usage is not None and meter.usage.output_tokens == 8


def test_chat_without_usage_has_none():
    meter = CHAT_COMPLETIONS.meter(ASKED)
    fed(meter, sse(("", TEXT), ("", b"[DONE]")))
    assert meter.ended and meter.usage is None


def test_an_error_ends_the_answer_and_hides_the_account():
    bad = {
        "error": {"message": "role of 123456789012 is throttled", "type": "server_error", "code": "throttled"}
    }
    meter = CHAT_COMPLETIONS.meter(ASKED)
    assert fed(meter, sse(("", TEXT), ("", bad))) == sse(("", TEXT))
    assert meter.failure == "throttled" and meter.usage is None
    assert b"123456789012" not in meter.held()
    meter = MESSAGES.meter()
    fed(
        meter,
        sse(("error", {"type": "error", "error": {"type": "overloaded_error", "message": "123456789012"}})),
    )
    assert meter.failure == "overloaded_error" and meter.failure_message == "*" * 12
    meter = RESPONSES.meter()
    failed = {"type": "response.failed", "response": {"error": {"code": "server_error", "message": "m"}}}
    fed(meter, sse(("response.failed", failed)))
    assert meter.failure == "server_error"


MESSAGE_START = {
    "type": "message_start",
    "message": {
        "usage": {
            "input_tokens": 15, "output_tokens": 1, "cache_read_input_tokens": 10, "cache_creation_input_tokens": 5,
            "cache_creation": {"ephemeral_1h_input_tokens": 5, "ephemeral_5m_input_tokens": 0},
        }
    },
}  # fmt: skip
DELTA = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "message_delta"}}
MESSAGE_DELTA = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}}
MESSAGE_TOTAL = Usage(input_tokens=15, output_tokens=7, cache_read_tokens=10, cache_write_1h_tokens=5)


@given(cuts, st.booleans(), st.booleans())
def test_messages_hold_from_the_stop_reason_on(where, named, with_metrics):
    def event(data):
        return (data["type"] if named else "", data)

    stop = {"type": "message_stop"}
    if with_metrics:
        stop |= metrics(15, 7, cacheReadInputTokenCount=10, cacheWriteInputTokenCount=5)
    body = sse(event(MESSAGE_START), event({"type": "ping"}), event(DELTA))
    end = sse(event(MESSAGE_DELTA), event(stop))
    meter = MESSAGES.meter()
    assert fed(meter, body + end, where) == body
    assert meter.held() == end
    assert meter.usage == MESSAGE_TOTAL and meter.ended


@pytest.mark.parametrize("kind", ["response.completed", "response.incomplete"])
@pytest.mark.parametrize("named", [True, False])
def test_responses_hold_the_last_event(kind, named):
    def event(data):
        return (data["type"] if named else "", data)

    text = event({"type": "response.output_text.delta", "delta": '"response.completed"'})
    usage = {
        "input_tokens": 30,
        "output_tokens": 7,
        "input_tokens_details": {"cached_tokens": 10, "cache_write_tokens": 5},
    }
    last = event({"type": kind, "response": {"usage": usage, "service_tier": "priority"}})
    meter = RESPONSES.meter()
    assert fed(meter, sse(text, last)) == sse(text)
    assert meter.held() == sse(last)
    assert meter.usage == TOTAL and meter.served.tier == "priority" and meter.failure is None


def test_an_answer_cut_inside_an_event_is_broken():
    meter = CHAT_COMPLETIONS.meter(ASKED)
    meter.feed(sse(("", TEXT))[:-1])
    with pytest.raises(BrokenStream):
        meter.finish()


def test_an_endless_event_is_broken():
    meter = CHAT_COMPLETIONS.meter(ASKED)
    with pytest.raises(BrokenStream):
        for _ in range(20):
            meter.feed(b"data: " + b"x" * (1 << 20))


@given(
    st.lists(
        st.text('data:{}[]"usage error\n\r :', max_size=60).map(str.encode) | st.binary(max_size=40),
        max_size=6,
    )
)
def test_garbage_raises_nothing_but_broken_stream_and_loses_no_byte(chunks):
    for meter in (CHAT_COMPLETIONS.meter(ASKED), MESSAGES.meter(), RESPONSES.meter()):
        out = b"".join(meter.feed(chunk) for chunk in chunks)
        whole = b"".join(chunks)
        try:
            meter.finish()
        except BrokenStream:
            pass
        if meter.failure is None:
            assert whole.startswith(out + meter.held())


@pytest.mark.parametrize("route", ["chat_completions", "responses", "messages"])
def test_error_events_are_one_event_of_json(route):
    (event,) = wire.events(wire.error_event(route, "server_error", 'it "broke"\n'))
    body = orjson.loads(event[2])
    assert 'it "broke"\n' in (body.get("message"), body.get("error", {}).get("message"))
    assert event[1] == ("" if route == "chat_completions" else "error")
