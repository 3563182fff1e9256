import struct
from typing import Any
from zlib import crc32

import botocore.eventstream
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.bedrock.eventstream import (
    FRAME_BYTES_MAX,
    Assembler,
    BrokenStream,
    encode,
    event_frame,
    exception_frame,
    headers_of,
    split,
)

names = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=20)
header_lists = st.dictionaries(
    names, st.text(max_size=30).filter(lambda text: text.isprintable()), max_size=4
)


@given(st.lists(st.tuples(header_lists, st.binary(max_size=60)), min_size=1, max_size=5), st.data())
def test_frames_come_out_whole_however_they_arrive_and_boto3_reads_the_same(frames, data):
    encoded = [encode(headers.items(), payload) for headers, payload in frames]
    stream = b"".join(encoded)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    assembler, out = Assembler(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got, places, taken = assembler.feed(stream[start:end])
        out += [(got[a:c], headers_of(got[a + 12 : b]), got[b : c - 4]) for a, b, c in places]
        assert taken == (places[-1][2] if places else 0)
    assert assembler.pending == 0
    assert [frame for frame, _, _ in out] == encoded
    assert [(headers, payload) for _, headers, payload in out] == frames
    buffer = botocore.eventstream.EventStreamBuffer()
    buffer.add_data(stream)
    assert [(message.headers, message.payload) for message in buffer] == frames


@given(st.binary(min_size=1, max_size=120), st.integers(0), st.integers(1, 255))
def test_any_flipped_bit_is_noticed_or_waits_for_more(payload, position, flip):
    frame = bytearray(event_frame("chunk", payload))
    frame[position % len(frame)] ^= flip
    with pytest.raises(BrokenStream):
        split(bytes(frame))


@given(st.binary(max_size=300))
def test_garbage_raises_nothing_but_broken_stream(data):
    try:
        Assembler().feed(data)
    except BrokenStream as error:
        assert error.sent


@pytest.mark.parametrize(
    ("total", "headers"), [(FRAME_BYTES_MAX + 1, 0), (15, 0), (40, 30), (1 << 20, 200_000)]
)
def test_impossible_lengths_are_refused_at_once(total, headers):
    lengths = struct.pack(">II", total, headers)
    with pytest.raises(BrokenStream):
        split(lengths + struct.pack(">I", crc32(lengths)))


@pytest.mark.parametrize(
    "blob",
    [
        b"\x01a\x07\x00\x01xY",
        b"\x01a\x07\x00\x09x",
        b"\x01a",
        b"\x05a",
        b"\x01a\x0b",
        b"\x00\x07\x00\x01x",
        b"\x01a\x07\x00\x01x\x01a\x07\x00\x01y",
        b"\x01a\x07\x00\x01\xff",
        b"\x01a\x05\x00",
    ],
)
def test_broken_headers_are_refused(blob):
    with pytest.raises(BrokenStream):
        headers_of(blob)


def test_headers_of_other_types_are_stepped_over():
    blob = b"\x01a\x00" + b"\x01b\x04\x00\x00\x00\x01" + b"\x01c\x06\x00\x02xx" + b"\x01d\x09" + b"0" * 16
    assert headers_of(blob + b"\x01e\x07\x00\x01v") == {"a": "", "b": "", "c": "", "d": "", "e": "v"}


def test_a_large_frame_in_small_pieces_is_not_copied_over_and_over():
    frame = event_frame("chunk", b"x" * 4_000_000)
    assembler, out = Assembler(), b""
    for start in range(0, len(frame), 1000):
        data, _, taken = assembler.feed(frame[start : start + 1000])
        out += data[:taken]
    assert out == frame


@pytest.mark.parametrize("kind", ["ModelStreamErrorException", "modelStreamErrorException"])
def test_boto3_raises_our_exception_frames_by_name(kind):
    buffer = botocore.eventstream.EventStreamBuffer()
    buffer.add_data(exception_frame(kind, "it broke"))
    message = next(iter(buffer))
    headers: Any = message.headers
    assert headers == {
        ":exception-type": "modelStreamErrorException",
        ":content-type": "application/json",
        ":message-type": "exception",
    }
    assert message.payload == b'{"message":"it broke"}'
