"""An upstream for what nginx cannot can: paced streams and delayed answers.

A process of its own, one asyncio protocol without a framework. Run as
`python -m bench.streamer PORT --events 50 --gap-ms 50 --delay-ms 0`.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

import uvloop

from bench import payloads

_WHOLE = {"invoke": payloads.LLAMA_WHOLE, "converse": payloads.CONVERSE_WHOLE}
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Amzn-Bedrock-Content-Type: application/json\r\n"
    b"x-amzn-RequestId: 8a1c3c5e-0000-4000-8000-5f1d2b7a9c01\r\nContent-Type: "
)


class Plan:
    """What every connection answers."""

    def __init__(self, events: int, gap: float, delay: float) -> None:
        self.gap = gap
        self.delay = delay
        self.streams = {
            "invoke-with-response-stream": payloads.llama_stream(events),
            "converse-stream": payloads.converse_stream(events),
            "completions": payloads.chat_stream(events),
        }

    def whole(self, name: str) -> bytes:
        body = _WHOLE.get(name, payloads.CHAT_WHOLE)
        head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        head += "".join(f"{k}: {v}\r\n" for k, v in payloads.HEADERS.items())
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Connection(asyncio.Protocol):
    """Serves one request after the other; bodies have a length, as every contestant sends them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.loop = asyncio.get_running_loop()
        self.buffer = bytearray()
        self.transport: Any = None
        self.alive = True

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.alive = False

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while True:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self.buffer[:end])
            total = end + 4 + _length(head)
            if len(self.buffer) < total:
                return
            body = bytes(self.buffer[end + 4 : total])
            del self.buffer[:total]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        name = head.split(b" ", 2)[1].rpartition(b"/")[2].decode()
        if name in self.plan.streams and (name != "completions" or _wants_stream(body)):
            kind = b"text/event-stream" if name == "completions" else b"application/vnd.amazon.eventstream"
            self.transport.write(_STREAM_HEAD + kind + b"\r\n\r\n")
            self._event(self.plan.streams[name], 0, self.loop.time())
        elif self.plan.delay:
            self.loop.call_later(self.plan.delay, self._write, self.plan.whole(name))
        else:
            self._write(self.plan.whole(name))

    def _write(self, data: bytes) -> None:
        if self.alive:
            self.transport.write(data)

    def _event(self, events: list[payloads.Event], at: int, due: float) -> None:
        """Write the event that is due; those without a stamp of their own follow at once."""
        if not self.alive:
            return
        out = []
        while at < len(events):
            event = events[at]
            frame = event.at(time.monotonic_ns() // 1000)
            out.append(b"%x\r\n%b\r\n" % (len(frame), frame))
            at += 1
            if event.stamped:
                break
        if at >= len(events):
            out.append(b"0\r\n\r\n")
        self.transport.write(b"".join(out))
        if at < len(events):
            due += self.plan.gap
            self.loop.call_at(due, self._event, events, at, due)


def _wants_stream(body: bytes) -> bool:
    return b'"stream":true' in body.replace(b" ", b"")


def _length(head: bytes) -> int:
    lower = head.lower()
    at = lower.find(b"content-length:")
    return int(lower[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0


async def serve(port: int, plan: Plan) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(plan), "127.0.0.1", port, backlog=2048)
    async with server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--events", type=int, default=50)
    parser.add_argument("--gap-ms", type=float, default=50.0)
    parser.add_argument("--delay-ms", type=float, default=0.0)
    given = parser.parse_args()
    uvloop.run(serve(given.port, Plan(given.events, given.gap_ms / 1000, given.delay_ms / 1000)))


if __name__ == "__main__":
    main()
