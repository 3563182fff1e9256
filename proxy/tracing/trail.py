"""What is taken down of one traced call, and the ports through which it is.

A traced call goes the way of every other, with a kit of its own whose ports take down when they were used
and pass everything on. So the way itself has nothing to ask about tracing, and a call that is not traced
pays nothing for it. Nothing here decides anything, and nothing here waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from proxy.call import Call, Ending, Kit, Leg
from proxy.domain.bucket import Decision, Spend
from proxy.domain.catalogue import Target
from proxy.domain.ledger import Admission, Attempt, Operation, Settled, Settlement
from proxy.domain.tenant import Caller
from proxy.errors import Refusal, UpstreamFailure
from proxy.ports import Bank, Failure, Limiter, Recorder, Sink, Upstream, UpstreamRequest, UpstreamResponse
from proxy.tracing.sampling import Origin


@dataclass(slots=True)
class Step:
    """Something that the call waited for. Times are monotonic seconds."""

    name: str
    began: float
    ended: float
    #: what came of it, one of few words; "" when it was cut off
    result: str = ""
    attempt: Attempt | None = None


@dataclass(slots=True)
class Sending:
    """One request upstream. `ended` and `settlement` are there once its answer has been read."""

    began: float
    target: Target
    attempt: Attempt | None
    first_byte: float = 0.0
    ended: float = 0.0
    settlement: Settlement | None = None
    #: what went wrong, as Bedrock or the client of Bedrock names it
    error: str = ""


@dataclass(slots=True, kw_only=True)
class Trail:
    """One call. It is over, and `told` once, when the handler and the answer's own task have both left it:
    an answer outlives its handler when the client leaves.
    """

    origin: Origin
    call_id: UUID
    operation: Operation
    began: float
    told: Callable[[Trail], None]
    sink: Sink
    caller: Caller | None = None
    call: Call | None = None
    #: base model that was asked for, where the call got so far
    model: str | None = None
    refusal: Refusal | None = None
    #: name of what was raised and is no refusal
    failure: str = ""
    #: how its last sending ended
    ending: Ending | None = None
    #: it was answered without a sending
    given: bool = False
    steps: list[Step] = field(default_factory=list)
    sendings: list[Sending] = field(default_factory=list)
    ended: float = 0.0
    _inside: int = 0
    _attempt: Attempt | None = None
    _done_at: float = 0.0

    # ---- how long it lasts -------------------------------------------------------------------

    def enter(self) -> None:
        self._inside += 1

    def leave(self) -> None:
        self._inside -= 1
        if not self._inside and not self.ended:
            self.ended = time.monotonic()
            self.told(self)
            # The call names this trail and a refusal its frames: bodies must not wait for the garbage collector.
            self.call = self.refusal = self.ending = None

    # ---- what happens ------------------------------------------------------------------------

    def watched(self, kit: Kit) -> Kit:
        """The kit for this call alone. What changes in it is shared: sets and objects, no numbers."""
        return replace(
            kit,
            bank=_Bank(kit.bank, self),
            recorder=_Recorder(kit.recorder, self),
            upstream=_Upstream(kit.upstream, self),
            limiter=_Limiter(kit.limiter, self),
            classify=self._classifying(kit.classify),
        )

    def step(self, name: str, began: float, result: str = "", attempt: Attempt | None = None) -> None:
        self.steps.append(Step(name, began, time.monotonic(), result, attempt))

    def admitted(self, attempt: Attempt, began: float, admission: Admission | None) -> None:
        self._attempt = attempt
        result = "" if admission is None else admission.verdict.name.lower()
        self.step("admit", began, result, attempt)

    def sent(self, request: UpstreamRequest) -> Sending:
        sending = Sending(time.monotonic(), request.target, self._attempt)
        self.sendings.append(sending)
        return sending

    def done(self, settlement: Settlement) -> None:
        """It is known how a sending ended; to settle it comes next."""
        self._done_at = time.monotonic()
        for sending in self.sendings:
            if sending.attempt is not None and sending.attempt.attempt == settlement.attempt:
                sending.settlement, sending.ended = settlement, self._done_at

    def concluded(self, ending: Ending, _: Leg) -> None:
        """The last sending is settled."""
        self.ending = ending
        self.step("settle", self._done_at, ending.settlement.state.name)

    def _classifying(
        self, classify: Callable[[int, Mapping[str, str], bytes], Failure]
    ) -> Callable[[int, Mapping[str, str], bytes], Failure]:
        def classified(status: int, headers: Mapping[str, str], body: bytes) -> Failure:
            failure = classify(status, headers, body)
            if self.sendings:
                self.sendings[-1].error = failure.kind
            return failure

        return classified


@dataclass(slots=True)
class _Bank:
    inner: Bank
    trail: Trail

    async def admit(self, attempt: Attempt) -> Admission:
        began, admission = time.monotonic(), None
        try:
            admission = await self.inner.admit(attempt)
            return admission
        finally:
            self.trail.admitted(attempt, began, admission)

    async def settle(self, settlement: Settlement) -> Settled:
        return await self.inner.settle(settlement)

    async def settle_and_admit(self, settlement: Settlement, attempt: Attempt) -> Admission:
        began, admission = time.monotonic(), None
        try:
            admission = await self.inner.settle_and_admit(settlement, attempt)
            return admission
        finally:
            self.trail.admitted(attempt, began, admission)

    async def record_hit(self, attempt: Attempt, settlement: Settlement, saved: int) -> Admission:
        return await self.inner.record_hit(attempt, settlement, saved)


@dataclass(slots=True)
class _Recorder:
    inner: Recorder
    trail: Trail

    @property
    def id(self) -> UUID:
        return self.inner.id

    def opened(self, attempt: UUID) -> UUID:
        return self.inner.opened(attempt)

    def sent(self, attempt: UUID) -> None:
        self.inner.sent(attempt)

    def done(self, settlement: Settlement) -> None:
        self.trail.done(settlement)
        self.inner.done(settlement)

    def closed(self, attempt: UUID) -> None:
        self.inner.closed(attempt)


@dataclass(slots=True)
class _Upstream:
    inner: Upstream
    trail: Trail

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        sending = self.trail.sent(request)
        try:
            response = await self.inner.send(request)
        except UpstreamFailure as failure:
            sending.error = "" if failure.sent else "unreachable"
            raise
        sending.first_byte = time.monotonic()
        return response


@dataclass(slots=True)
class _Limiter:
    inner: Limiter
    trail: Trail

    async def spend(self, spend: Spend) -> Decision:
        began, result = time.monotonic(), ""
        try:
            decision = await self.inner.spend(spend)
            result = "allowed" if decision.allowed else "limited"
            return decision
        finally:
            self.trail.step("limit", began, result)

    async def settle(self, spend: Spend, actual_tokens: int | None) -> None:
        await self.inner.settle(spend, actual_tokens)

    async def renew(self, spends: Sequence[Spend]) -> None:
        await self.inner.renew(spends)
