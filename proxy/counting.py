"""Exact counts of a call's input, asked of Bedrock when only the byte bound keeps the call from its budget.

A byte bound is up to four times what English text really takes. Far from a limit that does not matter; near
it, it would refuse calls that fit. So a call that was denied may be asked about once, with CountTokens, and
its ceilings are then those of the count. Nothing of this is on the path of a call that fits.

A count is a sending of its own: it has a row in the ledger, with a ceiling and a cost of 0.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b

from proxy import telemetry
from proxy.call import Call, Counted, Kit, Question
from proxy.domain.ledger import Settlement, State, Why
from proxy.errors import Refusal, UpstreamFailure
from proxy.ports import UpstreamResponse
from proxy.reservation import Reservation

log = logging.getLogger("tollhouse.counting")

#: longest wait for one count, seconds
SECONDS = 5.0
#: counts under way at once, per worker
AT_ONCE = 4
#: counts remembered, for calls that are tried again
REMEMBERED = 2_000
#: a target that does not count is not asked again for so long, seconds
LEAVE_ALONE = 300.0


def bounded(count: int) -> int:
    """What a counted input is taken for, tokens: the count, and half a percent and 16 more. AWS documents
    that a count equals what is billed; Anthropic calls its own an estimate that may be off by a little.
    """
    return count + count // 200 + 16


class Counter:
    """One per worker. `per_second` is the rate of counts, with as many in a burst; 0: never count."""

    def __init__(self, per_second: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._clock = clock
        self._tokens = float(per_second)
        self._filled_at = clock()
        self._running = 0
        self._known: OrderedDict[bytes, int] = OrderedDict()
        self._left_alone: dict[str, float] = {}

    async def count(self, kit: Kit, call: Call) -> Counted:
        """Have the call's input counted. Raises nothing but what cancels."""
        result = await self._count(kit, call) if self._per_second else Counted.NEVER
        telemetry.COUNTS.labels(result.name.lower()).inc()
        return result

    async def _count(self, kit: Kit, call: Call) -> Counted:
        countable = call.countable
        question = await countable.question() if countable is not None else None
        if question is None or countable is None:
            return Counted.NEVER
        name = question.leg.target.label
        key = blake2b(name.encode() + b"\0" + question.body, digest_size=20).digest()
        count = self._known.get(key)
        if count is None:
            if self._left_alone.get(name, 0.0) > self._clock():
                return Counted.NEVER
            if not self._turn():
                return Counted.LATER
            count = await self._ask(kit, call, question)
            if count is None:
                return Counted.NEVER
            self._remember(key, count)
        countable.counted(bounded(count))
        return Counted.EXACT

    def _turn(self) -> bool:
        now = self._clock()
        self._tokens = min(self._per_second, self._tokens + (now - self._filled_at) * self._per_second)
        self._filled_at = now
        if self._tokens < 1 or self._running >= AT_ONCE:
            return False
        self._tokens -= 1
        return True

    def _remember(self, key: bytes, count: int) -> None:
        self._known[key] = count
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    async def _ask(self, kit: Kit, call: Call, question: Question) -> int | None:
        """Send it, and put it in the ledger. None when there is no count."""
        self._running += 1
        reservation = Reservation(kit, call)
        try:
            if await reservation.probe(question):
                return await self._sent(kit, question, reservation)
        except Refusal as refusal:
            log.warning("the input of call %s was not counted: %s", call.id, refusal)
        finally:
            self._running -= 1
            reservation.abandon()
        return None

    async def _sent(self, kit: Kit, question: Question, reservation: Reservation) -> int | None:
        attempt = reservation.open
        assert attempt is not None  # noqa: S101 (it was admitted)
        response: UpstreamResponse | None = None
        count: int | None = None
        state, why = State.CEILING, Why.CUT  # of 0: nothing can be billed
        try:
            async with asyncio.timeout(SECONDS):
                request = question.leg.request(attempt)
                reservation.sending(attempt)
                response = await kit.upstream.send(request)
                body = await response.read()
                count = question.read(body) if response.status == 200 else None
                state, why = State.POST, Why.USAGE
                if count is None:
                    void = kit.classify(response.status, response.headers, body).void
                    state, why = (State.VOID if void else State.CEILING), Why.UPSTREAM_ERROR
                    log.warning("CountTokens answered %d: %s", response.status, body[:200])
        except TimeoutError:
            why = Why.SILENCE
        except UpstreamFailure as failure:
            if not failure.sent:
                state, why = State.VOID, Why.NEVER_SENT
        finally:
            if response is not None:
                response.close()
        if count is None:
            self._left_alone[question.leg.target.label] = self._clock() + LEAVE_ALONE
        await reservation.resolve(_settlement(reservation, state, why, response))
        return count


def _settlement(
    reservation: Reservation, state: State, why: Why, response: UpstreamResponse | None
) -> Settlement:
    assert reservation.open is not None  # noqa: S101 (it is resolved once)
    request_id = response.headers.get("x-amzn-requestid", "")[:64] if response is not None else ""
    return Settlement(
        attempt=reservation.open,
        state=state,
        why=why,
        upstream_request_id=request_id or None,
        status=response.status if response is not None else 0,
        call=reservation.call.id,
    )
