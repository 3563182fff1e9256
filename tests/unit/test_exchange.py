"""One admitted call, ended in every way it can end: the settlement, the client's answer, the rest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from proxy import recorder as flight
from proxy.bedrock import dialects
from proxy.bedrock.eventstream import event_frame, exception_frame
from proxy.bedrock.wires import BedrockWires, classify
from proxy.call import Bounds, Call, Kit, Leg
from proxy.clock import uuid7
from proxy.domain.catalogue import Target
from proxy.domain.denial import denial
from proxy.domain.ledger import Operation, State, Why
from proxy.domain.policy import Policy
from proxy.domain.tenant import Caller
from proxy.errors import (
    BankAway,
    BudgetHeld,
    BudgetSpent,
    Refusal,
    Unavailable,
    UpstreamAnswer,
    UpstreamUnavailable,
)
from proxy.exchange import Exchange
from proxy.ports import UpstreamRequest
from proxy.recorder import FlightRecorder
from proxy.settler import HeldQueue, Settler
from proxy.testing_bank import MemoryBank
from proxy.testing_limiter import MemoryLimiter
from proxy.testing_upstream import Scripted, ScriptedUpstream

CEILING = 1_000
BODY = b'{"generation":"hello","prompt_token_count":3,"generation_token_count":2,"stop_reason":"stop"}'
HEADERS = {
    "content-type": "application/json",
    "x-amzn-requestid": "req-1",
    "x-amzn-bedrock-input-token-count": "3",
    "x-amzn-bedrock-output-token-count": "2",
}
METRICS = (
    b'{"generation":"","prompt_token_count":null,"generation_token_count":2,"stop_reason":"stop",'
    b'"amazon-bedrock-invocationMetrics":{"inputTokenCount":3,"outputTokenCount":2,"invocationLatency":1,"firstByteLatency":1}}'
)


def chunk(native: bytes) -> bytes:
    import base64

    return event_frame("chunk", b'{"bytes":"' + base64.b64encode(native) + b'","p":"abc"}')


FIRST = chunk(b'{"generation":"hel","prompt_token_count":3,"generation_token_count":1,"stop_reason":null}')
LAST = chunk(METRICS)
STREAM = {"content-type": "application/vnd.amazon.eventstream", "x-amzn-requestid": "req-2"}


class FixedPrice:
    """Costs one nano-dollar per token; enough to tell the tokens apart from the ceiling."""

    upstream_free = False

    def cost(self, usage: Any, tier: str, latency: str, at: float) -> tuple[int, str]:
        return usage.input_tokens + usage.output_tokens, "v1"


class Client:
    """A sink that may leave after so many sends."""

    def __init__(self, leave_after: int | None = None) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.finished = False
        self.sends = 0
        self._leave_after = leave_after

    @property
    def gone(self) -> bool:
        return self._leave_after is not None and self.sends >= self._leave_after

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status, self.headers = status, dict(headers)

    async def send(self, data: bytes) -> None:
        self.sends += 1
        self.body += data

    async def finish(self, data: bytes = b"") -> None:
        self.body += data
        self.finished = True


class World:
    """A bank, an upstream by script, a recorder on disk, and one caller with a budget."""

    def __init__(
        self,
        directory: Path,
        script: Callable[[UpstreamRequest], Scripted],
        limit: int = 10 * CEILING,
        held_wait: float = 0.0,
    ) -> None:
        self.bank = MemoryBank()
        self.tenant, self.key, self.credential = uuid7(), uuid7(), uuid7()
        self.bank.add_spender(self.tenant, None, self.key, self.credential)
        self.budget = self.bank.add_budget("tenant", self.tenant, limit)
        self.recorder = FlightRecorder(directory)
        self.upstream = ScriptedUpstream(script)
        self.kit = Kit(
            bank=self.bank, recorder=self.recorder, upstream=self.upstream, limiter=MemoryLimiter(),
            queue=(queue := HeldQueue()), settler=Settler(self.bank, self.recorder, queue),
            bounds=Bounds(call=5, first_byte=0.2, idle=0.2, drain=0.3, drain_calls=2, hold=0.2, held_wait=held_wait),
            classify=classify,
        )  # fmt: skip

    def call(self, *, stream: bool = False, legs: int = 1) -> Call:
        operation = Operation.INVOKE_MODEL_WITH_RESPONSE_STREAM if stream else Operation.INVOKE_MODEL
        dialect = dialects.native("llama")
        caller = Caller(tenant=self.tenant, tenant_slug="acme", project=None, project_slug=None, key=self.key,
                        key_name="k", credential=self.credential, policy=Policy(plan="default", version="1"))  # fmt: skip
        return Call(
            id=uuid7(), caller=caller, operation=operation, wire="bedrock", dialect=dialect,
            meter=lambda: dialect.meter({}), broken=BedrockWires(first_byte=1, idle=1).breaker(operation),
            stream=stream, spend=None, estimate=5, tags=0, label="acme",
            began=time.monotonic(), legs=tuple(self.leg(i) for i in range(legs)),
            price_label=lambda version: None, deny=lambda a, ceiling, floor: denial(a, ceiling, floor, "acme"),
            clamp=lambda headroom, floor: None, floor=lambda tokens: CEILING,
        )  # fmt: skip

    def leg(self, number: int) -> Leg:
        target = Target(model="m", model_id=f"m-{number}", region="us-east-1")

        def request(attempt: UUID) -> UpstreamRequest:
            return UpstreamRequest(target=target, method="POST", path="/model/m/invoke", headers={},
                                   body=b"{}", first_byte_timeout=0.2, read_timeout=0.2)  # fmt: skip

        return Leg(target=target, priced=FixedPrice(), ceiling=CEILING, model_label=1,  # type: ignore[arg-type]
                   target_label=2, price_label=3, request=request)  # fmt: skip

    def entries(self) -> list[tuple[State, Why, int]]:
        return [(row.state, row.entries[0].why, row.cost) for row in self.attempts()]

    def attempts(self) -> list[Any]:
        return sorted(self.bank.book.rows.values(), key=lambda row: row.attempt.attempt)

    def money(self) -> tuple[int, int]:
        """(reserved, settled) of the budget."""
        [account] = self.bank.book.accounts.values()
        return account.reserved, account.settled

    def nothing_is_open(self) -> None:
        assert self.money()[0] == 0
        assert all(a.state is not State.OPEN for a in self.attempts())
        self.recorder.shut()
        assert flight.orphans(self.recorder.directory) == []
        assert not self.kit.running


@pytest.fixture
def world(tmp_path: Path) -> Callable[..., World]:
    def make(*answers: Scripted, **options: Any) -> World:
        remaining = list(answers)
        return World(tmp_path, lambda _: remaining.pop(0), **options)

    return make


async def run(world: World, *, stream: bool = False, legs: int = 1, client: Client | None = None) -> Client:
    client = client or Client()
    await Exchange(world.kit, world.call(stream=stream, legs=legs), client).run()
    return client


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
