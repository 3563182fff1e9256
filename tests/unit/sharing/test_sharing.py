"""Who leads, who follows and what is kept, with doubles for Bedrock, the bank and Redis."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from proxy import sharing as module
from proxy.domain.caching import Terms
from proxy.domain.ledger import State
from proxy.errors import Refusal, Unauthenticated, Unavailable, UpstreamUnavailable
from proxy.exchange import Exchange
from proxy.testing_upstream import Scripted
from tests.support.exchanges import BODY, FIRST, HEADERS, LAST, STREAM, Client
from tests.support.sharers import ALIKE, SHARED, STREAMED, THROTTLED, WHOLE, Worker, cached


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
