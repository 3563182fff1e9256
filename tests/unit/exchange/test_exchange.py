"""One admitted call, ended in every way it can end: the settlement, the client's answer, the rest."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from proxy.bedrock.eventstream import exception_frame
from proxy.call import Leg
from proxy.domain.ledger import State, Why
from proxy.errors import (
    BudgetHeld,
    BudgetSpent,
    UpstreamAnswer,
    UpstreamUnavailable,
)
from proxy.exchange import Exchange
from proxy.testing_upstream import Scripted
from tests.support.exchanges import (
    BODY,
    CEILING,
    FIRST,
    HEADERS,
    LAST,
    STREAM,
    Client,
    run,
)


async def test_a_whole_answer_is_posted_before_the_client_sees_it(world):
    w = world(Scripted(headers=HEADERS, chunks=[BODY]))
    client = await run(w)
    assert (client.status, client.body, client.finished) == (200, BODY, True)
    assert client.headers[b"x-tollhouse-cost"] == b"0.000000005"
    assert w.entries() == [(State.POST, Why.USAGE, 5)]
    assert w.money() == (0, 5)
    w.nothing_is_open()


async def test_a_stream_is_posted_and_its_end_released(world):
    w = world(Scripted(headers=STREAM, chunks=[FIRST, LAST]))
    client = await run(w, stream=True)
    assert (client.status, client.body, client.finished) == (200, FIRST + LAST, True)
    assert w.entries() == [(State.POST, Why.USAGE, 5)]
    w.nothing_is_open()


async def test_the_end_of_a_stream_waits_for_its_settlement(world):
    w = world(Scripted(headers=STREAM, chunks=[FIRST, LAST]))
    settle, seen = w.bank.settle, []
    client = Client()

    async def watched(settlement):
        seen.append(client.body)
        return await settle(settlement)

    w.bank.settle = watched
    await run(w, stream=True, client=client)
    assert seen == [FIRST]


async def test_a_client_that_leaves_pays_what_bedrock_bills(world):
    w = world(Scripted(headers=STREAM, chunks=[FIRST, FIRST, FIRST, LAST]))
    await run(w, stream=True, client=Client(leave_after=1))
    assert w.entries() == [(State.POST, Why.USAGE, 5)]
    w.nothing_is_open()


async def test_an_answer_that_outlives_the_drain_bound_is_charged_its_ceiling(world):
    w = world(Scripted(headers=STREAM, chunks=[FIRST] * 40 + [LAST], chunk_after=0.05))
    await run(w, stream=True, client=Client(leave_after=1))
    assert w.entries() == [(State.CEILING, Why.DRAIN_LIMIT, CEILING)]
    w.nothing_is_open()


async def test_a_stream_that_breaks_off_ends_with_an_exception_frame_and_its_ceiling(world):
    w = world(Scripted(headers=STREAM, chunks=[FIRST, FIRST[:20]], cut=True))
    client = await run(w, stream=True)
    assert client.body.startswith(FIRST)
    assert b"modelStreamErrorException" in client.body
    assert client.finished
    assert w.entries() == [(State.CEILING, Why.CUT, CEILING)]
    w.nothing_is_open()


async def test_a_clean_end_without_usage_is_not_passed_off_as_an_end(world):
    w = world(Scripted(headers=STREAM, chunks=[FIRST]))
    client = await run(w, stream=True)
    assert b"modelStreamErrorException" in client.body
    assert w.entries() == [(State.CEILING, Why.CUT, CEILING)]


async def test_an_exception_frame_of_bedrocks_passes_and_is_charged_the_ceiling(world):
    frame = exception_frame("throttlingException", "slow down")
    w = world(Scripted(headers=STREAM, chunks=[FIRST, frame]))
    client = await run(w, stream=True)
    assert client.body == FIRST + frame
    assert w.entries() == [(State.CEILING, Why.CUT, CEILING)]


async def test_a_silent_stream_is_charged_its_ceiling(world):
    w = world(Scripted(headers=STREAM, chunks=[FIRST, LAST], chunk_after=0.5))
    client = await run(w, stream=True)
    assert b"modelStreamErrorException" in client.body
    assert [e[0] for e in w.entries()] == [State.CEILING]
    w.nothing_is_open()


async def test_an_answer_without_usage_is_passed_on_and_charged_its_ceiling(world):
    w = world(Scripted(headers={"content-type": "application/json"}, chunks=[b'{"generation":"x"}']))
    client = await run(w)
    assert (client.status, client.body) == (200, b'{"generation":"x"}')
    assert w.entries() == [(State.CEILING, Why.CUT, CEILING)]
    w.nothing_is_open()


async def test_what_never_left_is_void_and_the_next_target_serves(world):
    w = world(Scripted(unreachable=True), Scripted(headers=HEADERS, chunks=[BODY]))
    client = await run(w, legs=2)
    assert client.status == 200
    assert [e[0] for e in w.entries()] == [State.VOID, State.POST]
    w.nothing_is_open()


async def test_a_throttled_call_moves_on_and_else_becomes_our_503(world):
    throttled = Scripted(
        status=429,
        headers={"x-amzn-errortype": "ThrottlingException:http://x/"},
        chunks=[b'{"message":"slow"}'],
    )
    w = world(throttled, Scripted(headers=HEADERS, chunks=[BODY]))
    assert (await run(w, legs=2)).status == 200
    w2 = world(throttled)
    with pytest.raises(UpstreamUnavailable):
        await run(w2)
    assert w2.entries() == [(State.VOID, Why.UPSTREAM_ERROR, 0)]
    w2.nothing_is_open()


async def test_a_validation_error_passes_through_and_costs_nothing(world):
    w = world(
        Scripted(
            status=400, headers={"x-amzn-errortype": "ValidationException"}, chunks=[b'{"message":"no"}']
        )
    )
    with pytest.raises(UpstreamAnswer) as caught:
        await run(w, legs=1)
    assert (caught.value.status, caught.value.kind) == (400, "ValidationException")
    assert w.entries() == [(State.VOID, Why.UPSTREAM_ERROR, 0)]


async def test_a_reset_before_any_byte_stays_charged(world):
    w = world(Scripted(dropped=True))
    with pytest.raises(UpstreamAnswer):
        await run(w)
    assert [e[0] for e in w.entries()] == [State.CEILING]
    assert w.money() == (0, CEILING)
    w.nothing_is_open()


async def test_held_and_spent_are_told_apart(world):
    w = world(Scripted(headers=HEADERS, chunks=[BODY], first_byte_after=0.1), limit=CEILING + CEILING // 2)
    first = asyncio.ensure_future(run(w))
    await asyncio.sleep(0.02)
    with pytest.raises(BudgetHeld):
        await run(w)
    await first
    w2 = world(limit=CEILING - 1)
    with pytest.raises(BudgetSpent):
        await run(w2)
    assert w2.attempts() == []
    assert w2.upstream.requests == []
    w2.nothing_is_open()


async def test_a_call_that_is_only_held_waits_for_running_calls_to_end(world):
    slow = Scripted(headers=HEADERS, chunks=[BODY], first_byte_after=0.1)
    w = world(slow, Scripted(headers=HEADERS, chunks=[BODY]), limit=CEILING + CEILING // 2, held_wait=1.0)
    first = asyncio.ensure_future(run(w))
    await asyncio.sleep(0.02)
    began = time.monotonic()
    assert (await run(w)).status == 200
    assert time.monotonic() - began < 0.4, "woken by the settlement, not by a poll"
    await first
    w.nothing_is_open()


async def test_a_call_asks_for_less_where_the_budget_says_clamp(world):
    w = world(Scripted(headers=HEADERS, chunks=[BODY]), limit=CEILING // 2)
    call, asked = w.call(), []
    admit = w.bank.admit

    async def clamping(attempt):
        return replace(await admit(attempt), clamp_floor=1)

    def clamp(headroom, floor):
        asked.append((headroom, floor))
        return (replace(call.legs[0], ceiling=headroom),)

    w.bank.admit, call.clamp, call.floor = clamping, clamp, lambda tokens: 10
    client = Client()
    await Exchange(w.kit, call, client).run()
    assert (client.status, asked) == (200, [(CEILING // 2, 1)])
    w.nothing_is_open()


async def test_when_the_next_target_does_not_fit_the_first_error_is_told(world):
    throttled = Scripted(status=429, headers={"x-amzn-errortype": "ThrottlingException"}, chunks=[b"{}"])
    w = world(throttled, limit=CEILING)
    call = w.call(legs=2)
    dear = call.legs[1]
    call.legs = (
        call.legs[0],
        Leg(**{n: getattr(dear, n) for n in dear.__dataclass_fields__} | {"ceiling": 2 * CEILING}),
    )
    with pytest.raises(UpstreamUnavailable):
        await Exchange(w.kit, call, Client()).run()
    w.nothing_is_open()
