"""Meters: bytes of a streamed answer in, bytes that may go on out, and at the end what it used.

A meter never changes an event. It holds back the event that ends the answer, with everything after
it, so that the client sees the end only once the money is settled.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import orjson

from proxy.bedrock.dialects import counts
from proxy.bedrock.eventstream import PRELUDE_BYTES, Assembler, BrokenStream, exception_frame, headers_of
from proxy.bedrock.mask import masked
from proxy.domain.usage import Usage
from proxy.ports import StreamMeter

METRICS = "amazon-bedrock-invocationMetrics"
#: what may follow the ending event; more is no end
HELD_BYTES_MAX = 32 << 20


class WireMeter(StreamMeter, Protocol):
    """What meters of this package tell besides."""

    #: the error's text, account ids masked
    failure_message: str
    #: events seen, the held ones included
    events: int


class EventStreamMeter:
    """What the two event-stream operations share (`proxy.ports.StreamMeter`). Subclasses say which
    event is the last.

    `failure` and `failure_message` tell of an error frame, `events` counts the frames seen. `feed` and
    `finish` raise `BrokenStream`.
    """

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.ended = False
        self.failure: str | None = None
        self.failure_message = ""
        self.served = counts.UNSAID
        self.events = 0
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._assembler = Assembler()

    def last(self, name: str, data: bytes, start: int, end: int) -> bool:
        """Whether the event whose payload is `data[start:end]` ends the answer."""
        raise NotImplementedError

    def feed(self, chunk: bytes) -> bytes:
        data, places, taken = self._assembler.feed(chunk)
        self.events += len(places)
        if self.ended:  # nothing follows an error, least of all unread
            return b"" if self.failure is not None else self._hold(data, 0, taken)
        for start, payload, end in places:
            headers = headers_of(data[start + PRELUDE_BYTES : payload])
            if headers.get(":message-type") != "event":
                return self._fail(headers, data, (start, payload, end))
            if self.last(headers.get(":event-type", ""), data, payload, end - 4):
                self.ended = True
                return self._hold(data, start, taken)
        return data if taken == len(data) else data[:taken]

    def _hold(self, data: bytes, start: int, taken: int) -> bytes:
        self._held.append(data[start:taken])
        self._held_bytes += taken - start
        if self._held_bytes > HELD_BYTES_MAX:
            raise BrokenStream("The answer goes on long after its end.")
        return data[:start]

    def _fail(self, headers: Mapping[str, str], data: bytes, place: tuple[int, int, int]) -> bytes:
        start, payload, end = place
        self.ended = True
        if headers.get(":message-type") == "error":
            self.failure = headers.get(":error-code") or "error"
            self.failure_message = headers.get(":error-message", "")
        else:
            self.failure = headers.get(":exception-type") or "exception"
            answer = counts.answer_of(data[payload : end - 4]) or {}
            self.failure_message = str(answer.get("message") or answer.get("Message") or "")
        clean = masked(self.failure_message)
        if clean == self.failure_message:
            return self._hold(data, start, end)
        self.failure_message = clean
        self._held.append(exception_frame(self.failure, clean))
        return data[:start]

    def finish(self) -> None:
        if self._assembler.pending and not self.ended:
            raise BrokenStream("The answer ended inside a frame.")

    def held(self) -> bytes:
        held, self._held, self._held_bytes = b"".join(self._held), [], 0
        return held


class ConverseMeter(EventStreamMeter):
    """ConverseStream: `metadata` is the last event and the only one with usage."""

    def last(self, name: str, data: bytes, start: int, end: int) -> bool:
        if name != "metadata":
            return False
        answer = counts.answer_of(data[start:end]) or {}
        self.usage = counts.converse_usage(answer)
        self.served = counts.converse_served(answer)
        return True


def needles(text: str) -> tuple[bytes, bytes, bytes]:
    """What base64 makes of an ASCII text at each of its three possible offsets, without the
    characters at the borders that depend on the neighbours.
    """
    found = []
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + text.encode())
        first = (offset * 8 + 5) // 6
        found.append(encoded[first : (offset + len(text)) * 8 // 6])
    return found[0], found[1], found[2]


class ChunkMeter(EventStreamMeter):
    """InvokeModelWithResponseStream: native JSON in base64; the last chunk carries the metrics.

    The chunk with the metrics is found by searching the base64 text for what the metrics' key looks
    like at each offset: 0.4 µs a chunk of 200 bytes instead of 1.5 for decoding and parsing it. A hit is only a
    hint (a model may write the key in its text), so a hit is parsed. A miss is made good by `finish`,
    which decodes the last chunk whatever it looks like.
    """

    #: finds chunks worth decoding; subclasses may add more
    marks: ClassVar[tuple[bytes, ...]] = needles(METRICS)

    def __init__(self) -> None:
        super().__init__()
        self._last: tuple[bytes, int, int] | None = None

    def last(self, name: str, data: bytes, start: int, end: int) -> bool:
        if name != "chunk":
            return False
        found = False
        for mark in self.marks:
            if data.find(mark, start, end) >= 0:
                found = self.read(native_of(data[start:end]))
                break
        self._last = data, start, end
        return found

    def read(self, chunk: dict[str, Any] | None) -> bool:
        """Takes the usage from a native chunk. True when the chunk ends the answer."""
        if chunk is None or METRICS not in chunk:
            return False
        self.usage = counts.with_guardrail(counts.metrics_usage(chunk[METRICS]), chunk)
        return True

    def finish(self) -> None:
        super().finish()
        if not self.ended and self._last is not None:
            data, start, end = self._last
            self.ended = self.read(native_of(data[start:end]))


def native_of(payload: bytes) -> dict[str, Any] | None:
    """The native JSON inside a chunk event, None when it is none."""
    event = counts.answer_of(payload)
    encoded = event.get("bytes") if event is not None else None
    if type(encoded) is not str:
        return None
    try:
        chunk = orjson.loads(binascii.a2b_base64(encoded))
    except (ValueError, binascii.Error):
        return None
    return chunk if type(chunk) is dict else None
