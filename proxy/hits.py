"""Answers that cost nothing: ledgered as a HIT, then given to the client.

A HIT shows the usage and the cost of the original. The bank is asked before anything is given away:
who may not spend gets no hits either, and while the bank is away nobody does. One who reads along with
an answer under way is ledgered at its end, before the end is released.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from uuid import uuid4

from proxy import telemetry
from proxy.answer import CUT, Headers, answer_headers, usd
from proxy.call import Call, Kit
from proxy.clock import uuid7
from proxy.domain.ledger import Attempt, Settlement, State, Verdict, Why
from proxy.domain.usage import NOTHING, Usage
from proxy.errors import BankAway, Refusal, Unavailable
from proxy.flight import End, Flight, Reader
from proxy.ports import Answer, Sink

log = logging.getLogger("tollhouse.hits")

_REPLAY_CHUNK_BYTES = 64 << 10
#: how long a HIT that could not be ledgered at its end is offered to the bank, seconds; its id is too
#: old for the bank after that
_LATE_SECONDS = 240.0
_RECORDED = frozenset({Verdict.OK, Verdict.DUPLICATE})


class Followed(Enum):
    """How following an answer under way went."""

    DONE = 0
    FAILED = 1  #: nothing came of it, and this call has said nothing yet
    TIRED = 2  #: this call has waited long enough, and has said nothing yet


@dataclass(slots=True, eq=False)
class _Following:
    """Counts as a running call, so that its leases are renewed and a shutdown waits for it."""

    call: Call


@dataclass(slots=True, kw_only=True)
class Hits:
    """One per worker."""

    kit: Kit
    #: True when a revocation may not have been heard of; then nothing is given away
    stale: Callable[[], bool]
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def replay(self, call: Call, sink: Sink, answer: Answer, result: str) -> None:
        """A finished answer, with a fresh request id. Raises `Refusal` before anything is said."""
        self._check_directory()
        await self._ledger(call, answer.usage, answer.cost)
        self.count(call, result, answer.usage, answer.cost)
        own = _own_headers(call, answer_age(answer))
        if not answer.stream:
            own.append((b"content-length", b"%d" % len(answer.body)))
        await sink.start(answer.status, answer_headers(own, answer.headers, str(uuid4())))
        at, body = 0, answer.body
        while answer.stream and len(body) - at > _REPLAY_CHUNK_BYTES and not sink.gone:
            await sink.send(body[at : at + _REPLAY_CHUNK_BYTES])
            at += _REPLAY_CHUNK_BYTES
        await sink.finish(body[at:])

    async def follow(self, flight: Flight, call: Call, sink: Sink) -> Followed:
        """Read along with an answer under way. Raises `Refusal` before anything is said."""
        following, reader = _Following(call), flight.join()
        self.kit.running.add(following)
        try:
            async with asyncio.timeout(self.kit.bounds.first_byte):
                while flight.began is None and not flight.over:
                    await flight.changed()
        except TimeoutError:
            return Followed.TIRED
        else:
            if flight.failed:
                return Followed.FAILED
            if flight.ended is None or flight.ended.answer is None:
                await self._read_along(flight, reader, call, sink)
            elif welcome(call, flight.ended.answer):
                result = "hit" if flight.ended.kept else "joined"
                await self.replay(call, sink, flight.ended.answer, result)
            else:
                return Followed.TIRED
            return Followed.DONE
        finally:
            flight.leave(reader)
            self.kit.running.discard(following)

    async def _read_along(self, flight: Flight, reader: Reader, call: Call, sink: Sink) -> None:
        self._check_directory()
        assert flight.began is not None  # noqa: S101 (who has not begun has failed or has an answer)
        call.headers.append((b"x-tollhouse-cache", b"hit"))
        status, content = flight.began
        await sink.start(status, answer_headers(_own_headers(call, 0), content, str(uuid4())))
        try:
            async with asyncio.timeout(self.kit.bounds.call):
                while not reader.lost:
                    data = flight.read(reader)
                    if data and not sink.gone:
                        await sink.send(data)
                    elif not data and flight.over:
                        break
                    elif not data:
                        await flight.changed()
            end = flight.ended
        except TimeoutError:
            end = None
        if end is None or reader.lost:
            end = End(complete=False, tail=call.broken(CUT))
        usage, saved = (end.usage, end.cost) if end.complete else (NOTHING, 0)
        await self._ledger_late(call, usage, saved)
        telemetry.shared(call.label, call.legs[0].target.model, "joined", usage, saved)
        await sink.finish(end.tail)

    def count(self, call: Call, result: str, usage: Usage = NOTHING, saved: int = 0) -> None:
        """`result`: hit, joined, miss or bypass."""
        shown = "hit" if result == "joined" else result
        call.headers.append((b"x-tollhouse-cache", shown.encode()))
        telemetry.shared(call.label, call.legs[0].target.model, result, usage, saved)

    # ---- the bank ----------------------------------------------------------------------------

    def _check_directory(self) -> None:
        if self.stale():
            raise Unavailable("the directory of keys is stale; please retry", reason="directory_stale")

    async def _ledger(self, call: Call, usage: Usage, saved: int) -> None:
        """Raises `Refusal` when the caller may not spend, `Unavailable` when the bank is away."""
        try:
            await self._record(call, *self._hit(call, usage), saved)
        except BankAway:
            raise Unavailable("the ledger does not answer; please retry", reason="bank_away") from None

    async def _ledger_late(self, call: Call, usage: Usage, saved: int) -> None:
        """The answer has been given, so the row follows when the bank is back."""
        hit = self._hit(call, usage)
        try:
            await self._record(call, *hit, saved)
        except BankAway:
            task = asyncio.create_task(self._persist(call, *hit, saved))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        except Refusal as refusal:
            log.warning("call %s read along and was not ledgered: %s", call.id, refusal.reason)

    async def _persist(self, call: Call, attempt: Attempt, settlement: Settlement, saved: int) -> None:
        deadline, pause = time.monotonic() + _LATE_SECONDS, 0.1
        while time.monotonic() < deadline:
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)
            try:
                return await self._record(call, attempt, settlement, saved)
            except BankAway:
                continue
            except Refusal:
                break
        log.error("call %s was answered for free and is not in the ledger", call.id)
        return None

    async def _record(self, call: Call, attempt: Attempt, settlement: Settlement, saved: int) -> None:
        admission = await self.kit.bank.record_hit(attempt, settlement, saved)
        if admission.verdict not in _RECORDED:
            raise call.deny(admission, 0, 0)
        telemetry.hit(call.label, call.legs[0].target.model, call.operation.label)

    def _hit(self, call: Call, usage: Usage) -> tuple[Attempt, Settlement]:
        """A row that is terminal from birth; the flight recorder has nothing to say about it."""
        leg, caller, attempt = call.legs[0], call.caller, uuid7()
        row = Attempt(
            attempt=attempt, call=call.id, tenant=caller.tenant, project=caller.project, key=caller.key,
            credential=caller.credential, recorder=self.kit.recorder.id, operation=call.operation,
            model=leg.model_label, target=leg.target_label, price=leg.price_label, ceiling=0, tags=call.tags,
        )  # fmt: skip
        latency = int((time.monotonic() - call.began) * 1000)
        settlement = Settlement(
            attempt=attempt, state=State.HIT, why=Why.CACHE, usage=usage, status=200, latency_ms=latency
        )
        return row, settlement


def welcome(call: Call, answer: Answer) -> bool:
    """Whether the client takes an answer of this age."""
    most = call.terms.max_age
    return answer.stream == call.stream and (most is None or answer_age(answer) <= most)


def answer_age(answer: Answer) -> int:
    """Seconds since it was made."""
    return max(0, int(time.time() - answer.made_at))


def _own_headers(call: Call, age: int) -> Headers:
    return [*call.headers, (b"age", b"%d" % age), (b"x-tollhouse-cost", usd(0))]
