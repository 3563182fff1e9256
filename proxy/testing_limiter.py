"""An in-memory limiter for tests: the same decisions as the one over Redis, with a clock in hand.

It passes the same contract suite. One process, one event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from proxy.domain.bucket import Decision, Mode, Spend, decision
from proxy.domain.bucketstore import Buckets


class ManualClock:
    """Microseconds that move only when told."""

    def __init__(self, now_us: int = 1_700_000_000_000_000) -> None:
        self.now_us = now_us

    def __call__(self) -> int:
        return self.now_us

    def advance(self, *, us: int = 0, seconds: float = 0) -> None:
        self.now_us += us + round(seconds * 1_000_000)


class MemoryLimiter:
    """A `ports.Limiter` over `Buckets`. `mode` may be set to play an outage."""

    def __init__(self, clock_us: Callable[[], int] | None = None) -> None:
        self.mode: Mode = "redis"
        self.clock_us = clock_us or ManualClock()
        self.buckets = Buckets()

    async def spend(self, spend: Spend) -> Decision:
        if self.mode == "allow":
            return Decision(allowed=True, mode="allow")
        if self.mode == "deny":
            return Decision(allowed=False, mode="deny", retry_after_ms=1_000)
        return decision(spend, self.buckets.spend(spend, self.clock_us()), self.mode)

    async def settle(self, spend: Spend, actual_tokens: int | None) -> None:
        self.buckets.settle(spend, actual_tokens, self.clock_us())

    async def renew(self, spends: Sequence[Spend]) -> None:
        for spend in spends:
            self.buckets.renew(spend, self.clock_us())
