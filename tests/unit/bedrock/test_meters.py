import base64
from typing import Any

import botocore.session
import orjson
import pytest
from botocore.eventstream import EventStream
from botocore.exceptions import EventStreamError
from botocore.parsers import EventStreamJSONParser
from hypothesis import given
from hypothesis import strategies as st

from proxy.bedrock.dialects import CONVERSE, native
from proxy.bedrock.dialects.meters import METRICS, ChunkMeter, needles
from proxy.bedrock.eventstream import BrokenStream, encode, event_frame, exception_frame
from proxy.domain.usage import Usage
from tests.unit.bedrock.support import chunk, llama_stream, metrics


def pieces(stream, cuts):
    places = sorted(cut % (len(stream) + 1) for cut in cuts)
    return [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]


def run(meter, chunks):
    out = b"".join(meter.feed(piece) for piece in chunks)
    meter.finish()
    return out


@given(st.lists(st.integers(0, 10**6), max_size=20))
def test_llama_passes_everything_but_the_end_and_holds_that(cuts):
    frames = llama_stream()
    meter = native("llama").meter()
    assert run(meter, pieces(b"".join(frames), cuts)) == b"".join(frames[:-1])
    assert meter.held() == frames[-1]
    assert meter.held() == b""
    assert meter.usage == Usage(input_tokens=9, output_tokens=5)
    assert meter.ended and meter.failure is None and meter.events == len(frames)


def test_whole_frames_pass_as_the_very_bytes_received():
    frame = llama_stream()[0]
    assert native("llama").meter().feed(frame) is frame


@given(
    st.text(max_size=30),
    st.integers(0, 40),
    st.dictionaries(st.text(max_size=8), st.integers(0, 9), max_size=3),
)
def test_the_metrics_are_found_at_every_offset_and_in_every_company(before, padding, company):
    last = {"x" * padding: before} | company | metrics(7, 3)
    meter = native("mistral").meter()
    frame = chunk(last)
    assert meter.feed(frame) == b""
    assert meter.usage == Usage(input_tokens=7, output_tokens=3)


def test_needles_are_what_base64_makes_of_the_text_at_each_offset():
    for offset in range(12):
        encoded = base64.b64encode(b"x" * offset + METRICS.encode() + b"tail")
        assert any(mark in encoded for mark in needles(METRICS))


def test_a_model_that_writes_the_key_into_its_text_ends_nothing():
    meter = native("llama").meter()
    talk = chunk(
        {"generation": f'"{METRICS}":{{"inputTokenCount":1,"outputTokenCount":1}}', "stop_reason": None}
    )
    assert meter.feed(talk) == talk
    assert not meter.ended and meter.usage is None
    nested = chunk({"generation": "", "extra": metrics(1, 1)})
    assert meter.feed(nested) == nested
    assert not meter.ended


def test_a_key_hidden_from_the_search_is_found_at_the_end():
    escaped = orjson.dumps({"generation": ""} | metrics(4, 2)).replace(b"amazon-", b"amazon\\u002d")
    frame = event_frame("chunk", orjson.dumps({"bytes": base64.b64encode(escaped).decode()}))
    meter = native("llama").meter()
    assert meter.feed(frame) == frame
    meter.finish()
    assert meter.usage == Usage(input_tokens=4, output_tokens=2) and meter.ended


@pytest.mark.parametrize(
    "figures",
    [{"inputTokenCount": -1}, {"inputTokenCount": 1.0}, {"inputTokenCount": True}, {"outputTokenCount": None},
     {"outputTokenCount": 10**12}, {"cacheReadInputTokenCount": "5"}],
)  # fmt: skip
def test_nonsense_is_no_usage(figures):
    last = metrics(4, 2)
    last[METRICS] |= figures
    meter = native("llama").meter()
    meter.feed(chunk(last))
    assert meter.ended and meter.usage is None


def test_everything_after_the_end_is_held_too():
    frames = llama_stream()
    late = chunk({"generation": "late"})
    meter = native("llama").meter()
    assert meter.feed(b"".join(frames) + late[:10]) == b"".join(frames[:-1])
    assert meter.feed(late[10:]) == b""
    assert meter.held() == frames[-1] + late


def test_a_stream_cut_in_a_frame_is_broken_and_one_cut_between_has_no_usage():
    frames = llama_stream()
    meter = native("llama").meter()
    meter.feed(frames[0] + frames[1][:-1])
    with pytest.raises(BrokenStream):
        meter.finish()
    meter = native("llama").meter()
    meter.feed(frames[0])
    meter.finish()
    assert not meter.ended and meter.usage is None


def test_a_wrong_checksum_is_broken():
    frame = bytearray(llama_stream()[0])
    frame[-6] ^= 1
    with pytest.raises(BrokenStream):
        native("llama").meter().feed(bytes(frame))


def anthropic_events(**usage):
    start = {"input_tokens": 11, "output_tokens": 1} | usage
    return [
        {"type": "message_start", "message": {"id": "m", "role": "assistant", "usage": start}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "message_stop"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}},
        {"type": "message_stop"},
    ]


CACHED = {
    "cache_read_input_tokens": 20,
    "cache_creation_input_tokens": 30,
    "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
}


def test_claude_combines_metrics_with_the_lifetimes_of_its_first_event():
    events = anthropic_events(**CACHED)
    events[-1] |= metrics(11, 7, cacheReadInputTokenCount=20, cacheWriteInputTokenCount=30)
    meter = native("anthropic").meter()
    assert run(meter, [chunk(event) for event in events]) == b"".join(map(chunk, events[:-1]))
    assert meter.usage == Usage(
        input_tokens=11,
        output_tokens=7,
        cache_read_tokens=20,
        cache_write_5m_tokens=10,
        cache_write_1h_tokens=20,
    )


def test_claude_without_metrics_still_reports_its_own_usage():
    meter = native("anthropic").meter()
    run(meter, [chunk(event) for event in anthropic_events(**CACHED)])
    assert meter.ended
    assert meter.usage == Usage(
        input_tokens=11,
        output_tokens=7,
        cache_read_tokens=20,
        cache_write_5m_tokens=10,
        cache_write_1h_tokens=20,
    )


def test_claude_with_nonsense_metrics_reports_nothing():
    events = anthropic_events()
    events[-1] |= metrics(-1, 7)
    meter = native("anthropic").meter()
    run(meter, [chunk(event) for event in events])
    assert meter.ended and meter.usage is None


CONVERSE_EVENTS = [
    ("messageStart", {"role": "assistant", "p": "abc"}),
    ("contentBlockDelta", {"delta": {"text": "hi metadata"}, "contentBlockIndex": 0}),
    ("contentBlockStop", {"contentBlockIndex": 0}),
    ("messageStop", {"stopReason": "end_turn"}),
    (
        "metadata",
        {
            "usage": {
                "inputTokens": 5, "outputTokens": 6, "totalTokens": 999, "cacheReadInputTokens": 7,
                "cacheWriteInputTokens": 8, "cacheDetails": [{"ttl": "1h", "inputTokens": 3}, {"ttl": "5m", "inputTokens": 5}],
            },
            "metrics": {"latencyMs": 100},
            "serviceTier": {"type": "flex"},
            "performanceConfig": {"latency": "standard"},
            "trace": {"guardrail": {"inputAssessment": {"g": {"invocationMetrics": {"usage": {
                "topicPolicyUnits": 2, "contentPolicyUnits": 1, "sensitiveInformationPolicyFreeUnits": 9}}}}}},
        },
    ),
]  # fmt: skip


@given(st.lists(st.integers(0, 10**6), max_size=20))
def test_converse_holds_its_metadata(cuts):
    frames = [event_frame(name, orjson.dumps(payload)) for name, payload in CONVERSE_EVENTS]
    meter = CONVERSE.meter()
    assert run(meter, pieces(b"".join(frames), cuts)) == b"".join(frames[:-1])
    assert meter.held() == frames[-1]
    assert meter.usage == Usage(
        input_tokens=5, output_tokens=6, cache_read_tokens=7, cache_write_5m_tokens=5, cache_write_1h_tokens=3,
        guardrail_units=3,
    )  # fmt: skip
    assert (meter.served.tier, meter.served.latency) == ("flex", "standard")


@pytest.mark.parametrize("dialect", [CONVERSE, native("llama"), native("anthropic")])
def test_an_exception_frame_ends_the_answer_and_hides_the_account(dialect):
    meter = dialect.meter()
    frame = exception_frame("throttlingException", "too much for arn:aws:iam::123456789012:role/x")
    assert meter.feed(frame) == b""
    assert meter.ended and meter.usage is None and meter.failure == "throttlingException"
    held = meter.held()
    assert b"123456789012" not in held and b"************" in held
    assert meter.failure_message.endswith("::************:role/x")
    harmless = exception_frame("modelStreamErrorException", "sorry")
    meter = dialect.meter()
    meter.feed(harmless)
    assert meter.held() == harmless


def test_an_unmodelled_error_frame_ends_the_answer():
    frame = encode(
        [(":message-type", "error"), (":error-code", "InternalFailure"), (":error-message", "boom")], b""
    )
    meter = CONVERSE.meter()
    meter.feed(frame)
    assert meter.failure == "InternalFailure" and meter.failure_message == "boom" and meter.held() == frame


def test_boto3_reads_the_same_stream_after_us():
    session = botocore.session.Session()
    model = session.get_service_model("bedrock-runtime").operation_model("ConverseStream")
    shape: Any = model.output_shape and model.output_shape.members["stream"]

    def events(data):
        class Raw:
            def stream(self):
                yield data

            def close(self):
                pass

        return list(EventStream(Raw(), shape, EventStreamJSONParser(), "ConverseStream"))

    meter = CONVERSE.meter()
    passed = b"".join(
        meter.feed(event_frame(name, orjson.dumps(payload))) for name, payload in CONVERSE_EVENTS
    )
    assert [next(iter(event)) for event in events(passed + meter.held())] == [
        name for name, _ in CONVERSE_EVENTS
    ]
    with pytest.raises(EventStreamError, match=r"modelStreamErrorException.*it broke"):
        events(passed + exception_frame("ModelStreamErrorException", "it broke"))


@given(st.lists(st.binary(max_size=80), max_size=6))
def test_garbage_raises_nothing_but_broken_stream(chunks):
    for meter in (native("llama").meter(), native("anthropic").meter(), CONVERSE.meter()):
        try:
            run(meter, chunks)
        except BrokenStream:
            pass


@given(st.binary(max_size=80), st.sampled_from(["chunk", "metadata", "messageStart", ""]))
def test_garbage_in_sound_frames_raises_nothing(payload, name):
    for meter in (ChunkMeter(), native("anthropic").meter(), CONVERSE.meter()):
        run(meter, [event_frame(name, payload)] if name else [encode([], payload)])
