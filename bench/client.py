"""The load generator for what wrk cannot do: calls at a fixed rate, and many streams at once.

A process of its own. `python -m bench.client` reads one JSON order from standard input and prints one
JSON result. It reports the CPU it used itself, so that nobody has to believe that it was not the wall.

Fixed rate: a kernel timer says when each call is due, however late the answers are, and latency
counts from that moment, not from when a connection was free: nothing is left out because the server
was slow.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import re
import struct
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import uvloop

_STAMP = re.compile(rb"T(\d{16})T")
_STAMP_BYTES = 18
_END = b"0\r\n\r\n"
_CLOCK_MONOTONIC = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True)
class Tally:
    latencies: list[float] = field(default_factory=list)  # seconds; of streams: until the first event
    totals: list[float] = field(default_factory=list)
    delays: list[int] = field(default_factory=list)  # µs each event was on its way
    errors: dict[str, int] = field(default_factory=dict)
    started: int = 0
    complete: int = 0

    def wrong(self, what: str) -> None:
        self.errors[what] = self.errors.get(what, 0) + 1


class Line(asyncio.Protocol):
    """One keep-alive connection with at most one request under way."""

    def __init__(self, tally: Tally, idle: Any) -> None:
        self.tally = tally
        self.idle = idle  # called when the answer is complete
        self.transport: Any = None
        self.buffer = b""
        self.began = 0.0
        self.stream = 0  # events expected; 0: a whole answer
        self.seen = 0
        self.left = -1  # bytes of a whole answer still to come; -1: the head has not been read
        self.under_way = False
        self.lost = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self.under_way:
            self.tally.wrong("connection lost")
            self.under_way = False
            self.idle(self)

    def send(self, request: bytes, began: float, stream: int = 0) -> None:
        self.tally.started += 1
        self.began, self.stream, self.seen, self.left = began, stream, 0, -1
        self.buffer, self.under_way = b"", True
        if self.lost:
            self.connection_lost(None)
        else:
            self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        if not self.under_way:
            return
        now = time.monotonic()
        self.buffer += data
        if self.left == -1:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self.buffer[:end].lower()
            if not head.startswith(b"http/1.1 200"):
                self.tally.wrong("status " + head.split(b"\r\n", 1)[0].decode()[9:12])
                self.stream = 0
                self.began = -1.0
            self.buffer = self.buffer[end + 4 :]
            self.left = _length(head)
        if self.stream:
            self._events(now)
        else:
            self._whole(now)

    def _whole(self, now: float) -> None:
        over = self.buffer.endswith(_END) if self.left == -2 else len(self.buffer) >= self.left
        if over:
            if self.began >= 0:
                self.tally.latencies.append(now - self.began)
                self.tally.complete += 1
            self._done()

    def _events(self, now: float) -> None:
        arrived = int(now * 1e6)
        last = 0
        for match in _STAMP.finditer(self.buffer):
            if not self.seen:
                self.tally.latencies.append(now - self.began)
            self.seen += 1
            last = match.end()
            self.tally.delays.append(arrived - int(match[1]))
        self.buffer = self.buffer[max(last, len(self.buffer) - _STAMP_BYTES) :]
        if self.buffer.endswith(_END):
            if self.seen == self.stream:
                self.tally.complete += 1
                self.tally.totals.append(now - self.began)
            else:
                self.tally.wrong(f"{self.seen} of {self.stream} events")
            self._done()

    def _done(self) -> None:
        self.under_way = False
        self.idle(self)


def _length(head: bytes) -> int:
    """Of the body; -2 when it is chunked."""
    at = head.find(b"content-length:")
    return int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else -2


class Timer:
    """A periodic kernel timer in an event loop: exact to microseconds where the loop's own are to 1 ms."""

    def __init__(self, rate: float) -> None:
        self.descriptor = _LIBC.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self.interval = round(1e9 / rate)
        self.first = time.monotonic_ns() + 50_000_000
        parts = [*divmod(self.interval, 10**9), *divmod(self.first, 10**9)]
        spec = struct.pack("qqqq", *parts)
        if _LIBC.timerfd_settime(self.descriptor, 1, spec, None):  # 1: TFD_TIMER_ABSTIME
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def due(self) -> int:
        """Calls that have become due since the last reading."""
        return int(struct.unpack("Q", os.read(self.descriptor, 8))[0])


async def at_rate(order: dict[str, Any], request: bytes) -> Tally:
    """`rate` calls a second for `seconds`, however long each takes, over as many connections as it needs."""
    loop = asyncio.get_running_loop()
    tally, free = Tally(), []

    def idle(line: Line) -> None:
        if not line.lost:
            free.append(line)

    async def opened() -> Line:
        return (await loop.create_connection(lambda: Line(tally, idle), order["host"], order["port"]))[1]

    free.extend([await opened() for _ in range(order["connections"])])
    late: set[asyncio.Task[None]] = set()

    async def opened_late(due: float) -> None:
        try:
            line = await opened()
        except OSError:
            tally.started += 1
            tally.wrong("no connection")
            return
        line.send(request, due)

    timer, number = Timer(order["rate"]), 0
    most = int(order["rate"] * order["seconds"])
    over = loop.create_future()

    def tick() -> None:
        nonlocal number
        for _ in range(timer.due()):
            if number >= most:
                if not over.done():
                    over.set_result(None)
                return
            due = (timer.first + number * timer.interval) / 1e9
            number += 1
            if free:
                free.pop().send(request, due)
            else:
                task = loop.create_task(opened_late(due))
                late.add(task)
                task.add_done_callback(late.discard)

    loop.add_reader(timer.descriptor, tick)
    await over
    loop.remove_reader(timer.descriptor)
    await _until_all_ended(tally, order["patience"])
    return tally


async def streams(order: dict[str, Any], request: bytes) -> Tally:
    """Keep `streams` of them running, each replaced when it ends, until `rounds` times as many have begun.
    The first ones begin evenly over `spread` seconds, as in a service that has been running for a while.
    """
    loop = asyncio.get_running_loop()
    tally = Tally()
    most = order["streams"] * order["rounds"]

    def idle(line: Line) -> None:
        if tally.started < most and not line.lost:
            line.send(request, time.monotonic(), order["events"])

    async def begin(after: float) -> None:
        await asyncio.sleep(after)
        try:
            _, line = await loop.create_connection(lambda: Line(tally, idle), order["host"], order["port"])
        except OSError:
            tally.started += 1
            tally.wrong("no connection")
            return
        line.send(request, time.monotonic(), order["events"])

    gap = order["spread"] / order["streams"]
    await asyncio.gather(*(begin(number * gap) for number in range(order["streams"])))
    await _until_all_ended(tally, order["patience"])
    return tally


async def _until_all_ended(tally: Tally, patience: float) -> None:
    deadline = time.monotonic() + patience
    last = -1
    while tally.complete + sum(tally.errors.values()) < tally.started:
        if time.monotonic() > deadline:
            missing = tally.started - tally.complete - sum(tally.errors.values())
            tally.errors["no end within patience"] = missing
            return
        if tally.started != last:
            last = tally.started
            deadline = time.monotonic() + patience
        await asyncio.sleep(0.02)


def percentiles(values: list[float], scale: float) -> dict[str, float]:
    if not values:
        return {}
    ordered = sorted(values)
    return {
        f"p{at}": round(ordered[min(len(ordered) - 1, int(len(ordered) * at / 100))] * scale, 3)
        for at in (50, 95, 99)
    }


def main() -> None:
    order = json.load(sys.stdin)
    body = order["body"].encode()
    lines = [f"POST {order['path']} HTTP/1.1", f"Host: {order['host']}:{order['port']}"]
    lines += [f"{name}: {value}" for name, value in order["headers"].items()]
    lines += [f"Content-Length: {len(body)}"]
    request = ("\r\n".join(lines) + "\r\n\r\n").encode() + body
    began, used = time.monotonic(), time.process_time()
    tally = uvloop.run((at_rate if order["kind"] == "rate" else streams)(order, request))
    result = {
        "started": tally.started,
        "complete": tally.complete,
        "errors": tally.errors,
        "ms": percentiles(tally.latencies, 1e3),
        "total_ms": percentiles(tally.totals, 1e3),
        "delay_ms": percentiles([float(value) for value in tally.delays], 1e-3),
        "seconds": round(time.monotonic() - began, 3),
        "client_cpu_share": round((time.process_time() - used) / (time.monotonic() - began), 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
