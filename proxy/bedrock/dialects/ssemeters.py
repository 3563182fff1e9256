"""Meters of the SSE routes: which event ends each, and where it says the usage."""

from __future__ import annotations

import re
from typing import Any

from proxy.bedrock.dialects import counts
from proxy.bedrock.dialects.anthropic import AnthropicUsage
from proxy.bedrock.dialects.counts import Served
from proxy.bedrock.dialects.meters import HELD_BYTES_MAX, METRICS
from proxy.bedrock.eventstream import BrokenStream
from proxy.bedrock.mask import masked
from proxy.bedrock.sse import EventSplitter, blocks, events
from proxy.domain.usage import Usage


class SseMeter:
    """What the SSE routes share. Subclasses look at each event and say when the end begins."""

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.ended = False
        self.failure: str | None = None
        self.failure_message = ""
        self.served = counts.UNSAID
        self.events = 0
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._splitter = EventSplitter()

    def last(self, name: str, data: bytes) -> bool:
        """Whether this event, and so everything after it, is to be held back."""
        raise NotImplementedError

    def late(self, name: str, data: bytes) -> bool:
        """An event after the end began; it may still carry usage. False drops it."""
        raise NotImplementedError

    def feed(self, chunk: bytes) -> bytes:
        whole = self._splitter.feed(chunk)
        if not whole:
            return b""
        if self.ended:
            return self._hold(whole)
        for start, name, data in events(whole):
            self.events += 1
            if self.last(name, data):
                self.ended = True
                self.events -= 1
                self._hold(whole[start:])
                return whole[:start]
        return whole

    def _hold(self, whole: bytes) -> bytes:
        for raw in blocks(whole):
            _, name, data = next(events(raw))
            self.events += 1
            if self.late(name, data):
                kept = raw if self.failure is None else masked(raw.decode("utf-8", "replace")).encode()
                self._held.append(kept)
                self._held_bytes += len(kept)
        if self._held_bytes > HELD_BYTES_MAX:
            raise BrokenStream("The answer goes on long after its end.")
        return b""

    def fail(self, kind: Any, message: Any) -> None:
        """Notes the error event that ended the answer."""
        self.failure = kind if type(kind) is str and kind else "error"
        self.failure_message = masked(message) if type(message) is str else ""

    def finish(self) -> None:
        if self._splitter.pending.strip() and not self.ended:
            raise BrokenStream("The answer ended inside an event.")

    def held(self) -> bytes:
        held, self._held, self._held_bytes = b"".join(self._held), [], 0
        return held


def object_in(data: bytes) -> dict[str, Any]:
    """The JSON object of an event's data, empty when there is none."""
    return counts.answer_of(data) or {}


_DONE = b"[DONE]"
_METRICS = METRICS.encode()
_USAGE_OBJECT = re.compile(rb'"usage"\s*:\s*\{')


class ChatMeter(SseMeter):
    """Chat Completions: the usage comes in a chunk without choices, then `[DONE]`.

    `hide_usage` drops that chunk: the proxy asked for it, the client did not, and old clients fail
    on a chunk without choices.
    """

    def __init__(self, *, hide_usage: bool) -> None:
        super().__init__()
        self._hide_usage = hide_usage

    def last(self, name: str, data: bytes) -> bool:  # noqa: ARG002
        if data == _DONE:
            return True
        # the first chunk may say the tier; of the others only what may end the answer is parsed
        if self.events > 1 and not _may_end(data):
            return False
        chunk = object_in(data)
        self._read(chunk)
        return self.failure is not None or _usage_only(chunk)

    def late(self, name: str, data: bytes) -> bool:  # noqa: ARG002
        if data == _DONE:
            return True
        chunk = object_in(data)
        self._read(chunk)
        return not (self._hide_usage and _usage_only(chunk))

    def _read(self, chunk: dict[str, Any]) -> None:
        error = chunk.get("error")
        if error is not None and "choices" not in chunk:
            inner = error if type(error) is dict else {"message": error}
            self.fail(inner.get("code") or inner.get("type"), inner.get("message"))
        usage = counts.metrics_usage(chunk.get(METRICS)) or counts.openai_usage(chunk.get("usage"))
        if usage is not None:
            self.usage = usage
        self.served = Served(counts.body_tier(chunk) or self.served.tier, self.served.latency)


def _may_end(data: bytes) -> bool:
    """Most chunks say `"usage":null`, which is why the word alone is no sign. 0.4 µs."""
    if b'"usage"' in data and _USAGE_OBJECT.search(data) is not None:
        return True
    return b'"error"' in data or _METRICS in data


def _usage_only(chunk: dict[str, Any]) -> bool:
    return not chunk.get("choices") and type(chunk.get("usage")) is dict


class ResponsesMeter(SseMeter):
    """Responses: the usage stands in the response object of the last event."""

    _ENDS = frozenset({"response.completed", "response.incomplete", "response.failed", "error"})

    def last(self, name: str, data: bytes) -> bool:
        if name not in self._ENDS and (name or (b'"response.' not in data and b'"error"' not in data)):
            return False
        event = object_in(data)
        kind = event.get("type")
        if type(kind) is not str or kind not in self._ENDS:
            return False
        response = event.get("response")
        response = response if type(response) is dict else {}
        if kind == "error":
            self.fail(event.get("code"), event.get("message"))
        elif kind == "response.failed":
            error = response.get("error")
            error = error if type(error) is dict else {}
            self.fail(error.get("code"), error.get("message"))
        self.usage = counts.openai_usage(response.get("usage"))
        self.served = Served(counts.body_tier(response), None)
        return True

    def late(self, name: str, data: bytes) -> bool:  # noqa: ARG002
        return True


class MessagesMeter(SseMeter):
    """Messages: `message_delta` with a stop reason has the final usage, `message_stop` follows."""

    def __init__(self) -> None:
        super().__init__()
        self._usage = AnthropicUsage()

    def last(self, name: str, data: bytes) -> bool:
        if name == "message_start" or (not name and b'"message_start"' in data):
            self._usage.started(object_in(data))
            return False
        if name in {"content_block_delta", "content_block_start", "content_block_stop", "ping"}:
            return False
        return self._read(object_in(data))

    def late(self, name: str, data: bytes) -> bool:  # noqa: ARG002
        if data:
            self._read(object_in(data))
        return True

    def _read(self, event: dict[str, Any]) -> bool:
        """True when the event begins the end."""
        kind = event.get("type")
        if kind == "message_delta":
            self._usage.changed(event)
            delta = event.get("delta")
            if type(delta) is not dict or delta.get("stop_reason") is None:
                return False
            self.usage = self._usage.total(None)
            return True
        if kind == "message_stop":
            self.usage = self._usage.total(event.get(METRICS))
            return True
        if kind == "error":
            error = event.get("error")
            error = error if type(error) is dict else {}
            self.fail(error.get("type"), error.get("message"))
            return True
        return False
