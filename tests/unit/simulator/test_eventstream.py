"""The encoder, read back by botocore's decoder."""

import json

import pytest
from botocore.eventstream import ChecksumMismatch, EventStreamBuffer
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.simulator import eventstream


def decode(*frames: bytes):
    buffer = EventStreamBuffer()
    buffer.add_data(b"".join(frames))
    return [(message.headers, message.payload) for message in buffer]


def test_event_has_the_three_headers_in_the_order_of_the_service():
    [(headers, payload)] = decode(eventstream.event("messageStop", b'{"stopReason":"end_turn"}'))
    assert list(headers.items()) == [
        (":event-type", "messageStop"),
        (":content-type", "application/json"),
        (":message-type", "event"),
    ]
    assert payload == b'{"stopReason":"end_turn"}'


@given(st.lists(st.tuples(st.binary(max_size=5_000), st.integers(0, 62)), min_size=1, max_size=20))
@settings(max_examples=50)
def test_chunks_carry_any_bytes(chunks):
    frames = [eventstream.chunk(native, padding) for native, padding in chunks]
    decoded = decode(*frames)
    assert len(decoded) == len(chunks)
    for (_, payload), (native, padding) in zip(decoded, chunks, strict=True):
        member = json.loads(payload)
        assert __import__("base64").b64decode(member["bytes"]) == native
        assert member["p"] == eventstream.PADDING[:padding]


def test_frame_length_is_overhead_headers_and_payload():
    headers = eventstream.string_headers(((":message-type", "event"),))
    assert headers == b"\x0d:message-type\x07\x00\x05event"
    encoded = eventstream.frame(headers, b"abc")
    assert len(encoded) == eventstream.OVERHEAD_BYTES + len(headers) + 3
    assert int.from_bytes(encoded[:4], "big") == len(encoded)
    assert int.from_bytes(encoded[4:8], "big") == len(headers)


def test_exception_and_unmodelled_error_frames():
    [(exception, payload), (error, empty)] = decode(
        eventstream.exception("throttlingException", b'{"message":"slow down"}'),
        eventstream.unmodelled_error("Oops", "it broke"),
    )
    assert exception[":exception-type"] == "throttlingException"
    assert exception[":message-type"] == "exception"
    assert json.loads(payload) == {"message": "slow down"}
    assert error == {":message-type": "error", ":error-code": "Oops", ":error-message": "it broke"}
    assert empty == b""


def test_a_corrupt_frame_fails_its_checksum():
    with pytest.raises(ChecksumMismatch):
        decode(eventstream.corrupt(eventstream.event("metadata", b"{}")))
