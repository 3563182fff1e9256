"""Who leads, who follows and what is kept, with doubles for Bedrock, the bank and Redis."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxy import sharing as module
from proxy.bedrock.interventions import intervened
from proxy.call import Call
from proxy.domain.caching import Terms
from proxy.domain.fingerprint import retry_key
from proxy.domain.ledger import State
from proxy.domain.policy import CachePolicy
from proxy.domain.usage import NOTHING
from proxy.errors import Invalid, Refusal, Unauthenticated, Unavailable, UpstreamUnavailable
from proxy.exchange import Exchange
from proxy.hits import Hits
from proxy.ports import Answer
from proxy.sharing import Sharing
from proxy.testing_cache import MemoryCache
from proxy.testing_upstream import Scripted
from tests.unit.test_exchange import BODY, FIRST, HEADERS, LAST, STREAM, Client, World

KEPT = Answer(
    status=200, headers=(), body=b"kept", stream=False, usage=NOTHING, cost=5, model="m", made_at=0.0
)
SHARED = Terms(look=True, keep=True)
RETRY = Terms(token="try")
ALIKE = b"f" * 32
THROTTLED = Scripted(
    status=429,
    headers={"x-amzn-errortype": "ThrottlingException", "content-type": "application/json"},
    chunks=[b'{"message":"slow down"}'],
)
WHOLE = Scripted(headers=HEADERS, chunks=[BODY], first_byte_after=0.02)
STREAMED = Scripted(headers=STREAM, chunks=[FIRST, FIRST, LAST], chunk_after=0.02)


class Worker:
    """One worker's sharing over a world; workers of one world share the cache and the bank."""

    def __init__(self, world: World, cache: MemoryCache, patience: float = 1.0) -> None:
        self.world = world
        self.stale = False
        self.sharing = Sharing(
            hits=Hits(kit=world.kit, stale=lambda: self.stale), cache=cache, intervened=intervened,
            patience=patience,
        )  # fmt: skip

    def call(
        self, *, terms: Terms = SHARED, alike: bytes = ALIKE, stream: bool = False, **policy: Any
    ) -> Call:
        call = self.world.call(stream=stream)
        caller = call.caller
        call.caller = replace(caller, policy=replace(caller.policy, cache=CachePolicy(**policy)))
        call.terms, call.fingerprint = terms, alike
        return call

    async def serve(self, call: Call, client: Client | None = None) -> Client:
        """What the pipeline does from the cache on."""
        client = client or Client()
        lead = await self.sharing.enter(call, client)
        if lead is not None:
            try:
                await Exchange(self.world.kit, call, lead.sink).run()
            finally:
                self.sharing.landed(lead)
        return client

    async def crowd(self, n: int, **options: Any) -> list[Any]:
        calls = (self.serve(self.call(**options)) for _ in range(n))
        return await asyncio.gather(*calls, return_exceptions=True)

    def states(self) -> Counter[State]:
        return Counter(row.state for row in self.world.attempts())

    def idle(self) -> None:
        """Nothing is left behind: no flight, no bytes, no turn."""
        assert self.sharing.leads == {} and self.sharing._bytes == 0
        assert not self.world.kit.running


@pytest.fixture
def cache() -> MemoryCache:
    return MemoryCache()


@pytest.fixture
def worker(tmp_path: Path, cache: MemoryCache) -> Callable[..., Worker]:
    def make(*answers: Scripted, **options: Any) -> Worker:
        remaining = list(answers)
        return Worker(World(tmp_path, lambda _: remaining.pop(0)), cache, **options)

    return make


def cached(client: Client) -> str:
    return client.headers[b"x-tollhouse-cache"].decode()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_crowd_of_like_calls_is_one_sending(worker, cache, stream):
    w = worker(STREAMED if stream else WHOLE)
    clients = await w.crowd(50, stream=stream)
    expected = FIRST + FIRST + LAST if stream else BODY
    assert all(c.body == expected and c.finished and c.status == 200 for c in clients)
    assert Counter(map(cached, clients)) == {"miss": 1, "hit": 49}
    assert len({c.headers[b"x-amzn-requestid"] for c in clients}) == 50
    assert w.states() == {State.POST: 1, State.HIT: 49}
    assert {row.saved for row in w.world.attempts() if row.state is State.HIT} == {5}
    assert {row.usage.input_tokens for row in w.world.attempts()} == {3}
    assert w.world.money() == (0, 5)
    await asyncio.sleep(0)
    w.idle()
    assert cache.turns == {}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_later_like_call_is_answered_from_what_was_kept(worker, stream):
    w = worker(STREAMED if stream else WHOLE)
    first = await w.serve(w.call(stream=stream))
    second = await w.serve(w.call(stream=stream))
    assert (second.status, second.body, second.finished) == (200, first.body, True)
    assert (cached(first), cached(second)) == ("miss", "hit")
    assert second.headers[b"age"] == b"0"
    assert second.headers[b"x-tollhouse-cost"] == b"0.000000000"
    assert second.headers[b"content-type"] == first.headers[b"content-type"]
    assert second.headers[b"x-amzn-requestid"] != first.headers[b"x-amzn-requestid"]


async def test_followers_read_along_and_late_ones_from_the_start(worker):
    w = worker(Scripted(headers=STREAM, chunks=[FIRST] * 10 + [LAST], chunk_after=0.03))
    early, late = Client(), Client()
    leading = asyncio.create_task(w.serve(w.call(stream=True)))
    await asyncio.sleep(0.01)
    following = [asyncio.create_task(w.serve(w.call(stream=True), early))]
    while len(early.body) < 3 * len(FIRST):
        await asyncio.sleep(0.005)
    assert not leading.done(), "it reads while the leader does"
    following.append(asyncio.create_task(w.serve(w.call(stream=True), late)))
    await asyncio.gather(leading, *following)
    assert early.body == late.body == FIRST * 10 + LAST


async def test_the_end_of_a_followed_stream_waits_for_the_followers_row(worker):
    w = worker(STREAMED)
    seen: list[bytes] = []
    follower = Client()
    record = w.world.bank.record_hit

    async def watched(*hit):
        seen.append(follower.body)
        return await record(*hit)

    w.world.bank.record_hit = watched
    leading = asyncio.create_task(w.serve(w.call(stream=True)))
    await asyncio.sleep(0.01)
    await asyncio.gather(leading, w.serve(w.call(stream=True), follower))
    assert seen == [FIRST + FIRST]
    assert follower.body == FIRST + FIRST + LAST


async def test_a_leader_that_leaves_hurts_nobody(worker):
    w = worker(Scripted(headers=STREAM, chunks=[FIRST] * 6 + [LAST], chunk_after=0.02))
    leading = asyncio.create_task(w.serve(w.call(stream=True), Client(leave_after=1)))
    await asyncio.sleep(0.01)
    followers = await w.crowd(5, stream=True)
    await leading
    assert all(c.body == FIRST * 6 + LAST for c in followers)
    assert w.states() == {State.POST: 1, State.HIT: 5}


class Stuck(Client):
    """A client that stops reading after its first part until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.freed = asyncio.Event()

    async def send(self, data: bytes) -> None:
        await super().send(data)
        await self.freed.wait()


async def test_a_leader_that_reads_slowly_holds_nobody_up(worker):
    w = worker(Scripted(headers=STREAM, chunks=[FIRST] * 6 + [LAST], chunk_after=0.01))
    stuck = Stuck()
    leading = asyncio.create_task(w.serve(w.call(stream=True), stuck))
    await asyncio.sleep(0.005)
    async with asyncio.timeout(2):
        followers = await w.crowd(3, stream=True)
    assert all(c.body == FIRST * 6 + LAST for c in followers)
    assert not leading.done()
    stuck.freed.set()
    await leading
    assert stuck.body == FIRST * 6 + LAST


async def test_a_slow_reader_bounds_what_is_kept_for_it(worker, monkeypatch):
    monkeypatch.setattr("proxy.flight.WINDOW_BYTES", 4 * len(FIRST))
    monkeypatch.setattr(module, "FLIGHT_BYTES", 16 * len(FIRST))
    w = worker(Scripted(headers=STREAM, chunks=[FIRST] * 200 + [LAST]))
    stuck = Stuck()
    leading = asyncio.create_task(w.serve(w.call(stream=True), stuck))
    await asyncio.sleep(0.1)
    assert w.sharing._bytes < 24 * len(FIRST)
    stuck.freed.set()
    await leading
    assert stuck.body == FIRST * 200 + LAST
    w.idle()


async def test_a_follower_that_is_far_behind_is_cut_and_never_told_a_clean_end(worker, monkeypatch):
    monkeypatch.setattr(module, "FLIGHT_BYTES", 16 * len(FIRST))
    w = worker(Scripted(headers=STREAM, chunks=[FIRST] * 100 + [LAST], chunk_after=0.001))
    stuck, leader = Stuck(), Client()
    leading = asyncio.create_task(w.serve(w.call(stream=True), leader))
    await asyncio.sleep(0.005)
    following = asyncio.create_task(w.serve(w.call(stream=True), stuck))
    await leading
    stuck.freed.set()
    await following
    assert leader.body == FIRST * 100 + LAST
    assert b"modelStreamErrorException" in stuck.body and stuck.finished
    assert w.states() == {State.POST: 1, State.HIT: 1}
    w.idle()


async def test_a_failed_leader_hands_over_to_one(worker):
    w = worker(THROTTLED, WHOLE)
    clients = await w.crowd(20)
    refused = [c for c in clients if isinstance(c, Refusal)]
    assert [type(r) for r in refused] == [UpstreamUnavailable]
    assert sum(isinstance(c, Client) and c.body == BODY for c in clients) == 19
    assert len(w.world.upstream.requests) == 2
    assert w.states() == {State.VOID: 1, State.POST: 1, State.HIT: 18}
    w.idle()


async def test_after_a_few_failed_leaders_nobody_waits_for_another(worker):
    w = worker(*[replace(THROTTLED, first_byte_after=0.02)] * 10)
    async with asyncio.timeout(1):
        clients = await w.crowd(10)
    assert all(isinstance(c, UpstreamUnavailable) for c in clients)
    assert len(w.world.upstream.requests) == 10
    w.idle()


async def test_a_leader_without_budget_hands_over_too(worker):
    w = worker(WHOLE)
    [account] = w.world.bank.book.accounts.values()
    account.limit_effective = account.target = 999
    clients = await w.crowd(3)
    assert all(isinstance(c, Refusal) for c in clients)
    account.limit_effective = account.target = 10_000
    assert (await w.serve(w.call())).body == BODY


async def test_a_cut_stream_is_cut_for_all_and_kept_for_none(worker, cache):
    w = worker(Scripted(headers=STREAM, chunks=[FIRST, FIRST[:20]], cut=True, chunk_after=0.02), STREAMED)
    leading = asyncio.create_task(w.serve(w.call(stream=True)))
    await asyncio.sleep(0.01)
    [follower] = await w.crowd(1, stream=True)
    await leading
    assert b"modelStreamErrorException" in follower.body and follower.finished
    assert [row.saved for row in w.world.attempts() if row.state is State.HIT] == [0]
    assert cache.answers == {}
    assert cached(await w.serve(w.call(stream=True))) == "miss"


NO_USAGE = Scripted(headers={"content-type": "application/json"}, chunks=[b'{"generation":"hello"}'])
BLOCKED = Scripted(headers=HEADERS, chunks=[BODY[:-1] + b',"amazon-bedrock-guardrailAction":"INTERVENED"}'])


@pytest.mark.parametrize(
    "answer", [NO_USAGE, BLOCKED, Scripted(headers=HEADERS, chunks=[BODY], status=201)], ids=str
)
async def test_what_is_kept(worker, cache, answer):
    w = worker(answer)
    await w.serve(w.call())
    await asyncio.sleep(0)
    assert len(cache.answers) == (answer.status == 201)
    w.idle()


async def test_an_answer_above_the_plans_bound_is_not_kept(worker, cache):
    w = worker(WHOLE)
    await w.serve(w.call(max_entry_bytes=len(BODY) - 1))
    assert cache.answers == {}
    w.idle()
    assert cache.turns == {}


async def test_a_clamped_answer_is_its_askers_alone(worker, cache):
    for stream in (False, True):
        w = worker(STREAMED if stream else WHOLE, STREAMED if stream else WHOLE)
        clamped = w.call(stream=stream)
        lead = await w.sharing.enter(clamped, client := Client())
        clamped.legs = tuple(replace(leg) for leg in clamped.legs)  # as the exchange does
        waiting = asyncio.create_task(w.serve(w.call(stream=stream)))
        await asyncio.sleep(0)
        await Exchange(w.world.kit, clamped, lead.sink).run()
        w.sharing.landed(lead)
        other = await waiting
        assert client.body == other.body and cached(other) == "miss"
        assert len(w.world.upstream.requests) == 2
        w.world.recorder.shut()
        cache.answers.clear()


async def test_redis_away_is_a_miss(worker, cache):
    cache.away = True
    w = worker(WHOLE, WHOLE)
    for _ in range(2):
        assert cached(await w.serve(w.call())) == "miss"
        await asyncio.sleep(0)


# ---- other workers -------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_another_workers_answer_is_waited_for(worker, cache, stream):
    w = worker(STREAMED if stream else WHOLE)
    other = Worker(w.world, cache)
    leading = asyncio.create_task(w.serve(w.call(stream=stream)))
    await asyncio.sleep(0)
    clients = await other.crowd(5, stream=stream)
    assert [cached(c) for c in clients] == ["hit"] * 5
    leader = await leading
    assert all(c.body == leader.body for c in clients)
    assert w.states() == {State.POST: 1, State.HIT: 5}
    other.idle()


async def test_another_workers_failure_gives_the_turn_away(worker, cache):
    w = worker(THROTTLED, WHOLE)
    other = Worker(w.world, cache)
    leading = asyncio.create_task(w.serve(w.call()))
    await asyncio.sleep(0)
    client = await other.serve(other.call())
    assert cached(client) == "miss"
    with pytest.raises(UpstreamUnavailable):
        await leading


async def test_a_turn_that_nobody_uses_is_waited_for_only_so_long(worker, cache):
    w = worker(WHOLE, patience=0.1)
    tenant = w.world.tenant
    await cache.find(tenant, ALIKE, b"killed worker")
    assert cached(await w.serve(w.call())) == "miss"


# ---- what the client asks for --------------------------------------------------------------------


async def test_no_cache_asks_anew_and_is_kept(worker):
    w = worker(WHOLE, WHOLE)
    await w.serve(w.call())
    assert cached(await w.serve(w.call(terms=Terms(keep=True)))) == "bypass"
    assert cached(await w.serve(w.call())) == "hit"
    assert len(w.world.upstream.requests) == 2


async def test_max_age_refuses_what_is_older(worker, cache):
    w = worker(WHOLE, WHOLE)
    await w.serve(w.call())
    await asyncio.sleep(0)
    [(place, (kept, ends))] = cache.answers.items()
    cache.answers[place] = replace(kept, made_at=kept.made_at - 100), ends
    assert cached(await w.serve(w.call(terms=replace(SHARED, max_age=101)))) == "hit"
    assert cached(await w.serve(w.call(terms=replace(SHARED, max_age=50)))) == "miss"
    assert (await w.serve(w.call())).headers[b"age"] == b"0"


# ---- who may have hits ---------------------------------------------------------------------------


async def test_who_was_revoked_gets_no_hit(worker):
    w = worker(WHOLE)
    await w.serve(w.call())
    w.world.bank.revoke(w.world.credential)
    client = Client()
    with pytest.raises(Refusal) as caught:
        await w.serve(w.call(), client)
    assert not isinstance(caught.value, Unavailable) and client.status == 0
    assert isinstance(caught.value, Unauthenticated | Refusal)


async def test_no_hits_while_the_bank_is_away_or_the_directory_is_stale(worker):
    w = worker(WHOLE)
    await w.serve(w.call())
    w.world.bank.away = True
    with pytest.raises(Unavailable):
        await w.serve(w.call())
    w.world.bank.away = False
    w.stale = True
    with pytest.raises(Unavailable):
        await w.serve(w.call())
    w.stale = False
    assert cached(await w.serve(w.call())) == "hit"


async def test_a_hit_is_served_on_a_spent_budget(worker):
    w = worker(WHOLE)
    await w.serve(w.call())
    [account] = w.world.bank.book.accounts.values()
    account.limit_effective = account.target = 5
    assert cached(await w.serve(w.call())) == "hit"


async def test_a_row_that_the_bank_could_not_take_follows(worker):
    w = worker(STREAMED)
    leading = asyncio.create_task(w.serve(w.call(stream=True)))
    await asyncio.sleep(0.01)
    follower = Client()
    following = asyncio.create_task(w.serve(w.call(stream=True), follower))
    settle = w.world.bank.settle

    async def settled_then_away(settlement):
        answer = await settle(settlement)
        w.world.bank.away = True
        return answer

    w.world.bank.settle = settled_then_away
    await asyncio.gather(leading, following)
    assert follower.body.endswith(LAST)
    assert w.states() == {State.POST: 1}
    w.world.bank.away = False
    async with asyncio.timeout(2):
        while w.states() != {State.POST: 1, State.HIT: 1}:
            await asyncio.sleep(0.02)


# ---- tries of one call ---------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_a_retry_joins_the_try_that_still_runs_with_the_cache_off(worker, stream):
    slow = Scripted(headers=STREAM, chunks=[FIRST] * 5 + [LAST], chunk_after=0.03)
    w = worker(slow if stream else replace(WHOLE, first_byte_after=0.1))
    first = asyncio.create_task(w.serve(w.call(terms=RETRY, stream=stream), Client(leave_after=1)))
    await asyncio.sleep(0.06)
    second = await w.serve(w.call(terms=replace(RETRY, again=True), stream=stream))
    await first
    assert second.body == (FIRST * 5 + LAST if stream else BODY)
    assert (cached(second), w.states()) == ("hit", {State.POST: 1, State.HIT: 1})


async def test_a_retry_finds_the_answer_its_client_was_not_there_for(worker, cache):
    w = worker(STREAMED)
    await w.serve(w.call(terms=RETRY, stream=True), Client(leave_after=1))
    again = replace(RETRY, again=True)
    assert cached(await w.serve(w.call(terms=again, stream=True))) == "hit"
    other = Worker(w.world, cache)
    assert cached(await other.serve(other.call(terms=again, stream=True))) == "hit"
    assert w.states() == {State.POST: 1, State.HIT: 2}


async def test_a_retry_waits_for_another_worker_longer_than_a_stranger_would(worker, cache):
    w = worker(patience=0.01)
    w.world.kit.bounds = replace(w.world.kit.bounds, first_byte=10)
    call = w.call(terms=replace(RETRY, again=True))
    key = retry_key(call.fingerprint, call.caller.key, RETRY.token)
    cache.announce(w.world.tenant, key, b"another worker")
    waiting = asyncio.create_task(w.serve(call))
    await asyncio.sleep(0.1)
    await cache.store(w.world.tenant, key, b"another worker", KEPT, 60, 1000)
    assert (await waiting).body == KEPT.body


async def test_without_a_retry_nothing_of_an_unshared_call_is_kept(worker, cache):
    w = worker(WHOLE, WHOLE, STREAMED, STREAMED)
    for stream in (False, False, True, True):
        assert cached(await w.serve(w.call(terms=RETRY, stream=stream))) == "bypass"
    await asyncio.sleep(0)
    assert cache.answers == {} and cache.turns == {}
    w.idle()


async def test_no_store_is_written_nowhere_and_its_retry_still_joins(worker, cache):
    w = worker(STREAMED)
    private = replace(RETRY, private=True)
    await w.serve(w.call(terms=private, stream=True), Client(leave_after=1))
    assert cached(await w.serve(w.call(terms=replace(private, again=True), stream=True))) == "hit"
    assert cache.answers == {}


async def test_another_keys_call_with_the_same_token_is_another_call(worker):
    w = worker(replace(WHOLE, first_byte_after=0.05), WHOLE)
    other = w.call(terms=RETRY)
    from proxy.clock import uuid7

    other.caller = replace(other.caller, key=uuid7())
    w.world.bank.add_spender(w.world.tenant, None, other.caller.key, credential := uuid7())
    other.caller = replace(other.caller, credential=credential)
    await asyncio.gather(w.serve(w.call(terms=RETRY)), w.serve(other))
    assert len(w.world.upstream.requests) == 2


async def test_an_idempotency_key_means_one_request(worker):
    w = worker(WHOLE, WHOLE)
    promised = Terms(token="order-66", again=True, promised=True)
    await w.serve(w.call(terms=promised))
    assert cached(await w.serve(w.call(terms=promised))) == "hit"
    with pytest.raises(Invalid) as caught:
        await w.serve(w.call(terms=promised, alike=b"g" * 32))
    assert caught.value.reason == "idempotency_key_reused"
    with pytest.raises(Invalid) as caught:
        await w.serve(w.call(terms=replace(promised, token="x" * 300)))
    assert caught.value.reason == "idempotency_key_too_long"
    assert len(w.world.upstream.requests) == 1


async def test_a_worker_full_of_answers_shares_no_more(worker, monkeypatch):
    monkeypatch.setattr(module, "FLIGHTS_BYTES", -1)
    w = worker(WHOLE, WHOLE)
    await asyncio.gather(w.serve(w.call()), w.serve(w.call()))
    assert len(w.world.upstream.requests) == 2
    w.idle()
