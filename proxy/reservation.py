"""The money one exchange holds: the reservation of its current attempt, from mint to settlement.

Exactly one settlement follows every reservation that may have been taken, whatever happens to the
task that holds it: `resolve` on the way that was planned, `abandon` on every other.
"""

from __future__ import annotations

import logging
import time
from uuid import UUID

from proxy import telemetry
from proxy.call import Call, Counted, Ending, Kit, Leg, Question
from proxy.clock import uuid7
from proxy.deadline import Deadline
from proxy.domain.ledger import Admission, Attempt, Operation, Settlement, State, Verdict, Why
from proxy.errors import BankAway, Unavailable

log = logging.getLogger("tollhouse.exchange")

#: longer than an admit that was given up can still run in Postgres, seconds
_LATE_COMMIT_SECONDS = 1.5
#: answers after which a call's input is not asked about again
_SETTLED = frozenset({Counted.EXACT, Counted.NEVER})


class Reservation:
    """Not shared: one exchange, one attempt at a time."""

    def __init__(self, kit: Kit, call: Call) -> None:
        self.kit = kit
        self.call = call
        #: the attempt that may hold money of ours
        self.open: UUID | None = None
        #: when the bank was asked for it, monotonic seconds
        self.asked_at = 0.0
        self.sent = False
        #: how it ended, once that is known
        self.known: Settlement | None = None
        #: legs with the output limit that was asked for
        self._full = call.legs
        self._place = kit.queue.place()
        self._counted: Counted | None = None

    async def enter(self) -> tuple[Leg, UUID]:
        """Take the first reservation. Where a budget is short, the call's input may be counted instead of
        bounded, the call may be asked for less (`clamp`), and one that is only held may be waited for.
        Raises a `Refusal`; nothing is held then.
        """
        deadline = time.monotonic() + self.kit.bounds.held_wait
        waited: UUID | None = None
        while True:
            leg = self.call.legs[0]
            attempt = self._mint(leg)
            admission = await self._admit(attempt)
            if _is_held(admission):
                self.kit.spent.note(self.call.caller.key, leg.model_label, admission)
                if waited is not None:  # there may be room for the next one, too
                    self.kit.queue.freed((waited,))
                if self.call.legs is not self._full:
                    self._say_clamped(leg)
                return leg, attempt.attempt
            self._forget(attempt, admission)
            if admission.verdict is Verdict.DENIED and admission.budget is not None:
                if await self._count(admission, leg):
                    deadline = time.monotonic() + self.kit.bounds.held_wait
                    continue
                if self._ask_for_less(admission, leg):
                    continue
                left = deadline - time.monotonic()
                if left > 0 and admission.settled + self._least(admission, leg) <= admission.limit:
                    waited = admission.budget
                    await self.kit.queue.wait(waited, left, self._place)
                    self.call.legs = self._full  # what was asked for, not what fitted a moment ago
                    continue
            self.kit.spent.note(self.call.caller.key, leg.model_label, admission)
            raise self.call.deny(admission, leg.ceiling, self._least(admission, leg))

    async def probe(self, question: Question) -> bool:
        """Take a reservation of nothing for a sending that costs nothing; `open` is its attempt then.
        Raises `Unavailable`.
        """
        attempt = self._mint(question.leg, question.operation)
        admission = await self._admit(attempt)
        if _is_held(admission):
            return True
        self._forget(attempt, admission)
        return False

    async def move_on(self, ending: Ending, following: Leg) -> UUID:
        """Settle a failed sending and take the next reservation, in one statement. When the next does
        not fit, the client hears the first sending's error, not a budget's.
        """
        attempt = self._mint(following)
        self.record(ending.settlement)
        try:
            admission = await self.kit.bank.settle_and_admit(ending.settlement, attempt)
        except BaseException as error:
            self._void_later(attempt.attempt)
            if not isinstance(error, BankAway):
                raise
            self.kit.settler.later(ending.settlement)
            self.open = None
            raise ending.refusal or Unavailable("the ledger does not answer; please retry") from None
        self.kit.recorder.closed(ending.settlement.attempt)
        telemetry.moved_on(ending.settlement)
        self._hold(attempt.attempt)
        if not _is_held(admission):
            self._forget(attempt, admission)
            raise ending.refusal or self.call.deny(admission, following.ceiling, following.ceiling)
        return attempt.attempt

    def sending(self, attempt: UUID) -> None:
        """The next act is to send. Raises `Unavailable` when it must not be done: this process stood
        still for so long that the sweeper may have resolved the attempt, or cannot record it.
        """
        if time.monotonic() - self.asked_at > self.kit.bounds.call:
            raise Unavailable("the proxy stood still; please retry", reason="stood_still")
        try:
            self.kit.recorder.sent(attempt)
        except OSError as error:
            raise self._unrecorded(error) from None
        self.sent = True

    def record(self, settlement: Settlement) -> None:
        """Put down how the attempt ended. A recorder that is full only costs exactness after a crash."""
        self.known = settlement
        try:
            self.kit.recorder.done(settlement)
        except OSError as error:
            log.critical("flight recorder: %s", error)

    async def resolve(self, settlement: Settlement) -> None:
        """Record, then settle. The bank may take its time; the end of the answer waits for it."""
        self.record(settlement)
        began = time.perf_counter()
        try:
            with Deadline(self.kit.bounds.hold):
                await self.kit.settler.settle(settlement)
        except (BankAway, TimeoutError):
            self.kit.settler.later(settlement)
        self.open = None
        telemetry.SETTLE_SECONDS.observe(time.perf_counter() - began, self.call.id)

    def abandon(self) -> None:
        """Something unforeseen: resolve what may be held by what is known."""
        attempt, self.open = self.open, None
        if attempt is None:
            return
        if self.known is not None:
            self.kit.settler.later(self.known)
        elif self.sent:
            cut = Settlement(attempt=attempt, state=State.CEILING, why=Why.CUT, call=self.call.id)
            self.kit.settler.later(cut)
        else:
            self._void_later(attempt)

    # ---- inside ------------------------------------------------------------------------------

    def _mint(self, leg: Leg, operation: Operation | None = None) -> Attempt:
        """A new attempt, in the flight recorder before the bank can know it."""
        call, attempt = self.call, uuid7()
        try:
            recorder = self.kit.recorder.opened(attempt)
        except OSError as error:
            raise self._unrecorded(error) from None
        return Attempt(
            attempt=attempt, call=call.id, tenant=call.caller.tenant, project=call.caller.project,
            key=call.caller.key, credential=call.caller.credential, recorder=recorder,
            operation=operation or call.operation, model=leg.model_label, target=leg.target_label,
            price=leg.price_label, ceiling=leg.ceiling, floor=leg.ceiling, tags=call.tags,
        )  # fmt: skip

    def _unrecorded(self, error: OSError) -> Unavailable:
        log.critical("flight recorder: %s", error)
        return Unavailable("the proxy cannot record calls; please retry", reason="recorder_failed")

    def _hold(self, attempt: UUID) -> None:
        self.open, self.asked_at, self.sent, self.known = attempt, time.monotonic(), False, None

    async def _admit(self, attempt: Attempt) -> Admission:
        """Ask the bank. Raises `Unavailable` when it does not answer."""
        self._hold(attempt.attempt)
        began, ledgered = time.perf_counter(), None
        try:
            admission = await self.kit.bank.admit(attempt)
            if admission.verdict is Verdict.OK:
                ledgered = self.call.id
            return admission
        except BankAway:
            raise Unavailable("the ledger does not answer; please retry", reason="bank_away") from None
        finally:
            telemetry.ADMIT_SECONDS.observe(time.perf_counter() - began, ledgered)

    async def _count(self, admission: Admission, leg: Leg) -> bool:
        """Have the input counted, once, where that could make the call fit, or tell spent from held."""
        counts, countable = self.kit.counts, self.call.countable
        if counts is None or countable is None or self._counted in _SETTLED:
            return False
        best = countable.at_best(admission.clamp_floor or None)
        fits = admission.settled + admission.reserved + best <= admission.limit
        spent = admission.settled + self._least(admission, leg) > admission.limit
        if not fits and not (spent and admission.settled + best <= admission.limit):
            return False
        self._counted = await counts.count(self.kit, self.call)
        if self._counted is not Counted.EXACT:
            return False
        self.call.legs = self._full = countable.legs()
        return True

    def _ask_for_less(self, admission: Admission, leg: Leg) -> bool:
        """Lower the output limit to what is affordable, where the budget allows it."""
        if not admission.clamp_floor:
            return False
        headroom = admission.limit - admission.settled - admission.reserved
        legs = self.call.clamp(headroom, admission.clamp_floor)
        if legs is None or legs[0].ceiling >= leg.ceiling:
            return False
        self.call.legs = legs
        return True

    def _say_clamped(self, leg: Leg) -> None:
        telemetry.CLAMPED.labels(leg.target.model).inc()
        self.call.headers.append((b"x-tollhouse-clamped", b"%d" % leg.limit))

    def _least(self, admission: Admission, leg: Leg) -> int:
        """The smallest ceiling this call could have on the denying budget. While its input still waits to
        be counted, the least that the count could make of it: a refusal must not be final by a guess.
        """
        if self._counted is Counted.LATER and self.call.countable is not None:
            return self.call.countable.at_best(admission.clamp_floor or None)
        return self.call.floor(admission.clamp_floor) if admission.clamp_floor else leg.ceiling

    def _forget(self, attempt: Attempt, admission: Admission) -> None:
        """The bank has no row of it; but an earlier try that was cut off may still commit one."""
        self.open = None
        if admission.undecided:
            self._void_later(attempt.attempt)
        else:
            self.kit.recorder.closed(attempt.attempt)

    def _void_later(self, attempt: UUID) -> None:
        """The bank may or may not have the row; nothing was sent. A late commit is waited for."""
        void = Settlement(attempt=attempt, state=State.VOID, why=Why.NEVER_SENT)
        self.kit.settler.later(void, delay=_LATE_COMMIT_SECONDS)


def unless_spent(kit: Kit, call: Call) -> None:
    """Raises the refusal of a call for which the bank has just said that not even its least ceiling would fit, if
    all that is held came back. Otherwise the bank is to be asked.

    A raised exception that a frame of its traceback also names is a cycle, and 4,000 a second of those stop the
    worker for 35 ms now and then while they are collected: hence no name.
    """
    leg = call.legs[0]
    admission = kit.spent.last(call.caller.key, leg.model_label)
    if admission is None:
        return
    least = call.floor(admission.clamp_floor) if admission.clamp_floor else leg.ceiling
    best = least if call.countable is None else call.countable.at_best(admission.clamp_floor or None)
    fits = admission.settled + min(least, best) <= admission.limit
    if not fits and not kit.spent.due(call.caller.key, leg.model_label):
        raise call.deny(admission, leg.ceiling, least)


def _is_held(admission: Admission) -> bool:
    """The reservation is ours: taken now, or by an earlier try of the same attempt."""
    return admission.verdict is Verdict.OK or (
        admission.verdict is Verdict.DUPLICATE and admission.state is State.OPEN
    )
