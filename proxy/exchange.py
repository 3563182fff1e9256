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

import asyncio
import logging
import time
from uuid import UUID

from proxy import failpoints, telemetry
from proxy.answer import CUT, SILENT, upstream_headers, usd, with_cost
from proxy.call import Call, Ending, Kit, Leg
from proxy.clock import uuid7
from proxy.domain.ledger import Admission, Attempt, Settlement, State, Verdict, Why
from proxy.domain.usage import Usage
from proxy.errors import (
    BankAway,
    Refusal,
    Unavailable,
    UpstreamAnswer,
    UpstreamFailure,
    UpstreamUnavailable,
)
from proxy.ports import Echo, Sink, UpstreamResponse

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
        self._open: UUID | None = None  # the attempt that holds a reservation of ours
        self._sent = False
        self._begun = False  # the client has seen a status
        self._known: Settlement | None = None  # how the open attempt ended, once it is known
        self._leg = call.legs[0]  # the one that is tried now
        self._drain: asyncio.Timeout | None = None
        self._draining = False

    async def run(self) -> None:
        self.kit.running.add(self)
        try:
            ending = await self._sendings()
            await self._resolve(ending.settlement)
            if self.call.concluded is not None:
                self.call.concluded(ending, self._leg)
            await self._deliver(ending)
        except BaseException:
            self._abandon()
            raise
        finally:
            await self._leave()

    async def _sendings(self) -> Ending:
        """Try the legs in order until one has an answer; the last ending is not settled yet."""
        leg, attempt = await self._enter()
        for following in (*self.call.legs[1:], None):
            ending = await self._forward(leg, attempt.attempt)
            self._known = ending.settlement
            if following is None or not ending.try_next:
                return ending
            attempt = await self._move_on(ending, following)
            leg = following
        raise AssertionError("a call has at least one leg")

    # ---- admit -------------------------------------------------------------------------------

    def _attempt(self, leg: Leg) -> Attempt:
        """Mint an attempt and open it in the flight recorder, before the bank can know it."""
        call, attempt = self.call, uuid7()
        try:
            recorder = self.kit.recorder.opened(attempt)
        except OSError as error:
            log.critical("flight recorder: %s", error)
            raise Unavailable(
                "the proxy cannot record calls; please retry", reason="recorder_failed"
            ) from None
        return Attempt(
            attempt=attempt, call=call.id, tenant=call.caller.tenant, project=call.caller.project,
            key=call.caller.key, credential=call.caller.credential, recorder=recorder,
            operation=call.operation, model=leg.model_label, target=leg.target_label,
            price=leg.price_label, ceiling=leg.ceiling, floor=leg.ceiling, tags=call.tags,
        )  # fmt: skip

    async def _enter(self) -> tuple[Leg, Attempt]:
        """Take the first reservation. A budget that is short may be asked for less (`clamp`), and one
        that is only held may be waited for; nothing is held after a refusal.
        """
        deadline = time.monotonic() + self.kit.bounds.held_wait
        while True:
            leg = self.call.legs[0]
            attempt = self._attempt(leg)
            admission = await self._admit(attempt)
            if _is_held(admission):
                return leg, attempt
            self._forget(attempt)
            if admission.verdict is Verdict.DENIED and admission.budget is not None:
                if self._ask_for_less(admission, leg):
                    continue
                left = deadline - time.monotonic()
                if left > 0 and admission.settled + self._least(admission, leg) <= admission.limit:
                    await self.kit.queue.wait(admission.budget, left)
                    continue
            raise self.call.deny(admission, leg.ceiling, self._least(admission, leg))

    async def _admit(self, attempt: Attempt) -> Admission:
        """Ask the bank. Raises `Unavailable` when it does not answer."""
        self._open, self._sent, self._known = attempt.attempt, False, None
        began = time.perf_counter()
        try:
            return await self.kit.bank.admit(attempt)
        except BankAway:
            raise Unavailable("the ledger does not answer; please retry", reason="bank_away") from None
        finally:
            telemetry.ADMIT_SECONDS.observe(time.perf_counter() - began)

    def _ask_for_less(self, admission: Admission, leg: Leg) -> bool:
        """Lower the output limit to what is affordable, where the budget allows it."""
        if not admission.clamp_floor:
            return False
        legs = self.call.clamp(
            admission.limit - admission.settled - admission.reserved, admission.clamp_floor
        )
        if legs is None or legs[0].ceiling >= leg.ceiling:
            return False
        self.call.legs = legs
        return True

    def _least(self, admission: Admission, leg: Leg) -> int:
        """The smallest ceiling this call could have on the denying budget."""
        return self.call.floor(admission.clamp_floor) if admission.clamp_floor else leg.ceiling

    def _forget(self, attempt: Attempt) -> None:
        """The bank has no row of it."""
        self._open = None
        self.kit.recorder.closed(attempt.attempt)

    async def _move_on(self, ending: Ending, following: Leg) -> Attempt:
        """Settle a failed sending and take the next reservation in one statement. When the next
        does not fit, the client hears the first sending's error, not a budget's.
        """
        attempt = self._attempt(following)
        self.kit.recorder.done(ending.settlement)
        try:
            admission = await self.kit.bank.settle_and_admit(ending.settlement, attempt)
        except BankAway:
            self.kit.settler.later(ending.settlement)
            self._void_later(attempt.attempt)
            self._open = None
            raise ending.refusal or Unavailable("the ledger does not answer; please retry") from None
        self.kit.recorder.closed(ending.settlement.attempt)
        telemetry.moved_on(ending.settlement)
        self._open, self._sent, self._known = attempt.attempt, False, None
        if not _is_held(admission):
            self._forget(attempt)
            raise ending.refusal or self.call.deny(admission, following.ceiling, following.ceiling)
        return attempt

    # ---- forward and meter -------------------------------------------------------------------

    async def _forward(self, leg: Leg, attempt: UUID) -> Ending:
        """One sending, read to its end."""
        request = leg.request(attempt)
        self._leg = leg
        response: UpstreamResponse | None = None
        try:
            async with asyncio.timeout(self.kit.bounds.call) as self._drain:
                self.kit.recorder.sent(attempt)
                self._sent = True
                self.sent_at = time.monotonic()
                response = await self.kit.upstream.send(request)
                self.first_byte_at = time.monotonic()
                failpoints.reach("after_first_byte", attempt)
                if not 200 <= response.status < 300:
                    return await self._failed(attempt, response)
                if self.call.stream:
                    return await self._streamed(leg, attempt, response)
                return await self._whole(leg, attempt, response)
        except TimeoutError:
            return self._broke(attempt, Why.DRAIN_LIMIT if self._draining else Why.SILENCE, response)
        except UpstreamFailure as failure:
            if not failure.sent:
                refusal = UpstreamUnavailable(f"Bedrock cannot be reached in {leg.target.region}")
                never = self._settlement(attempt, State.VOID, Why.NEVER_SENT, None)
                return Ending(settlement=never, refusal=refusal, try_next=True)
            return self._broke(attempt, Why.CUT, response)
        finally:
            self._drain = None
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
        telemetry.UPSTREAM_ERRORS.labels(failure.kind).inc()
        return Ending(settlement=settlement, refusal=refusal, try_next=failure.void and failure.elsewhere)

    async def _whole(self, leg: Leg, attempt: UUID, response: UpstreamResponse) -> Ending:
        body = await response.read()
        usage = self.call.dialect.usage(response.headers, body)
        served = self.call.dialect.served(response.headers, body)
        settlement = self._metered(leg, attempt, usage, served, response)
        headers = upstream_headers(self.call.headers, self.call.dialect.heads(response.headers))
        body = self.call.dialect.answer(body)
        headers.append((b"content-length", str(len(body)).encode()))
        headers.append((b"x-tollhouse-cost", usd(settlement.cost or leg.ceiling)))
        return Ending(settlement=settlement, whole=(response.status, headers, body))

    async def _streamed(self, leg: Leg, attempt: UUID, response: UpstreamResponse) -> Ending:
        meter = self.call.meter()
        headers = upstream_headers(self.call.headers, self.call.dialect.heads(response.headers))
        headers.append((b"x-tollhouse-ceiling", usd(leg.ceiling)))
        await self.sink.start(response.status, headers)
        telemetry.FIRST_BYTE_SECONDS.observe(self.first_byte_at - self.call.began)
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
        return Ending(settlement=settlement, tail=tail)

    def _broke(self, attempt: UUID, why: Why, response: UpstreamResponse | None) -> Ending:
        """No complete answer: it may have been billed, so its ceiling stays charged."""
        settlement = self._settlement(attempt, State.CEILING, why, response)
        if self._begun:
            return Ending(settlement=settlement, tail=self.call.broken(CUT))
        if why is Why.SILENCE:
            refusal = UpstreamAnswer(SILENT, status=408, kind="ModelTimeoutException")
        else:
            refusal = UpstreamAnswer(CUT, status=424, kind="ModelErrorException")
        return Ending(settlement=settlement, refusal=refusal)

    def _start_draining(self) -> None:
        """The client left: read on for the usage, bounded in time and in number."""
        if self._draining or self._drain is None:
            return
        self._draining = True
        self.kit.draining += 1
        loop = asyncio.get_running_loop()
        over = self.kit.draining > self.kit.bounds.drain_calls
        self._drain.reschedule(loop.time() + (0 if over else self.kit.bounds.drain))

    # ---- settle ------------------------------------------------------------------------------

    def _metered(
        self, leg: Leg, attempt: UUID, usage: Usage | None, served: Echo, response: UpstreamResponse
    ) -> Settlement:
        """POST what Bedrock reported; an answer without usage keeps its ceiling."""
        if usage is None:
            return self._settlement(attempt, State.CEILING, Why.CUT, response)
        tier, latency = served.tier or self.call.asked[0], served.latency or self.call.asked[1]
        sent_at = time.time() - (time.monotonic() - self.sent_at)
        if leg.guarded is not None and not usage.guardrail:
            usage = leg.guarded(usage, sent_at)
        self.usage = usage
        cost, version = leg.priced.cost(usage, tier, latency, sent_at)
        upstream_cost = 0 if leg.priced.upstream_free else cost
        price = self.call.price_label(version) or leg.price_label
        settlement = self._settlement(attempt, State.POST, Why.USAGE, response)
        return with_cost(settlement, usage, cost, upstream_cost, price)

    def _settlement(
        self, attempt: UUID, state: State, why: Why, response: UpstreamResponse | None
    ) -> Settlement:
        now = time.monotonic()
        return Settlement(
            attempt=attempt,
            state=state,
            why=why,
            upstream_request_id=response.headers.get("x-amzn-requestid", "")[:64] or None
            if response
            else None,
            status=response.status if response else 0,
            latency_ms=int((now - self.sent_at) * 1000) if self.sent_at else 0,
            first_byte_ms=int((self.first_byte_at - self.sent_at) * 1000) if self.first_byte_at else 0,
        )

    async def _resolve(self, settlement: Settlement) -> None:
        """Record, then settle; the bank may take its time, the end of the answer waits for it."""
        self.kit.recorder.done(settlement)
        self._open = None
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self.kit.bounds.hold):
                await self.kit.settler.settle(settlement)
        except (BankAway, TimeoutError):
            self.kit.settler.later(settlement)
        telemetry.SETTLE_SECONDS.observe(time.perf_counter() - began)
        call = self.call
        telemetry.finished(call.label, call.legs[0].target.model, call.operation.label, settlement)

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

    def _abandon(self) -> None:
        """Something unforeseen: resolve what is held by what is known."""
        attempt, self._open = self._open, None
        if attempt is None:
            return
        if self._known is not None:
            self.kit.settler.later(self._known)
        elif self._sent:
            self.kit.settler.later(Settlement(attempt=attempt, state=State.CEILING, why=Why.CUT))
        else:
            self._void_later(attempt)

    def _void_later(self, attempt: UUID) -> None:
        """The bank may or may not have the row; nothing was sent. A late commit is waited for."""
        self.kit.settler.later(Settlement(attempt=attempt, state=State.VOID, why=Why.NEVER_SENT), delay=1.0)

    async def _leave(self) -> None:
        self.kit.running.discard(self)
        if self._draining:
            self.kit.draining -= 1
        if self.usage is not None and self.call.learn is not None:
            self.call.learn(self.usage)
        if self.call.spend is not None:
            usage = self.usage
            used: int | None = None  # never sent: everything comes back
            if usage is not None:
                used = usage.input_tokens + usage.cache_write_tokens + usage.output_tokens
            elif self._sent:
                used = self.call.estimate  # unknown: the estimate stands
            await self.kit.limiter.settle(self.call.spend, used)


def _is_held(admission: Admission) -> bool:
    """The reservation is ours: taken now, or by an earlier try of the same attempt."""
    return admission.verdict is Verdict.OK or (
        admission.verdict is Verdict.DUPLICATE and admission.state is State.OPEN
    )
