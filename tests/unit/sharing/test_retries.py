"""A retry and its first try, with the cache off and on; and how many answers a worker shares at once."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from proxy import sharing as module
from proxy.domain.caching import Terms
from proxy.domain.fingerprint import retry_key
from proxy.domain.ledger import State
from proxy.errors import Invalid
from proxy.testing_upstream import Scripted
from tests.support.exchanges import BODY, FIRST, LAST, STREAM, Client
from tests.support.sharers import KEPT, RETRY, STREAMED, WHOLE, Worker, cached


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
