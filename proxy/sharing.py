"""Paying once: a call is answered from what is kept, from a like call under way, or leads.

    kept in Redis ───────────────────> replay, ledgered as a HIT
    under way in this worker ────────> read along, ledgered as a HIT at the end
    under way in another worker ─────> wait, bounded, for what it keeps
    nowhere ─────────────────────────> lead: the call's own exchange, which others may follow

Calls are alike when they have the same fingerprint; that names the tenant, so nothing is ever shared
between two. The tries of one call (`amz-sdk-invocation-id`, `Idempotency-Key`) are alike to each other
even where nothing may be shared. A leader whose answer fails before it began hands over: one of those
who wait leads next and the rest wait on; after a few leaders everybody asks for himself.

Nothing here holds money. A HIT asks the bank (`proxy.hits`); the leader's exchange is an exchange like
any other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from proxy import telemetry
from proxy.call import Call, Ending, Leg
from proxy.domain.caching import TOKEN_MAX
from proxy.domain.fingerprint import promise_key, retry_key
from proxy.domain.ledger import Settlement, State
from proxy.errors import Invalid
from proxy.flight import End, Flight, Tee, shareable
from proxy.hits import Followed, Hits, welcome
from proxy.ports import Answer, Cache, Sink

#: what one flight keeps for those who come later, and all of a worker together, bytes
FLIGHT_BYTES = 8 << 20
FLIGHTS_BYTES = 256 << 20
#: how long the next try of a client that left finds the answer, seconds
RETRY_SECONDS = 60
#: how long an `Idempotency-Key` finds its answer, seconds
PROMISED_SECONDS = 3600
#: after so many failed leaders nobody waits for another
_LEADERS_MAX = 3
#: whether the client of a whole answer is still there is not known; one that took less than this is
#: not asked for again, seconds
_PROMPT_SECONDS = 1.0
_RENEW_SECONDS = 5.0
_FIRST_POLL_S, _LONGEST_POLL_S = 0.02, 0.25


@dataclass(slots=True, eq=False)
class Lead:
    """A call that makes its own answer. `sink` is where its exchange writes to.

    `key` is what others find it under, b"" for nobody. `flight` None: nothing of it is kept.
    """

    call: Call
    sink: Sink
    key: bytes = b""
    flight: Flight | None = None
    legs: tuple[Leg, ...] = ()
    #: other workers may wait for it
    turn: bool = False


@dataclass(slots=True, kw_only=True)
class Sharing:
    """One per worker. `run` keeps the turns that are in use."""

    hits: Hits
    cache: Cache
    #: True when a guardrail stepped into an answer, given its bytes
    intervened: Callable[[bytes], bool]
    keep_interventions: bool = False
    #: longest wait for another worker's answer, seconds
    patience: float = 10.0
    leads: dict[bytes, Lead] = field(default_factory=dict)
    #: leads whose answer waits for the next try of a client that left, oldest first
    _lingering: dict[bytes, Lead] = field(default_factory=dict)
    _bytes: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def enter(self, call: Call, sink: Sink) -> Lead | None:
        """None when the call was answered; else it leads, and `landed` must be told when its exchange
        is over. Raises `Refusal` before anything is said.
        """
        if call.terms.promised:
            await self._check_promise(call)
        key = self._key(call)
        for _ in range(_LEADERS_MAX if key else 0):
            running = self.leads.get(key)
            if running is None or running.flight is None or not running.flight.joinable:
                return await self._first(call, sink, key)
            followed = await self.hits.follow(running.flight, call, sink)
            if followed is Followed.DONE:
                return None
            if followed is Followed.TIRED:
                break
        return self._alone(call, sink, keep=not key)

    def _key(self, call: Call) -> bytes:
        terms = call.terms
        if terms.look:
            return call.fingerprint
        return retry_key(call.fingerprint, call.caller.key, terms.token) if terms.token else b""

    async def _check_promise(self, call: Call) -> None:
        """An `Idempotency-Key` means one request of one key for a day. Raises `Invalid`."""
        token, caller = call.terms.token, call.caller
        if len(token) > TOKEN_MAX:
            text = f"an Idempotency-Key has at most {TOKEN_MAX} characters"
            raise Invalid(text, reason="idempotency_key_too_long")
        key = promise_key(caller.tenant, caller.key, token)
        if not await self.cache.promise(caller.tenant, key, call.fingerprint):
            text = "this Idempotency-Key was used for another request"
            raise Invalid(text, reason="idempotency_key_reused")

    # ---- lead --------------------------------------------------------------------------------

    async def _first(self, call: Call, sink: Sink, key: bytes) -> Lead | None:
        """The first of its kind in this worker asks the cache; those who come meanwhile follow it,
        whatever it finds.
        """
        lead = self._take_off(call, sink, key)
        try:
            answer = await self._kept(lead)
            if answer is None:
                self._count(call)
                return lead
            if lead.flight is not None:
                end = End(complete=True, usage=answer.usage, cost=answer.cost, answer=answer, kept=True)
                lead.flight.end(end)
                self._remove(lead)
            await self.hits.replay(call, sink, answer, "hit")
        except BaseException:
            self._fail(lead)
            raise
        return None

    def _alone(self, call: Call, sink: Sink, *, keep: bool) -> Lead:
        self._count(call)
        return self._take_off(call, sink, b"") if keep and call.terms.keep else Lead(call, sink)

    def _count(self, call: Call) -> None:
        self.hits.count(call, "miss" if call.terms.look else "bypass")

    def _take_off(self, call: Call, sink: Sink, key: bytes) -> Lead:
        """A lead whose answer is kept as it is said, while there is room for it."""
        while self._bytes > FLIGHTS_BYTES and self._lingering:
            self._remove(next(iter(self._lingering.values())))
        if self._bytes > FLIGHTS_BYTES:
            return Lead(call, sink, key)
        flight = Flight(owner=call.id.bytes, bound=FLIGHT_BYTES, weigh=self._weigh)
        lead = Lead(call, sink, key, flight, call.legs)
        lead.sink = Tee(flight, sink, partial(self._begins, lead))
        call.concluded = partial(self._concluded, lead)
        call.kept = True
        if key:
            self.leads[key] = lead
        return lead

    async def _kept(self, lead: Lead) -> Answer | None:
        """What is kept, also by another worker while we wait for it."""
        call = lead.call
        tenant, owner = call.caller.tenant, call.id.bytes
        if not (call.terms.look or call.terms.again):
            lead.turn = lead.flight is not None
            if lead.turn:
                self.cache.announce(tenant, lead.key, owner)
            return None
        # a client that asks again pays once if it waits: its own time-out decides how long that is
        patience = self.hits.kit.bounds.first_byte if call.terms.again else self.patience
        deadline, pause = time.monotonic() + patience, _FIRST_POLL_S
        while True:
            found = await self.cache.find(tenant, lead.key, owner)
            if found.answer is not None:
                return found.answer if welcome(call, found.answer) else None
            if not found.busy:
                lead.turn = True
                return None
            if time.monotonic() > deadline:
                return None
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_POLL_S)

    def _begins(self, lead: Lead) -> bool:
        """An answer that a short budget made shorter is nobody else's."""
        if lead.call.legs is lead.legs:
            return True
        self._fail(lead)
        return False

    # ---- keep --------------------------------------------------------------------------------

    def _concluded(self, lead: Lead, ending: Ending, leg: Leg) -> None:
        """The call is settled; its client waits for the end."""
        flight, end = lead.flight, self._end(lead, ending)
        if end is None or flight is None:
            self._fail(lead)
            return
        flight.end(end)
        stores = self._stores(lead, end.answer, leg)
        if end.answer is not None and self._waits_for_retry(lead):
            if not end.answer.stream:
                flight.hold(len(end.answer.body))
            self._lingering[lead.key] = lead
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._remove, lead)
        if end.answer is not None and stores:
            task = asyncio.create_task(self._store(lead, end.answer, stores))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif lead.key not in self._lingering:
            self._remove(lead)

    def _end(self, lead: Lead, ending: Ending) -> End | None:
        """How others get to see it; None when it is no answer for others."""
        flight, s = lead.flight, ending.settlement
        if flight is None or ending.refusal is not None or lead.call.legs is not lead.legs:
            return None
        complete, tail = s.state is State.POST, ending.tail or b""
        if ending.whole is not None:
            status, headers, body = ending.whole
            if not complete:
                return None
            answer = self._answer(lead.call, status, shareable(headers), body, s)
            return End(complete=True, usage=s.usage, cost=s.cost, answer=answer)
        if complete and flight.began is not None and flight.whole:
            answer = self._answer(lead.call, *flight.began, flight.said() + tail, s)
            return End(complete=True, usage=s.usage, cost=s.cost, tail=tail, answer=answer)
        return End(complete=complete, usage=s.usage, cost=s.cost, tail=tail)

    @staticmethod
    def _answer(
        call: Call, status: int, headers: tuple[tuple[str, str], ...], body: bytes, s: Settlement
    ) -> Answer:
        return Answer(
            status=status, headers=headers, body=body, stream=call.stream, usage=s.usage, cost=s.cost,
            model=call.legs[0].target.model, made_at=time.time(),
        )  # fmt: skip

    def _stores(self, lead: Lead, answer: Answer | None, leg: Leg) -> list[tuple[bytes, int]]:
        """Keys under which the answer is kept in Redis, with their seconds."""
        call, terms, policy = lead.call, lead.call.terms, lead.call.caller.policy.cache
        if answer is None or len(answer.body) > policy.max_entry_bytes:
            return []
        stores = []
        if (
            terms.keep
            and leg.target.model == answer.model
            and (self.keep_interventions or not self.intervened(answer.body))
        ):
            stores.append((call.fingerprint, policy.ttl_seconds))
        if self._waits_for_retry(lead) and not terms.private:
            stores.append((lead.key, PROMISED_SECONDS if terms.promised else RETRY_SECONDS))
        return stores

    @staticmethod
    def _waits_for_retry(lead: Lead) -> bool:
        """Whether the client may come back for an answer that it did not get, under the key of its
        tries. One that left a stream is known; one that left a whole answer is not.
        """
        call, terms = lead.call, lead.call.terms
        if terms.look or not terms.token:
            return False
        late = not call.stream and time.monotonic() - call.began > _PROMPT_SECONDS
        return terms.promised or late or (isinstance(lead.sink, Tee) and lead.sink.left)

    async def _store(self, lead: Lead, answer: Answer, stores: list[tuple[bytes, int]]) -> None:
        """Until it is stored, the answer is given from here."""
        call = lead.call
        budget = call.caller.policy.cache.max_tenant_bytes
        for key, seconds in stores:
            owner = call.id.bytes if key == lead.key else b""
            shelf = await self.cache.store(call.caller.tenant, key, owner, answer, seconds, budget)
            if shelf is not None:
                lead.turn = lead.turn and not owner
                telemetry.shelved(call.label, shelf.evicted, shelf.entries, shelf.bytes)
        if lead.key not in self._lingering:
            self._remove(lead)

    # ---- land --------------------------------------------------------------------------------

    def landed(self, lead: Lead) -> None:
        """The exchange of this lead is over, whatever became of it."""
        if lead.flight is None or not lead.flight.over:
            self._fail(lead)
        if isinstance(lead.sink, Tee):
            lead.sink.stop()

    def _fail(self, lead: Lead) -> None:
        """Nothing came of it. Its place is free before those who wait look again."""
        self._remove(lead)
        if lead.flight is not None:
            lead.flight.fail()

    def _remove(self, lead: Lead) -> None:
        if self.leads.get(lead.key) is lead:
            del self.leads[lead.key]
        if self._lingering.get(lead.key) is lead:
            del self._lingering[lead.key]
        if lead.flight is not None:
            lead.flight.close()
        if lead.turn:
            lead.turn = False
            self.cache.leave(lead.call.caller.tenant, lead.key, lead.call.id.bytes)

    def _weigh(self, change: int) -> None:
        self._bytes += change

    async def run(self) -> None:
        """Keep the turns of calls that take long; others find them free when this worker is killed."""
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            telemetry.SHARED_BYTES.set(self._bytes)
            for lead in list(self.leads.values()):
                if lead.turn and lead.flight is not None and not lead.flight.over:
                    self.cache.renew(lead.call.caller.tenant, lead.key, lead.call.id.bytes)
