"""Sends a planned answer: whole or streamed, at once or paced, and broken where a fault says so."""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import orjson

from proxy.simulator import eventstream
from proxy.simulator.account import Account, Seen
from proxy.simulator.config import Config
from proxy.simulator.dialects import Dialect, Outcome
from proxy.simulator.errors import CORAL_TAIL, Refusal
from proxy.simulator.faults import Fault
from proxy.simulator.prices import Usage
from proxy.simulator.runtime import Plan
from proxy.simulator.transport import Out

JSON = "application/json"
HTML_502 = b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>Bad Gateway</body>\r\n</html>\r\n"
#: Faults that decide how the bytes leave; the others change only what they say.
_DELIVERY_FAULTS = ("reset", "close", "silence", "exception", "unmodelled", "truncate", "badcrc", "garbage")
#: Lets the bytes before an abort reach the peer's socket; an abort drops what is still buffered here.
_SETTLE_SECONDS = 0.03
_FRAMES_PER_WRITE = 256


class Barrier:
    """While held, no inference answer leaves."""

    def __init__(self) -> None:
        self.waiting = 0
        self._open = asyncio.Event()
        self._open.set()

    @property
    def held(self) -> bool:
        return not self._open.is_set()

    def hold(self, *, hold: bool) -> None:
        if hold:
            self._open.clear()
        else:
            self._open.set()

    async def wait(self, out: Out) -> None:
        """Returns when the barrier opens or the client has gone."""
        if not self.held:
            return
        self.waiting += 1
        tasks = [asyncio.ensure_future(self._open.wait()), asyncio.ensure_future(out.wait_gone())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.waiting -= 1
            for task in tasks:
                task.cancel()


def refuse(out: Out, seen: Seen, dialect: Dialect, refusal: Refusal) -> None:
    body = orjson.dumps(dialect.error(refusal, seen.request_id))
    headers = [("x-amzn-RequestId", seen.request_id), ("Content-Type", JSON)]
    if dialect.bedrock_errors:
        headers.append(("x-amzn-ErrorType", refusal.name + CORAL_TAIL))
    else:
        headers += [("x-request-id", seen.request_id), ("x-amzn-ErrorType", refusal.name)]
    seen.status = refusal.status
    out.whole(refusal.status, headers, body)


def _headers(plan: Plan, outcome: Outcome) -> list[tuple[str, str]]:
    headers = [("x-amzn-RequestId", plan.request_id)]
    if not plan.route.dialect.bedrock_errors:
        headers.append(("x-request-id", plan.request_id))
    if plan.route.operation.startswith("InvokeModel"):
        if outcome.latency is not None:
            headers.append(("X-Amzn-Bedrock-PerformanceConfig-Latency", outcome.latency))
        if outcome.tier is not None:
            headers.append(("X-Amzn-Bedrock-Service-Tier", outcome.tier))
    return headers


def _count_headers(kind: str, outcome: Outcome, usage: Usage) -> list[tuple[str, str]]:
    headers = [("X-Amzn-Bedrock-Invocation-Latency", str(outcome.latency_ms))]
    if kind in {"both", "input"}:
        headers.append(("X-Amzn-Bedrock-Input-Token-Count", str(usage.input)))
    if kind == "both":
        headers.append(("X-Amzn-Bedrock-Output-Token-Count", str(usage.output)))
    written = usage.cache_write + usage.cache_write_1h
    if outcome.cached or usage.cache_read or written:
        headers.append(("X-Amzn-Bedrock-Cache-Read-Input-Token-Count", str(usage.cache_read)))
        headers.append(("X-Amzn-Bedrock-Cache-Write-Input-Token-Count", str(written)))
    return headers


class Delivery:
    def __init__(self, config: Config, account: Account) -> None:
        self._config = config
        self._account = account
        self.barrier = Barrier()

    def send(self, plan: Plan, out: Out) -> Coroutine[Any, Any, None] | None:
        """Answers at once where nothing has to be waited for, else returns what is left to do."""
        delay = plan.orders.of("delay")
        wait_ms = self._config.first_byte_ms + plan.orders.delay_ms + ((delay.number() or 0) if delay else 0)
        fault = plan.orders.of(*_DELIVERY_FAULTS)
        if wait_ms or fault is not None or self._config.tokens_per_second or self.barrier.held:
            return self._send_later(plan, out, wait_ms / 1000, fault)
        self._send_now(plan, out)
        return None

    async def _send_later(self, plan: Plan, out: Out, wait: float, fault: Fault | None) -> None:
        try:
            await self.barrier.wait(out)
            if wait:
                await asyncio.sleep(wait)
            if plan.call is not None and fault is not None and await self._break_early(out, fault):
                return
            if plan.call is None:
                self._send_now(plan, out)
            elif plan.route.stream:
                await self._stream(plan, out, fault)
            else:
                await self._send_whole(plan, out, fault)
        finally:
            self._end(plan)

    def _end(self, plan: Plan) -> None:
        if plan.lease is not None and plan.call is not None:
            plan.lease.end(plan.model.base, plan.call.usage)
            plan.lease = None

    def _complete(self, plan: Plan, out: Out) -> None:
        if plan.call is not None and not out.gone:
            self._account.complete(plan.call)

    def _send_now(self, plan: Plan, out: Out) -> None:
        if plan.refusal is not None:
            self._account.refuse(plan.seen, plan.refusal.name)
            refuse(out, plan.seen, plan.route.dialect, plan.refusal)
        elif plan.call is None:
            self._account.refuse(plan.seen, "HTML")
            plan.seen.status = 502
            out.whole(502, [("Content-Type", "text/html")], HTML_502)
        elif plan.route.stream:
            frames = self._frames(plan)
            self._start(plan, out)
            out.write(b"".join(frames))
            out.end()
            self._complete(plan, out)
        else:
            plan.seen.status = 200
            out.whole(200, *self._whole(plan))
            self._complete(plan, out)
        self._end(plan)

    async def _break_early(self, out: Out, fault: Fault) -> bool:
        """Faults that leave no byte."""
        if fault.kind not in {"reset", "close", "silence"} or fault.number() is not None:
            return False
        if fault.kind == "silence":
            await out.wait_gone()
        elif fault.kind == "reset":
            out.reset()
        else:
            out.close()
        return True

    def _whole(self, plan: Plan) -> tuple[list[tuple[str, str]], bytes]:
        assert plan.ask is not None  # noqa: S101 - a billed plan has all of them
        assert plan.reply is not None  # noqa: S101
        assert plan.outcome is not None  # noqa: S101
        dialect, outcome = plan.route.dialect, plan.outcome
        headers = [*_headers(plan, outcome), ("Content-Type", JSON)]
        if plan.route.operation == "InvokeModel" and outcome.usage is not None:
            headers += _count_headers(dialect.count_headers, outcome, outcome.usage)
        return headers, orjson.dumps(dialect.whole(plan.ask, plan.reply, outcome))

    async def _send_whole(self, plan: Plan, out: Out, fault: Fault | None) -> None:
        headers, body = self._whole(plan)
        if self._config.tokens_per_second and plan.call is not None:
            await asyncio.sleep(plan.call.usage.output / self._config.tokens_per_second)
        plan.seen.status = 200
        if fault is None:
            out.whole(200, headers, body)
            self._complete(plan, out)
        elif fault.kind == "truncate":
            out.whole(200, headers, body[: len(body) // 2])
        elif fault.kind in {"badcrc", "garbage"}:
            out.whole(200, headers, body[:-1] + b"\x00")
        else:
            out.start(200, headers, len(body))
            out.write(body[: len(body) // 2])
            await self._break(out, fault)

    async def _break(self, out: Out, fault: Fault) -> None:
        await out.drain()
        if fault.kind == "silence":
            await out.wait_gone()
            return
        await asyncio.sleep(_SETTLE_SECONDS)
        if fault.kind == "reset":
            out.reset()
        else:
            out.close()

    def _start(self, plan: Plan, out: Out) -> None:
        assert plan.outcome is not None  # noqa: S101 - a billed plan has it
        headers = [*_headers(plan, plan.outcome), ("Content-Type", plan.route.dialect.stream_type)]
        if plan.route.operation == "InvokeModelWithResponseStream":
            headers.append(("X-Amzn-Bedrock-Content-Type", JSON))
        plan.seen.status = 200
        out.start(200, headers)

    def _frames(self, plan: Plan) -> list[bytes]:
        assert plan.ask is not None  # noqa: S101 - a billed plan has all of them
        assert plan.reply is not None  # noqa: S101
        assert plan.outcome is not None  # noqa: S101
        dialect = plan.route.dialect
        frames = dialect.frames(plan.ask, plan.reply, plan.outcome)
        twice = plan.orders.of("usage")
        if twice is not None and twice.arguments[0] in {"twice", "decreasing"}:
            place = len(frames) + dialect.usage_at
            again = frames[place]
            if twice.arguments[0] == "decreasing" and plan.call is not None:
                less = Usage(input=plan.call.usage.input // 2, output=plan.call.usage.output // 2)
                lower = replace(plan.outcome, usage=less)
                again = dialect.frames(plan.ask, plan.reply, lower)[place]
            frames.insert(place + 1, again)
        return frames

    async def _stream(self, plan: Plan, out: Out, fault: Fault | None) -> None:
        frames = self._frames(plan)
        self._start(plan, out)
        kept = len(frames)
        if fault is not None:
            given = fault.number(1 if fault.kind == "exception" else 0)
            kept = min(kept, 1 if given is None else given)
            frames = self._bend(plan, frames, kept, fault)
            kept = len(frames)
        if not await self._paced(plan, out, frames):
            return
        if fault is not None and fault.kind in {"reset", "close", "silence"}:
            await self._break(out, fault)
        else:
            out.end()
            if fault is None or fault.kind == "badcrc":
                self._complete(plan, out)

    def _bend(self, plan: Plan, frames: list[bytes], kept: int, fault: Fault) -> list[bytes]:
        if fault.kind == "badcrc":
            if plan.route.dialect.stream_type.startswith("text/"):
                return frames
            place = min(kept, len(frames) - 1)
            return [*frames[:place], eventstream.corrupt(frames[place]), *frames[place + 1 :]]
        frames = frames[:kept]
        if fault.kind == "exception":
            member = fault.arguments[0] if fault.arguments else "throttlingException"
            frames.append(plan.route.dialect.exception_frame(member, "Simulated failure in mid-stream."))
        elif fault.kind == "unmodelled":
            frames.append(eventstream.unmodelled_error("SimulatedError", "Simulated failure in mid-stream."))
        elif fault.kind == "garbage":
            frames.append(b"\x00\x00\x00\x10garbage that is no frame at all")
        return frames

    async def _paced(self, plan: Plan, out: Out, frames: list[bytes]) -> bool:
        """False when the client left first."""
        pace = self._config.tokens_per_second
        if not pace or plan.call is None or not frames:
            for start in range(0, len(frames), _FRAMES_PER_WRITE):
                out.write(b"".join(frames[start : start + _FRAMES_PER_WRITE]))
                await out.drain()
            return not out.gone
        loop = asyncio.get_running_loop()
        gap = plan.call.usage.output / pace / len(frames)
        due = loop.time()
        for frame in frames:
            out.write(frame)
            await out.drain()
            if out.gone:
                return False
            due += gap
            ahead = due - loop.time()
            if ahead > 0:
                await asyncio.sleep(ahead)
        return not out.gone
