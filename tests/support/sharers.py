"""One worker's sharing over a world of exchanges, and the answers its tests play."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

from proxy.bedrock.interventions import intervened
from proxy.call import Call
from proxy.domain.caching import Terms
from proxy.domain.ledger import State
from proxy.domain.policy import CachePolicy
from proxy.domain.usage import NOTHING
from proxy.exchange import Exchange
from proxy.hits import Hits
from proxy.ports import Answer
from proxy.sharing import Sharing
from proxy.testing_cache import MemoryCache
from proxy.testing_upstream import Scripted
from tests.support.exchanges import BODY, FIRST, HEADERS, LAST, STREAM, Client, World

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


def cached(client: Client) -> str:
    return client.headers[b"x-tollhouse-cache"].decode()
