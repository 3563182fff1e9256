"""Server-sent events: taking streams apart, and writing the event that ends a broken one.

Events end with an empty line (LF or CRLF). Only `data:` and `event:` lines matter here; bytes are
passed on as they came.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from proxy.bedrock.eventstream import BrokenStream

#: one event; Bedrock's largest are a few hundred kilobytes
EVENT_BYTES_MAX = 16 << 20


class EventSplitter:
    """Collects chunks until they hold whole events. Each byte is searched once."""

    __slots__ = ("_parts", "_size", "_tail")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._tail = b""

    @property
    def pending(self) -> bytes:
        """What came after the last whole event."""
        return b"".join(self._parts)

    def feed(self, chunk: bytes) -> bytes:
        """All whole events so far, as one piece. Raises `BrokenStream` for an endless event."""
        # an event's end may straddle chunks: the last three bytes are looked at again
        seam = self._tail + chunk
        end = max(_after(seam, b"\n\n"), _after(seam, b"\n\r\n")) - len(self._tail)
        self._tail = seam[-3:]
        if end <= 0:
            self._parts.append(chunk)
            self._size += len(chunk)
            if self._size > EVENT_BYTES_MAX:
                raise BrokenStream("An event is larger than allowed.")
            return b""
        self._parts.append(chunk[:end])
        whole = b"".join(self._parts)
        rest = chunk[end:]
        self._parts, self._size = ([rest], len(rest)) if rest else ([], 0)
        return whole


def _after(data: bytes, mark: bytes) -> int:
    place = data.rfind(mark)
    return -1 if place < 0 else place + len(mark)


def events(data: bytes) -> Iterator[tuple[int, str, bytes]]:
    """Of whole events: where each begins, its `event:` name, and its data."""
    start = 0
    for raw in blocks(data):
        name, lines = "", []
        for line in raw.splitlines():
            if line.startswith(b"data:"):
                lines.append(line[5:].removeprefix(b" "))
            elif line.startswith(b"event:"):
                name = line[6:].strip().decode("utf-8", "replace")
        yield start, name, b"\n".join(lines)
        start += len(raw)


def blocks(data: bytes) -> Iterator[bytes]:
    """The events of `data` with the empty line that ends each."""
    start = 0
    while start < len(data):
        plain, carriage = data.find(b"\n\n", start), data.find(b"\n\r\n", start)
        if plain >= 0 and (carriage < 0 or plain < carriage):
            end = plain + 2
        elif carriage >= 0:
            end = carriage + 3
        else:
            end = len(data)
        yield data[start:end]
        start = end


def error_event(dialect: str, kind: str, message: str) -> bytes:
    """The event that ends a broken stream, in the words of the route's clients.

    `dialect` is `chat_completions`, `responses` or `messages`. OpenAI's client raises for a chunk
    with `error`; Responses has no such event, its clients get `error` as an event of its own.
    """
    if dialect == "messages":
        body: dict[str, Any] = {"type": "error", "error": {"type": kind, "message": message}}
        return b"event: error\ndata: " + orjson.dumps(body) + b"\n\n"
    if dialect == "responses":
        body = {"type": "error", "code": kind, "message": message, "param": None, "sequence_number": 0}
        return b"event: error\ndata: " + orjson.dumps(body) + b"\n\n"
    body = {"error": {"message": message, "type": kind, "code": kind, "param": None}}
    return b"data: " + orjson.dumps(body) + b"\n\n"
