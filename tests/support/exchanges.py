"""One exchange with doubles: a bank, an upstream by script, a recorder on disk, and who reads the answer."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from proxy import recorder as flight
from proxy.bedrock import dialects
from proxy.bedrock.eventstream import event_frame
from proxy.bedrock.wires import BedrockWires, classify
from proxy.call import Bounds, Call, Kit, Leg
from proxy.clock import uuid7
from proxy.domain.catalogue import Target
from proxy.domain.denial import denial
from proxy.domain.ledger import Operation, State, Why
from proxy.domain.policy import Policy
from proxy.domain.tenant import Caller
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


async def run(world: World, *, stream: bool = False, legs: int = 1, client: Client | None = None) -> Client:
    client = client or Client()
    await Exchange(world.kit, world.call(stream=stream, legs=legs), client).run()
    return client
