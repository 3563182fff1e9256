"""Capacity: quotas per sliding minute as Bedrock counts them, and the prompt cache's memory."""

import time
from collections import deque
from collections.abc import Mapping

from proxy.simulator.catalog import Model
from proxy.simulator.config import Quota
from proxy.simulator.errors import Refusal
from proxy.simulator.families.base import Mark
from proxy.simulator.prices import Usage

WINDOW_SECONDS = 60.0
_TTL_SECONDS = {"5m": 300.0, "1h": 3_600.0}
#: Output tokens count this many times against the quota (AWS user guide, token burndown).
_BURNDOWN = (
    ("anthropic.claude-opus-4-8", 15),
    ("anthropic.claude-opus-5", 10),
    ("anthropic.claude-sonnet-5", 10),
    ("anthropic.claude-fable-5", 10),
    ("openai.gpt-5.6", 10),
    ("anthropic.", 5),
)


def burndown(base: str) -> int:
    return next((factor for prefix, factor in _BURNDOWN if base.startswith(prefix)), 1)


class Lease:
    """One call's share of a quota."""

    __slots__ = ("_bucket", "at", "tokens")

    def __init__(self, bucket: "_Bucket", at: float, tokens: int) -> None:
        self._bucket = bucket
        self.at = at
        self.tokens = tokens

    def end(self, base: str, usage: Usage) -> None:
        """The reservation becomes what was used; cache reads are free."""
        used = usage.input + usage.cache_write + usage.cache_write_1h + usage.output * burndown(base)
        self._bucket.running -= 1
        self._bucket.tokens += used - self.tokens
        self.tokens = used


class _Bucket:
    def __init__(self) -> None:
        self.leases: deque[Lease] = deque()
        self.tokens = 0
        self.running = 0

    def expire(self, now: float) -> None:
        while self.leases and now - self.leases[0].at >= WINDOW_SECONDS:
            self.tokens -= self.leases.popleft().tokens


class Quotas:
    """On-demand quotas by model, and those of provisioned ARNs."""

    def __init__(self, quotas: Mapping[str, Quota]) -> None:
        self._configured = dict(quotas)
        self._buckets: dict[str, _Bucket] = {}
        self.reset()

    def reset(self) -> None:
        """The configured quotas again, unused."""
        self.quotas = dict(self._configured)
        self._buckets.clear()

    def take(self, model: Model, tokens: int) -> Lease | None:
        """``tokens``: prompt plus output limit. Raises ThrottlingException; None where nothing is limited."""
        name = model.requested
        quota = model.quota
        if quota is None and model.per_token and self.quotas:
            name = next(
                (key for key in (model.requested, model.price_id, model.base) if key in self.quotas), ""
            )
            quota = self.quotas.get(name)
        if quota is None:
            return None
        bucket = self._buckets.setdefault(name, _Bucket())
        now = time.monotonic()
        bucket.expire(now)
        if quota.concurrency is not None and bucket.running >= quota.concurrency:
            raise Refusal("ThrottlingException")
        if quota.requests_per_minute is not None and len(bucket.leases) >= quota.requests_per_minute:
            raise Refusal("ThrottlingException")
        if quota.tokens_per_minute is not None and bucket.tokens + tokens > quota.tokens_per_minute:
            raise Refusal("ThrottlingException", "Too many tokens, please wait before trying again.")
        lease = Lease(bucket, now, tokens)
        bucket.leases.append(lease)
        bucket.tokens += tokens
        bucket.running += 1
        return lease


class PromptCache:
    """Prefixes that checkpoints wrote, per model: written once, read until their time to live ends."""

    def __init__(self, min_tokens: int) -> None:
        self._min_tokens = min_tokens
        self._ends: dict[tuple[str, bytes], float] = {}

    def clear(self) -> None:
        self._ends.clear()

    def split(self, model: Model, prompt_tokens: int, marks: list[Mark]) -> Usage:
        """Input, cache reads and writes of one prompt. A read renews the prefix it reads."""
        now = time.monotonic()
        usage = Usage(input=prompt_tokens)
        marks = [mark for mark in marks if mark.tokens >= self._min_tokens]
        done = 0
        for mark in reversed(marks):
            if self._ends.get((model.base, mark.digest), 0.0) > now:
                done = mark.tokens
                break
        usage.cache_read = done
        for mark in marks:
            self._ends[model.base, mark.digest] = now + _TTL_SECONDS[mark.ttl]
            fresh = max(0, mark.tokens - done)
            done = max(done, mark.tokens)
            if mark.ttl == "1h":
                usage.cache_write_1h += fresh
            else:
                usage.cache_write += fresh
        usage.input = prompt_tokens - done
        return usage
