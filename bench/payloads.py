"""Canned answers of Bedrock and of OpenAI, and the requests that fetch them.

Whole answers are constants. Every event of a stream carries the moment it was written, sixteen digits
of monotonic microseconds between two `T`: all processes of one machine read the same clock, so the
reader knows how long each event was on its way.
"""

from __future__ import annotations

import json
import struct
import zlib
from base64 import b64encode
from dataclasses import dataclass

MODEL = "meta.llama3-1-405b-instruct-v1:0"
INVOKE = f"/model/{MODEL.replace(':', '%3A')}/invoke"
INVOKE_STREAM = f"{INVOKE}-with-response-stream"
CHAT = "/v1/chat/completions"
INPUT_TOKENS, OUTPUT_TOKENS = 42, 24
MARK = "T0000000000000000T"
TEXT = "Governance is cheap when it is designed before it is built, and measured while it is. " * 2

LLAMA_WHOLE = json.dumps(
    {
        "generation": TEXT,
        "prompt_token_count": INPUT_TOKENS,
        "generation_token_count": OUTPUT_TOKENS,
        "stop_reason": "stop",
    }
).encode()
CONVERSE_WHOLE = json.dumps(
    {
        "metrics": {"latencyMs": 12},
        "output": {"message": {"content": [{"text": TEXT}], "role": "assistant"}},
        "stopReason": "end_turn",
        "usage": {
            "inputTokens": INPUT_TOKENS,
            "outputTokens": OUTPUT_TOKENS,
            "totalTokens": INPUT_TOKENS + OUTPUT_TOKENS,
        },
    }
).encode()
CHAT_WHOLE = json.dumps(
    {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "bench",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": INPUT_TOKENS,
            "completion_tokens": OUTPUT_TOKENS,
            "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
        },
    }
).encode()
HEADERS = {
    "x-amzn-RequestId": "8a1c3c5e-0000-4000-8000-5f1d2b7a9c01",
    "X-Amzn-Bedrock-Input-Token-Count": str(INPUT_TOKENS),
    "X-Amzn-Bedrock-Output-Token-Count": str(OUTPUT_TOKENS),
    "X-Amzn-Bedrock-Invocation-Latency": "12",
}


def llama_request(size: int = 0) -> bytes:
    """An InvokeModel body of a few hundred bytes, or of about `size` bytes."""
    prompt = "Explain in two sentences why a reservation must be made before a call is sent. "
    prompt += "word " * (max(0, size - 160) // 5)
    return json.dumps({"prompt": prompt, "max_gen_len": 128, "temperature": 0.5}).encode()


def chat_request(model: str, *, stream: bool) -> bytes:
    prompt = "Explain in two sentences why a reservation must be made before a call is sent. "
    body = {
        "model": model,
        "max_tokens": 128,
        "temperature": 0.5,
        "messages": [{"role": "user", "content": prompt}],
    }
    if stream:
        body |= {"stream": True}
    return json.dumps(body).encode()


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream with a place for the moment it is written."""

    before: bytes
    after: bytes
    stamped: bool
    framed: bool  # an AWS event-stream frame, which ends with a checksum of everything before
    crc: int = 0

    def at(self, microseconds: int) -> bytes:
        if not self.stamped:
            return self.before
        stamp = b"%016d" % microseconds
        if not self.framed:
            return self.before + stamp + self.after
        rest = stamp + self.after
        return self.before + rest + struct.pack(">I", zlib.crc32(rest, self.crc))


def _event(raw: bytes, *, framed: bool) -> Event:
    before, mark, after = raw.partition(MARK.encode())
    if not mark:
        return Event(raw, b"", stamped=False, framed=False)
    before, after = before + b"T", b"T" + after
    if framed:
        after = after[:-4]
    return Event(before, after, True, framed, zlib.crc32(before) if framed else 0)


def _frame(kind: str, payload: bytes) -> bytes:
    headers = b""
    for name, value in (
        (":event-type", kind),
        (":content-type", "application/json"),
        (":message-type", "event"),
    ):
        headers += (
            bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
        )
    head = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    head += struct.pack(">I", zlib.crc32(head))
    rest = head + headers + payload
    return rest + struct.pack(">I", zlib.crc32(rest))


def llama_stream(events: int) -> list[Event]:
    """`events` chunks of InvokeModelWithResponseStream; the last one carries the metrics."""
    out = []
    for number in range(1, events + 1):
        last = number == events
        chunk: dict[str, object] = {
            "generation": "" if last else f" word{number}",
            "prompt_token_count": INPUT_TOKENS if number == 1 else None,
            "generation_token_count": number,
            "stop_reason": "stop" if last else None,
        }
        if last:
            chunk["amazon-bedrock-invocationMetrics"] = {
                "inputTokenCount": INPUT_TOKENS,
                "outputTokenCount": number,
                "invocationLatency": 1000,
                "firstByteLatency": 20,
            }
        native = b64encode(json.dumps(chunk, separators=(",", ":")).encode())
        raw = _frame("chunk", b'{"bytes":"%b","p":"%b"}' % (native, MARK.encode()))
        out.append(_event(raw, framed=True))
    return out


def converse_stream(events: int) -> list[Event]:
    """`events` text deltas of ConverseStream between its opening and closing events."""
    frames: list[tuple[str, dict[str, object]]] = [("messageStart", {"role": "assistant", "p": "abcd"})]
    frames += [
        ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": f"{MARK} "}, "p": "abcd"})
    ] * events
    frames += [
        ("contentBlockStop", {"contentBlockIndex": 0, "p": "abcd"}),
        ("messageStop", {"stopReason": "end_turn", "p": "abcd"}),
        (
            "metadata",
            {
                "metrics": {"latencyMs": 1000},
                "usage": {
                    "inputTokens": INPUT_TOKENS,
                    "outputTokens": events,
                    "totalTokens": INPUT_TOKENS + events,
                },
            },
        ),
    ]
    return [_event(_frame(kind, json.dumps(payload).encode()), framed=True) for kind, payload in frames]


def chat_stream(events: int) -> list[Event]:
    """`events` content chunks of a streamed chat completion, then its end and usage."""

    def chunk(delta: dict[str, str], finish: str | None, **more: object) -> bytes:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
        body: dict[str, object] = {
            "id": "chatcmpl-bench",
            "object": "chat.completion.chunk",
            "created": 1_700_000_000,
        }
        return b"data: " + json.dumps(body | {"model": "bench", "choices": choices} | more).encode() + b"\n\n"

    usage = {
        "prompt_tokens": INPUT_TOKENS,
        "completion_tokens": events,
        "total_tokens": INPUT_TOKENS + events,
    }
    raw = [chunk({"content": f"{MARK} "}, None)] * events
    raw += [chunk({}, "stop", usage=usage), b"data: [DONE]\n\n"]
    return [_event(each, framed=False) for each in raw]
