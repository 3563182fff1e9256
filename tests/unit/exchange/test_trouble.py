"""One admitted call while something of ours fails: the bank, the recorder, the disk, the handler, the code."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from uuid import UUID

import pytest

from proxy import recorder as flight
from proxy.call import Leg
from proxy.domain.ledger import State, Why
from proxy.errors import (
    BankAway,
    BudgetSpent,
    Refusal,
    Unavailable,
)
from proxy.exchange import Exchange
from proxy.ports import UpstreamRequest
from proxy.testing_bank import MemoryBank
from proxy.testing_upstream import Scripted
from tests.support.exchanges import (
    BODY,
    CEILING,
    HEADERS,
    Client,
    run,
)


async def test_an_absent_bank_admits_nothing_and_sends_nothing(world):
    w = world()
    w.bank.away = True
    with pytest.raises(Unavailable) as caught:
        await run(w)
    assert caught.value.reason == "bank_away"
    assert w.upstream.requests == []
    w.bank.away = False
    await w.kit.settler.drain(3.0)
    w.nothing_is_open()


async def test_a_settlement_waits_for_an_absent_bank_and_the_client_does_not(world):
    w = world(Scripted(headers=HEADERS, chunks=[BODY]))
    settle = w.bank.settle

    async def away(settlement):
        raise BankAway("away")

    w.bank.settle = away
    client = await run(w)
    assert client.status == 200
    assert w.kit.settler.waiting == 1
    assert flight.read(w.recorder._file.path).sent.values()
    w.bank.settle = settle
    await w.kit.settler.drain(3.0)
    assert w.entries() == [(State.POST, Why.USAGE, 5)]
    w.nothing_is_open()


async def test_a_cancelled_handler_does_not_cancel_the_exchange(world):
    w = world(Scripted(headers=HEADERS, chunks=[BODY], first_byte_after=0.1))
    task = asyncio.ensure_future(run(w))
    waiter = asyncio.ensure_future(asyncio.shield(task))
    await asyncio.sleep(0.02)
    waiter.cancel()
    await task
    assert w.entries() == [(State.POST, Why.USAGE, 5)]
    w.nothing_is_open()


async def test_a_defect_while_sending_is_charged_and_a_defect_before_it_is_not(world, monkeypatch):
    w = world(Scripted(headers=HEADERS, chunks=[BODY]))

    async def broken(request):
        raise RuntimeError("defect")

    monkeypatch.setattr(w.upstream, "send", broken)
    with pytest.raises(RuntimeError):
        await run(w)
    await w.kit.settler.drain(3.0)
    assert [e[0] for e in w.entries()] == [State.CEILING]
    w.nothing_is_open()

    w2 = world()

    def unsigned(attempt: UUID) -> UpstreamRequest:
        raise RuntimeError("defect")

    call = w2.call()
    leg = call.legs[0]
    call.legs = (Leg(**{n: getattr(leg, n) for n in leg.__dataclass_fields__} | {"request": unsigned}),)
    with pytest.raises(RuntimeError):
        await Exchange(w2.kit, call, Client()).run()
    await w2.kit.settler.drain(3.0)
    assert [e[0] for e in w2.entries()] == [State.VOID]
    w2.nothing_is_open()


async def test_a_full_disk_refuses_before_anything_is_held(world, monkeypatch):
    w = world()

    def full(attempt: UUID) -> UUID:
        raise OSError("no space left on device")

    monkeypatch.setattr(type(w.recorder), "opened", lambda self, attempt: full(attempt))
    with pytest.raises(Refusal) as caught:
        await run(w)
    assert caught.value.reason == "recorder_failed"
    assert w.attempts() == []


async def test_a_process_that_stood_still_does_not_send(world, monkeypatch):
    w = world()
    call = w.call()
    admit = w.bank.admit

    async def slow(attempt):
        admission = await admit(attempt)
        real = time.monotonic
        monkeypatch.setattr("proxy.reservation.time.monotonic", lambda: real() + 6)
        return admission

    w.bank.admit = slow
    with pytest.raises(Unavailable) as caught:
        await Exchange(w.kit, call, Client()).run()
    assert caught.value.reason == "stood_still"
    assert w.upstream.requests == []
    assert [e[0] for e in w.entries()] == [State.VOID]


async def test_a_recorder_that_fills_up_before_sending_voids_the_call(world, monkeypatch):
    w = world()

    def full(self, attempt):
        raise OSError("no space left on device")

    monkeypatch.setattr(type(w.recorder), "sent", full)
    with pytest.raises(Unavailable):
        await run(w)
    assert w.upstream.requests == []
    assert [e[0] for e in w.entries()] == [State.VOID]


async def test_a_recorder_that_fills_up_after_the_answer_costs_the_client_nothing(world, monkeypatch):
    w = world(Scripted(headers=HEADERS, chunks=[BODY]))

    def full(self, settlement):
        raise OSError("no space left on device")

    monkeypatch.setattr(type(w.recorder), "done", full)
    assert (await run(w)).status == 200
    assert w.entries() == [(State.POST, Why.USAGE, 5)]


async def test_a_settlement_that_fails_unforeseen_is_made_later(world):
    w = world(Scripted(headers=HEADERS, chunks=[BODY]))
    settle = w.bank.settle

    async def broken(settlement):
        w.bank.settle = settle
        raise RuntimeError("defect")

    w.bank.settle = broken
    with pytest.raises(RuntimeError):
        await run(w)
    await w.kit.settler.drain(3.0)
    assert w.entries() == [(State.POST, Why.USAGE, 5)]
    w.nothing_is_open()


async def test_moving_on_that_fails_unforeseen_resolves_both_attempts(world):
    throttled = Scripted(status=429, headers={"x-amzn-errortype": "ThrottlingException"}, chunks=[b"{}"])
    w = world(throttled)

    async def broken(settlement, attempt):
        await MemoryBank.settle_and_admit(w.bank, settlement, attempt)
        raise RuntimeError("defect")

    w.bank.settle_and_admit = broken
    with pytest.raises(RuntimeError):
        await run(w, legs=2)
    await w.kit.settler.drain(5.0)
    assert [e[0] for e in w.entries()] == [State.VOID, State.VOID]
    w.nothing_is_open()


async def test_a_denial_after_an_undecided_try_voids_what_may_still_commit(world):
    w = world(limit=CEILING - 1)
    admit = w.bank.admit

    async def undecided(attempt):
        return replace(await admit(attempt), undecided=True)

    w.bank.admit = undecided
    with pytest.raises(BudgetSpent):
        await run(w)
    assert w.kit.settler.waiting == 1
    await w.kit.settler.drain(5.0)
    w.nothing_is_open()
