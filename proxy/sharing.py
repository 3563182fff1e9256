"""Paying once: a call is answered from what is kept, from a like call under way, or leads.

    kept in Redis ───────────────────────────> replay, ledgered as a HIT
    under way in this worker ────────────────> follow: read along, ledgered as a HIT at the end
    under way in another worker ─────────────> wait, bounded, for what it keeps
    nowhere ─────────────────────────────────> lead: the call's own exchange, which others may follow

Calls are alike when they have the same fingerprint; that names the tenant, so nothing is ever shared
between two. The tries of one call (`amz-sdk-invocation-id`, `Idempotency-Key`) are alike to each other
even where nothing may be shared. A leader whose answer fails before it began hands over: one of those
who wait leads next, the rest wait on; after a few leaders everybody asks for himself.

Nothing here holds money. A HIT asks the bank, which refuses who may not spend; the leader's exchange
is an exchange like any other.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from uuid import uuid4

from proxy import telemetry
from proxy.answer import CUT, answer_headers, usd
from proxy.call import Call, Ending, Kit, Leg
from proxy.clock import uuid7
from proxy.domain.caching import TOKEN_MAX
from proxy.domain.fingerprint import promise_key, retry_key
from proxy.domain.ledger import Attempt, Settlement, State, Verdict, Why
from proxy.domain.usage import NOTHING, Usage
from proxy.errors import BankAway, Invalid, Unavailable
from proxy.flight import End, Flight, Tee, shareable
from proxy.ports import Answer, Cache, Sink

log = logging.getLogger("tollhouse.sharing")

#: what one flight keeps for those who come later, and all of a worker together, bytes
FLIGHT_BYTES = 8 << 20
FLIGHTS_BYTES = 256 << 20
#: after so many failed leaders nobody waits for another
_LEADERS_MAX = 3
#: how long the answer to a client that left is there for its next try, seconds
RETRY_SECONDS = 60
#: how long the answer to an `Idempotency-Key` is there, seconds
_PROMISED_SECONDS = 3600
_RENEW_SECONDS = 5.0
_FIRST_POLL_S, _LONGEST_POLL_S = 0.02, 0.25
_REPLAY_CHUNK_BYTES = 64 << 10
#: how long a HIT that was delivered while the bank was away is offered to it again, seconds; ids get
#: too old for the bank after that
_LEDGER_SECONDS = 240.0


class Followed(Enum):
    """How following went."""

    DONE = 0
    FAILED = 1  #: the leader failed before this call was answered
    TIRED = 2  #: this call has waited long enough


@dataclass(slots=True, eq=False)
class _Reading:
    """A call that reads another's answer; it counts as running, so its leases are renewed."""

    call: Call


@dataclass(slots=True, eq=False)
class Lead:
    """A call that must make its own answer. `sink` is where its exchange writes to."""

    call: Call
    sink: Sink
    flight: Flight | None = None
    key: bytes = b""
    _tee: Tee | None = field(default=None)


@dataclass(slots=True, kw_only=True)
class Sharing:
    """One per worker. `enter` raises `Refusal` only before any answer began."""

    kit: Kit
    cache: Cache
    #: True when a revocation may not have been heard of; then nothing is given away
    stale: Callable[[], bool]
    #: True when a guardrail stepped in; `body` is a whole answer or a stream
    intervened: Callable[[bytes], bool]
    keep_interventions: bool = False
    #: longest wait for another worker's answer, seconds
    patience: float = 10.0
    flights: dict[bytes, Flight] = field(default_factory=dict)
    kept_bytes: int = 0
    _leads: dict[Flight, Lead] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    # ---- cache -------------------------------------------------------------------------------

    async def enter(self, call: Call, sink: Sink) -> Lead | None:
        """None when the call was answered; else it leads."""
        try:
            lead = await self._enter(call, sink)
        except BaseException:
            await self._give_back(call)
            raise
        if lead is None:
            await self._give_back(call)
        return lead

    async def _enter(self, call: Call, sink: Sink) -> Lead | None:
        await self._check_promise(call)
        key = self._key(call)
        for _ in range(_LEADERS_MAX if key else 0):
            flight = self.flights.get(key)
            if flight is None:
                lead = self._take_off(call, sink, key)
                if lead is None:
                    break
                return await self._ask(lead)
            followed = await self._follow(flight, call, sink)
            if followed is Followed.DONE:
                return None
            if followed is Followed.TIRED:
                break
        self._count(call, "miss" if call.terms.look else "bypass")
        return Lead(call, sink)

    def _key(self, call: Call) -> bytes:
        """What others may find this call under, b"" for nothing."""
        terms = call.terms
        if terms.look:
            return call.fingerprint
        return retry_key(call.fingerprint, call.caller.key, terms.token) if terms.token else b""

    async def _check_promise(self, call: Call) -> None:
        """An `Idempotency-Key` means one request for a day. Raises `Invalid`."""
        terms = call.terms
        if not terms.promised:
            return
        if len(terms.token) > TOKEN_MAX:
            raise Invalid(
                f"an Idempotency-Key has at most {TOKEN_MAX} characters", reason="idempotency_key_too_long"
            )
        caller = call.caller
        key = promise_key(caller.tenant, caller.key, terms.token)
        if not await self.cache.promise(caller.tenant, key, call.fingerprint):
            raise Invalid(
                "this Idempotency-Key was used for another request", reason="idempotency_key_reused"
            )

    # ---- replay ------------------------------------------------------------------------------

    async def _ask(self, lead: Lead) -> Lead | None:
        """Look into the cache for the first of its kind in this worker; those who come meanwhile
        follow it, whatever it finds.
        """
        call, flight = lead.call, lead.flight
        assert flight is not None  # noqa: S101 (a lead that took off has one)
        try:
            answer = await self._kept(lead, flight)
            if answer is None:
                self._count(call, "miss" if call.terms.look else "bypass")
                return lead
            flight.end(End(complete=True, usage=answer.usage, cost=answer.cost, answer=answer))
            self._land(lead)
            await self._replay(call, lead.sink, answer, "hit")
        except BaseException:
            self._fail(lead)
            raise
        return None

    async def _kept(self, lead: Lead, flight: Flight) -> Answer | None:
        """What is kept, also by another worker while we wait for it."""
        call = lead.call
        tenant, terms = call.caller.tenant, call.terms
        if not (terms.look or terms.again):
            self.cache.announce(tenant, lead.key, flight.owner)
            return None
        deadline = time.monotonic() + self.patience
        pause = _FIRST_POLL_S
        while True:
            found = await self.cache.find(tenant, lead.key, flight.owner)
            if found.answer is not None:
                return found.answer if self._fresh(call, found.answer) else None
            if not found.busy or time.monotonic() > deadline:
                return None
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_POLL_S)

    @staticmethod
    def _fresh(call: Call, answer: Answer) -> bool:
        most = call.terms.max_age
        return answer.stream == call.stream and (most is None or _age(answer) <= most)

    async def _replay(self, call: Call, sink: Sink, answer: Answer, how: str) -> None:
        """Ledger, then answer: who has seen it finds its row."""
        self._check_directory()
        await self._ledger(call, answer.usage, answer.cost)
        self._count(call, how, answer.usage, answer.cost)
        own = [*call.headers, (b"age", b"%d" % _age(answer)), (b"x-tollhouse-cost", usd(0))]
        if not answer.stream:
            own.append((b"content-length", b"%d" % len(answer.body)))
        await sink.start(answer.status, answer_headers(own, answer.headers, str(uuid4())))
        body, last = answer.body, 0
        if answer.stream:
            while len(body) - last > _REPLAY_CHUNK_BYTES and not sink.gone:
                await sink.send(body[last : last + _REPLAY_CHUNK_BYTES])
                last += _REPLAY_CHUNK_BYTES
        await sink.finish(body[last:])

    # ---- follow ------------------------------------------------------------------------------

    async def _follow(self, flight: Flight, call: Call, sink: Sink) -> Followed:
        reading, reader = _Reading(call), flight.join()
        self.kit.running.add(reading)
        bounds = self.kit.bounds
        try:
            async with asyncio.timeout(bounds.first_byte):
                while flight.began is None and not flight.over:
                    await flight.changed()
            if flight.ended is not None and flight.ended.answer is not None:
                answer = flight.ended.answer
                if not self._fresh(call, answer):
                    return Followed.TIRED
                await self._replay(call, sink, answer, "joined" if flight.began or not answer.stream else "hit")
                return Followed.DONE
            if flight.began is None or flight.failed:
                return Followed.FAILED
            ...
        except TimeoutError:
            return Followed.TIRED
        finally:
            flight.leave(reader)
            self.kit.running.discard(reading)
        return Followed.DONE
