"""Token buckets told as GCRA: one number per bucket, the time at which it will be full again.

Times are integer microseconds. A bucket of rate r per minute has an emission interval
60e6 / r per unit; taking `cost` units moves its *full-at* time by cost x interval. It may move at
most `burst` ahead of now. Worked: 60 per minute, burst 10, now 0. A call moves full-at to 1 s; ten
calls move it to 10 s; the eleventh would need 11 s > 10 s, so it is refused and told to come back
in 1 s. A cost above the burst passes when the bucket is full and leaves debt.

This module, with `bucketstore`, is the readable twin of `redis/limiter.lua` and is tested to equal
it on random sequences. Rounding favours the caller by less than 1 us per call. Every number stays
below 2**53, which is what Lua can count to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal
from uuid import UUID

from proxy.domain.policy import Limit
from proxy.domain.tenant import Caller

Mode = Literal["redis", "local", "deny", "allow"]
Dimension = Literal["requests", "tokens", "concurrency"]

MINUTE_US = 60_000_000
#: no bucket falls deeper into debt than this, whatever was taken from it
DEBT_MAX_US = 7 * 24 * 3600 * 1_000_000
#: largest cost and burst (units) and largest rate (units per minute); larger ones are lowered to these
UNITS_MAX = 100_000_000
RATE_MAX = 1_000_000_000
#: a lease and the memory of a spend end this long after the last spend or renew
LEASE_TTL_US = 60_000_000
#: renewing this often survives two lost renewals
RENEW_EVERY_S = 15.0
#: how long the same spend id gets the same refusal
REFUSAL_TTL_US = 5_000_000
#: told to a caller whose wait cannot be computed: a slot that must come free
SLOT_RETRY_MS = 1_000
#: and to one whose limit is 0
CLOSED_RETRY_MS = 60_000


@dataclass(slots=True)
class Charge:
    """What one call takes from one bucket. `per_minute` 0 refuses everything."""

    key: str
    scope: str
    dimension: Literal["requests", "tokens"]
    per_minute: int
    #: units that may be taken at once, at least 1
    burst: int
    cost: int
    limit_id: UUID
    enforce: bool = True


@dataclass(frozen=True, slots=True)
class Lease:
    """One of `slots` places that a running call holds. 0 slots refuse everything."""

    key: str
    scope: str
    limit_id: UUID
    slots: int
    enforce: bool = True


@dataclass(slots=True)
class Spend:
    """All that one call takes, all or nothing. `id` makes a repetition harmless."""

    tenant: UUID
    id: UUID
    charges: tuple[Charge, ...] = ()
    leases: tuple[Lease, ...] = ()

    @property
    def record(self) -> str:
        """Key of what is remembered of this spend."""
        return f"th:{{{self.tenant}}}:s:{self.id.hex}"


@dataclass(slots=True)
class Snapshot:
    """An enforced limit after a decision. `limit` is units per minute (slots for concurrency),
    `burst` the most that `remaining` can be, `reset_ms` the time until it is that again.
    """

    dimension: Dimension
    scope: str
    limit: int
    remaining: int
    reset_ms: int
    burst: int


@dataclass(slots=True)
class Decision:
    """`limited` is the enforced limit with the longest wait, None when allowed or denied without
    looking. `observed` are the limits in mode observe that would have refused.
    """

    allowed: bool
    mode: Mode
    limited: Charge | Lease | None = None
    retry_after_ms: int = 0
    snapshots: tuple[Snapshot, ...] = ()
    observed: tuple[Charge | Lease, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """Outcome for one bucket: its state if the charge is taken, or how long until it could be."""

    allowed: bool
    full_at_us: int
    wait_us: int


def span_us(units: int, per_minute: int) -> int:
    """Time in which a bucket of this rate gains `units`; at least 1 us for any unit."""
    if units <= 0:
        return 0
    return min(max(units * MINUTE_US // per_minute, 1), DEBT_MAX_US)


def burst_us(charge: Charge) -> int:
    """How far ahead of now the full-at time of this bucket may be."""
    return min(-(-charge.burst * MINUTE_US // charge.per_minute), DEBT_MAX_US)


def spend(full_at_us: int, now_us: int, charge: Charge) -> Step:
    """Take the charge from a bucket if it fits; nothing changes when it does not."""
    if charge.per_minute <= 0:
        return Step(False, max(full_at_us, now_us), CLOSED_RETRY_MS * 1000)
    ahead = max(full_at_us - now_us, 0)
    cost = span_us(charge.cost, charge.per_minute)
    wait = ahead - max(burst_us(charge) - cost, 0)
    if wait > 0:
        return Step(False, now_us + ahead, wait)
    return Step(True, now_us + ahead + cost, 0)


def correct(full_at_us: int, now_us: int, charge: Charge, actual: int) -> int:
    """The full-at time once `actual` units turned out to be the true cost of a taken charge."""
    used = span_us(actual, charge.per_minute) - span_us(charge.cost, charge.per_minute)
    return now_us + min(max(full_at_us - now_us, 0) + used, DEBT_MAX_US)


def remaining(ahead_us: int, charge: Charge) -> int:
    """Whole units that could be taken now from a bucket that is full in `ahead_us`."""
    if charge.per_minute <= 0:
        return 0
    room = max(burst_us(charge) - ahead_us, 0)
    return min(room * charge.per_minute // MINUTE_US, charge.burst)


def decision(spend: Spend, reply: tuple[int, ...] | list[int], mode: Mode) -> Decision:
    """What the integers of `Buckets.spend` (or of `limiter.lua`) say, in words."""
    allowed = bool(reply[0])
    limited: Charge | Lease | None = None
    retry_ms, at = 0, 1
    snapshots: list[Snapshot] = []
    observed: list[Charge | Lease] = []
    items: tuple[Charge | Lease, ...] = (*spend.charges, *spend.leases)
    for item in items:
        level, fits = reply[at], reply[at + 1]
        at += 2
        if not fits and not item.enforce:
            observed.append(item)
        if not item.enforce:
            continue
        snapshots.append(_snapshot(item, level))
        wait_ms = 0 if fits else _wait_ms(item, level)
        if wait_ms > retry_ms:
            limited, retry_ms = item, wait_ms
    if allowed:
        limited, retry_ms = None, 0
    return Decision(allowed, mode, limited, retry_ms, tuple(snapshots), tuple(observed))


def _snapshot(item: Charge | Lease, level: int) -> Snapshot:
    if isinstance(item, Lease):
        free = max(item.slots - level, 0)
        return Snapshot("concurrency", item.scope, item.slots, free, 0, item.slots)
    left = remaining(level, item)
    return Snapshot(item.dimension, item.scope, item.per_minute, left, -(-level // 1000), item.burst)


def _wait_ms(item: Charge | Lease, ahead_us: int) -> int:
    if isinstance(item, Lease):
        return SLOT_RETRY_MS if item.slots > 0 else CLOSED_RETRY_MS
    return max(-(-spend(ahead_us, 0, item).wait_us // 1000), 1)


def spend_for(caller: Caller, base_model: str, tokens: int, call: UUID) -> Spend | None:
    """What a call of this caller takes: one charge per limited dimension of every limit whose
    models include it. None when nothing limits it.

    `tokens` is the estimate (input plus output limit); with 0 no token bucket is touched, which
    is meant for calls that use none. Keys are made of uuids only, under the hash tag `{tenant}`.
    """
    charges: list[Charge] = []
    leases: list[Lease] = []
    for limit in caller.policy.limits:
        if limit.models is not None and base_model not in limit.models:
            continue
        requests_key, tokens_key, lease_key = _keys(caller.tenant, limit.id, limit.subject)
        enforce = limit.mode == "enforce"
        if limit.requests_per_minute is not None:
            rate, burst = _rate(limit, limit.requests_per_minute)
            charges.append(Charge(requests_key, limit.scope, "requests", rate, burst, 1, limit.id, enforce))
        if limit.tokens_per_minute is not None and tokens > 0:
            rate, burst = _rate(limit, limit.tokens_per_minute)
            cost = min(tokens, UNITS_MAX)
            charges.append(Charge(tokens_key, limit.scope, "tokens", rate, burst, cost, limit.id, enforce))
        if limit.concurrency is not None:
            leases.append(Lease(lease_key, limit.scope, limit.id, limit.concurrency, enforce))
    if not charges and not leases:
        return None
    return Spend(caller.tenant, call, tuple(charges), tuple(leases))


def _rate(limit: Limit, per_minute: int) -> tuple[int, int]:
    rate = min(max(per_minute, 0), RATE_MAX)
    return rate, min(max(rate * limit.burst_seconds // 60, 1), UNITS_MAX)


@lru_cache(maxsize=65_536)
def _keys(tenant: UUID, limit: UUID, subject: UUID) -> tuple[str, str, str]:
    stem = f"th:{{{tenant}}}:{limit.hex}:{subject.hex}:"
    return stem + "r", stem + "t", stem + "c"


def share(spend: Spend, replicas: int) -> Spend:
    """The spend against one of `replicas` equal parts of every limit; each part is at least 1, so
    that a limit below the number of replicas lets more through, never nothing.
    """
    if replicas <= 1:
        return spend

    def part(n: int) -> int:
        return max(n // replicas, 1) if n > 0 else 0

    charges = tuple(replace(c, per_minute=part(c.per_minute), burst=part(c.burst)) for c in spend.charges)
    leases = tuple(replace(lease, slots=part(lease.slots)) for lease in spend.leases)
    return Spend(spend.tenant, spend.id, charges, leases)


def rate_headers(decision: Decision) -> list[tuple[str, str]]:
    """Headers of an answer, names in lower case: OpenAI's `x-ratelimit-*` (the tightest limit of
    each dimension) and `RateLimit` / `RateLimit-Policy` of draft-ietf-httpapi-ratelimit-headers
    (the tightest of each scope and dimension). Limits in mode observe are not shown.
    """
    tightest: dict[str, Snapshot] = {}
    named: dict[str, Snapshot] = {}
    for shot in decision.snapshots:
        name = f"{shot.scope}-{shot.dimension}"
        for seen, key in ((tightest, shot.dimension), (named, name)):
            if key not in seen or shot.remaining < seen[key].remaining:
                seen[key] = shot
    headers = [h for d in ("requests", "tokens") if d in tightest for h in _openai(d, tightest[d])]
    if named:
        headers.append(("ratelimit-policy", ", ".join(_policy(n, s) for n, s in named.items())))
        headers.append(("ratelimit", ", ".join(_state(n, s) for n, s in named.items())))
    return headers


def _openai(dimension: str, shot: Snapshot) -> list[tuple[str, str]]:
    return [
        (f"x-ratelimit-limit-{dimension}", str(shot.limit)),
        (f"x-ratelimit-remaining-{dimension}", str(shot.remaining)),
        (f"x-ratelimit-reset-{dimension}", duration(shot.reset_ms)),
    ]


def _policy(name: str, shot: Snapshot) -> str:
    if shot.dimension == "concurrency":
        return f'"{name}";q={shot.limit};qu="concurrent-requests"'
    window_s = max(-(-shot.burst * 60 // shot.limit), 1) if shot.limit else 60
    unit = ';qu="tokens"' if shot.dimension == "tokens" else ""
    return f'"{name}";q={shot.burst}{unit};w={window_s}'


def _state(name: str, shot: Snapshot) -> str:
    if shot.dimension == "concurrency":
        return f'"{name}";r={shot.remaining}'
    return f'"{name}";r={shot.remaining};t={-(-shot.reset_ms // 1000)}'


def duration(ms: int) -> str:
    """As OpenAI writes it: `120ms`, `1.5s`, `6m0s`, `1h0m0s`."""
    if ms < 1000:
        return f"{ms}ms"
    if ms < 60_000:
        return f"{ms / 1000:g}s"
    hours, rest = divmod(-(-ms // 1000), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}h{minutes}m{seconds}s" if hours else f"{minutes}m{seconds}s"
