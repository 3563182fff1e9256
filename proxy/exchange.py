"""One admitted call until it is resolved: sole owner of its reservation.

The exchange runs in a task of its own, so that a client that leaves, a handler that is cancelled
or a server that shuts down cannot decide about money. Whatever happens in here ends in exactly one
settlement per attempt:

    admit ──OK──> SENT ──> answer read to its usage ──> DONE ──> settle ──> the end is released
      │             │             │
      │             │             └─ broke off, silent, or no usage ──> CEILING
      │             └─ never left us, or a complete error before any output ──> VOID, next target
      └─ denied ──> the client hears why; nothing was held

A process that dies between any two arrows is finished by its flight recorder, or by the sweeper.
"""

from __future__ import annotations

import logging
import time
from uuid import UUID

from proxy import failpoints, telemetry, throughputs
from proxy.answer import CUT, SILENT, named, upstream_headers, usd
from proxy.breaker import signal_of
from proxy.call import Call, Ending, Kit, Leg
from proxy.deadline import Deadline
from proxy.domain.ledger import Settlement, State, Why
from proxy.domain.routing import Signal
from proxy.domain.usage import Usage
from proxy.errors import (
    Refusal,
    Unavailable,
    UpstreamAnswer,
    UpstreamFailure,
    UpstreamUnavailable,
)
from proxy.ports import Echo, Sink, UpstreamResponse
from proxy.reservation import Reservation

log = logging.getLogger("tollhouse.exchange")


class Exchange:
    """See the module. `run` is the whole life; it raises `Refusal` only before any answer began."""

    def __init__(self, kit: Kit, call: Call, sink: Sink) -> None:
        self.kit = kit
        self.call = call
        self.sink = sink
        self.sent_at = 0.0
        self.first_byte_at = 0.0
        self.usage: Usage | None = None
        self.reservation = Reservation(kit, call)
        self._begun = False  # the client has seen a status
        self._leg = call.legs[0]  # the one that is tried now
        self._deadline: Deadline | None = None
        self._draining = False

    async def run(self) -> None:
        self.kit.running.add(self)
        try:
            ending = await self._sendings()
            await self.reservation.resolve(ending.settlement)
            call, settlement = self.call, ending.settlement
            telemetry.finished(call.label, self._leg.target.model, call.operation.label, settlement)
            if self._leg.target.kind == "provisioned":
                throughputs.served(self._leg.target.label, settlement.usage)
            if self.call.concluded is not None:
                self.call.concluded(ending, self._leg)
            await self._deliver(ending)
        except BaseException:
            self.reservation.abandon()
            raise
        finally:
            await self._leave()

    async def _sendings(self) -> Ending:
        """Try the legs in order until one has an answer; the last ending is not settled yet."""
        leg, attempt = await self.reservation.enter()
        failpoints.reach("admitted", attempt)
        for following in (*self.call.legs[1:], None):
            ending = await self._forward(leg, attempt)
            self.kit.breakers.report(leg.target.label, ending.signal)
            self.reservation.known = ending.settlement
            if following is None or not ending.try_next:
                return ending
            failpoints.reach("before_failover", attempt)
            attempt = await self.reservation.move_on(ending, following)
            telemetry.FAILOVERS.labels(leg.target.model, following.target.model).inc()
            leg = following
        raise AssertionError("a call has at least one leg")

    # ---- forward and meter -------------------------------------------------------------------

    async def _forward(self, leg: Leg, attempt: UUID) -> Ending:
        """One sending, read to its end."""
        request = leg.request(attempt)
        self._leg = leg
        self.sent_at = self.first_byte_at = 0.0
        response: UpstreamResponse | None = None
        try:
            with Deadline(self.kit.bounds.call) as self._deadline:
                self.reservation.sending(attempt)
                self.sent_at = time.monotonic()
                telemetry.GOVERNANCE_SECONDS.observe(self.sent_at - self.call.began, self.call.id)
                response = await self.kit.upstream.send(request)
                self.first_byte_at = time.monotonic()
                failpoints.reach("after_first_byte", attempt)
                if not 200 <= response.status < 300:
                    return await self._failed(attempt, response)
                if self.call.stream:
                    return await self._streamed(leg, attempt, response)
                return await self._whole(leg, attempt, response)
        except Unavailable as unsent:
            never = self._settlement(attempt, State.VOID, Why.NEVER_SENT, None)
            return Ending(settlement=never, signal=Signal.NEUTRAL, refusal=unsent)
        except TimeoutError:
            return self._broke(attempt, Why.DRAIN_LIMIT if self._draining else Why.SILENCE, response)
        except UpstreamFailure as failure:
            if not failure.sent:
                refusal = UpstreamUnavailable(f"Bedrock cannot be reached in {leg.target.region}")
                never = self._settlement(attempt, State.VOID, Why.NEVER_SENT, None)
                return Ending(settlement=never, signal=Signal.FAULT, refusal=refusal, try_next=True)
            return self._broke(attempt, Why.CUT, response)
        finally:
            self._deadline = None
            if response is not None:
                response.close()

    async def _failed(self, attempt: UUID, response: UpstreamResponse) -> Ending:
        """A complete answer that is not 2xx: voided when it is on the list of proven errors."""
        body = await response.read()
        failure = self.kit.classify(response.status, response.headers, body)
        state = State.VOID if failure.void else State.CEILING
        settlement = self._settlement(attempt, state, Why.UPSTREAM_ERROR, response)
        refusal: Refusal
        if failure.ours:
            refusal = UpstreamUnavailable(failure.message, retry_after_ms=failure.retry_after_ms)
        else:
            refusal = UpstreamAnswer(failure.message, status=failure.status, kind=failure.kind)
        telemetry.UPSTREAM_ERRORS.labels(failure.kind).inc(1, self.call.id)
        signal = signal_of(failure) if failure.void else Signal.CEILING
        again = failure.void and failure.elsewhere
        return Ending(settlement=settlement, signal=signal, refusal=refusal, try_next=again)

    async def _whole(self, leg: Leg, attempt: UUID, response: UpstreamResponse) -> Ending:
        body = await response.read()
        usage = self.call.dialect.usage(response.headers, body)
        served = self.call.dialect.served(response.headers, body)
        settlement = self._metered(leg, attempt, usage, served, response)
        headers = upstream_headers(self.call.headers, self.call.dialect.heads(response.headers))
        body = self.call.dialect.answer(body)
        headers += (
            (b"content-length", b"%d" % len(body)),
            named(leg.target.model),
            (b"x-tollhouse-cost", usd(settlement.cost or leg.ceiling)),
        )
        signal = Signal.CEILING if usage is None else Signal.GOOD
        return Ending(settlement=settlement, signal=signal, whole=(response.status, headers, body))

    async def _streamed(self, leg: Leg, attempt: UUID, response: UpstreamResponse) -> Ending:
        meter = self.call.meter()
        headers = upstream_headers(self.call.headers, self.call.dialect.heads(response.headers))
        headers += (named(leg.target.model), (b"x-tollhouse-ceiling", usd(leg.ceiling)))
        await self.sink.start(response.status, headers)
        telemetry.FIRST_BYTE_SECONDS.observe(self.first_byte_at - self.call.began, self.call.id)
        self._begun = True
        feed, send = meter.feed, self.sink.send
        try:
            async for chunk in response.chunks():
                failpoints.reach("mid_stream", attempt)
                passed = feed(chunk)
                left = self.sink.gone
                if left:
                    self._start_draining()
                if passed and (self.call.kept or not left):
                    await send(passed)
            meter.finish()
        except UpstreamFailure as error:
            log.warning("attempt %s: the stream broke off: %s", attempt, error)
        if meter.usage is not None and meter.ended and meter.failure is None:
            settlement = self._metered(leg, attempt, meter.usage, meter.served, response)
            return Ending(settlement=settlement, tail=meter.held())
        settlement = self._settlement(attempt, State.CEILING, Why.CUT, response)
        tail = meter.held() if meter.failure or meter.ended else self.call.broken(CUT)
        return Ending(settlement=settlement, signal=Signal.CEILING, tail=tail)

    def _broke(self, attempt: UUID, why: Why, response: UpstreamResponse | None) -> Ending:
        """No complete answer: it may have been billed, so its ceiling stays charged."""
        settlement = self._settlement(attempt, State.CEILING, why, response)
        signal = Signal.NEUTRAL if self._draining else Signal.CEILING
        if self._begun:
            return Ending(settlement=settlement, signal=signal, tail=self.call.broken(CUT))
        if why is Why.SILENCE:
            refusal = UpstreamAnswer(SILENT, status=408, kind="ModelTimeoutException")
        else:
            refusal = UpstreamAnswer(CUT, status=424, kind="ModelErrorException")
        return Ending(settlement=settlement, signal=signal, refusal=refusal)

    def _start_draining(self) -> None:
        """The client left: read on for the usage, bounded in time and in number."""
        if self._draining or self._deadline is None:
            return
        self._draining = True
        self.kit.draining.add(self)
        over = len(self.kit.draining) > self.kit.bounds.drain_calls
        self._deadline.move(0 if over else self.kit.bounds.drain)

    # ---- settle ------------------------------------------------------------------------------

    def _metered(
        self, leg: Leg, attempt: UUID, usage: Usage | None, served: Echo, response: UpstreamResponse
    ) -> Settlement:
        """POST what Bedrock reported; an answer without usage keeps its ceiling."""
        if usage is None:
            return self._settlement(attempt, State.CEILING, Why.CUT, response)
        failpoints.reach("after_usage", attempt)
        tier, latency = served.tier or leg.asked[0], served.latency or leg.asked[1]
        sent_at = time.time() - (time.monotonic() - self.sent_at)
        if leg.completed is not None:
            usage = leg.completed(usage, sent_at)
        self.usage = usage
        cost, version = leg.priced.cost(usage, tier, latency, sent_at)
        upstream_cost = 0 if leg.priced.upstream_free else cost
        price = self.call.price_label(version) or leg.price_label
        settlement = self._settlement(attempt, State.POST, Why.USAGE, response)
        settlement.usage, settlement.price = usage, price
        settlement.cost, settlement.upstream_cost = cost, upstream_cost
        return settlement

    def _settlement(
        self, attempt: UUID, state: State, why: Why, response: UpstreamResponse | None
    ) -> Settlement:
        settlement = Settlement(attempt=attempt, state=state, why=why, call=self.call.id)
        if response is not None:
            settlement.status = response.status
            settlement.upstream_request_id = response.headers.get("x-amzn-requestid", "")[:64] or None
        if self.sent_at:
            settlement.latency_ms = int((time.monotonic() - self.sent_at) * 1000)
        if self.first_byte_at:
            settlement.first_byte_ms = int((self.first_byte_at - self.sent_at) * 1000)
        return settlement

    async def _deliver(self, ending: Ending) -> None:
        failpoints.reach("before_end", ending.settlement.attempt)
        if ending.whole is not None:
            status, headers, body = ending.whole
            await self.sink.start(status, headers)
            await self.sink.finish(body)
        elif ending.tail is not None:
            await self.sink.finish(ending.tail)
        elif ending.refusal is not None:
            raise ending.refusal

    async def _leave(self) -> None:
        self.kit.running.discard(self)
        if self._draining:
            self.kit.draining.discard(self)
        if self.usage is not None and self.call.learn is not None:
            self.call.learn(self.usage)
        if self.call.spend is not None:
            usage = self.usage
            used: int | None = None  # never sent: everything comes back
            if usage is not None:
                used = usage.input_tokens + usage.cache_write_tokens + usage.output_tokens
            elif self.reservation.sent:
                used = self.call.estimate  # unknown: the estimate stands
            await self.kit.limiter.settle(self.call.spend, used)
