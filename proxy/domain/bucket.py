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

from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from typing import Any, Literal
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

    #: which of its tenant's buckets
    key: str
    scope: str
    dimension: Literal["requests", "tokens"]
    per_minute: int
    #: units that may be taken at once, at least 1
    burst: int
    cost: int
    limit_id: UUID
    enforce: bool = True
    #: how far ahead of now the bucket's full-at time may be, µs; worked out unless given
    reach_us: int = field(default=-1, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.reach_us < 0 < self.per_minute:
            self.reach_us = min(-(-self.burst * MINUTE_US // self.per_minute), DEBT_MAX_US)

    def move(self) -> tuple[int, int]:
        """By how much the charge moves the full-at time, and how far ahead of now that may be before; µs. A
        cost above the burst needs a full bucket; (0, -1): never.
        """
        if self.per_minute <= 0:
            return 0, -1
        span = span_us(self.cost, self.per_minute)
        return span, max(self.reach_us - span, 0)

    def shot(self, ahead_us: int) -> Snapshot:
        left, reset_ms = remaining(ahead_us, self), -(-ahead_us // 1000)
        return Snapshot(self.dimension, self.scope, self.per_minute, left, reset_ms, self.burst)


@dataclass(frozen=True, slots=True)
class Lease:
    """One of `slots` places that a running call holds. 0 slots refuse everything."""

    key: str
    scope: str
    limit_id: UUID
    slots: int
    enforce: bool = True

    def shot(self, used: int) -> Snapshot:
        return Snapshot("concurrency", self.scope, self.slots, max(self.slots - used, 0), 0, self.slots)


@dataclass(slots=True)
class Spend:
    """All that one call takes, all or nothing. `id` makes a repetition harmless."""

    tenant: UUID
    id: UUID
    charges: tuple[Charge, ...] = ()
    leases: tuple[Lease, ...] = ()
    #: for the store that takes it: what it has worked out about this spend, to settle it later
    notes: Any = field(default=None, compare=False, repr=False)

    @property
    def record(self) -> str:
        """Key of what is remembered of this spend."""
        return f"{_stem(self.tenant)}s:{self.id.hex}"

    @property
    def buckets(self) -> str:
        """Key of the tenant's buckets, of which each charge names one."""
        return f"{_stem(self.tenant)}full"


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


def spend(full_at_us: int, now_us: int, charge: Charge) -> Step:
    """Take the charge from a bucket if it fits; nothing changes when it does not."""
    ahead = max(full_at_us - now_us, 0)
    span, room = charge.move()
    if room < 0:
        return Step(False, now_us + ahead, CLOSED_RETRY_MS * 1000)
    wait = ahead - room
    if wait > 0:
        return Step(False, now_us + ahead, wait)
    return Step(True, now_us + ahead + span, 0)


def correction_us(charge: Charge, actual: int) -> int:
    """By how much to move the full-at time once `actual` units turned out to be the true cost of a taken charge."""
    return span_us(actual, charge.per_minute) - span_us(charge.cost, charge.per_minute)


def correct(full_at_us: int, now_us: int, charge: Charge, actual: int) -> int:
    """The full-at time after that correction."""
    return now_us + min(max(full_at_us - now_us, 0) + correction_us(charge, actual), DEBT_MAX_US)


def remaining(ahead_us: int, charge: Charge) -> int:
    """Whole units that could be taken now from a bucket that is full in `ahead_us`."""
    room = charge.reach_us - ahead_us
    if room <= 0:
        return 0
    units = room * charge.per_minute // MINUTE_US
    return min(units, charge.burst)


def decision(spend: Spend, reply: tuple[int, ...], mode: Mode) -> Decision:
    """What the integers of `Buckets.spend` (or of `limiter.lua`) say, in words."""
    limited: Charge | Lease | None = None
    retry_ms = 0
    snapshots: list[Snapshot] = []
    observed: list[Charge | Lease] = []
    items: tuple[Charge | Lease, ...] = (*spend.charges, *spend.leases)
    for item, level in zip(items, islice(reply, 1, None), strict=True):
        if level >= 0:
            if item.enforce:
                snapshots.append(item.shot(level))
        elif item.enforce:
            snapshots.append(item.shot(-1 - level))
            if (wait_ms := _wait_ms(item, -1 - level)) > retry_ms:
                limited, retry_ms = item, wait_ms
        else:
            observed.append(item)
    if reply[0]:
        limited, retry_ms = None, 0
    return Decision(bool(reply[0]), mode, limited, retry_ms, tuple(snapshots), tuple(observed))


def _wait_ms(item: Charge | Lease, ahead_us: int) -> int:
    if isinstance(item, Lease):
        return SLOT_RETRY_MS if item.slots > 0 else CLOSED_RETRY_MS
    return max(-(-spend(ahead_us, 0, item).wait_us // 1000), 1)


@dataclass(frozen=True, slots=True)
class _Shape:
    """What every call of one caller and model takes; the cost of the charges at `tokens` differs."""

    limits: tuple[Limit, ...]
    tenant: UUID
    charges: tuple[Charge, ...]
    leases: tuple[Lease, ...]
    tokens: tuple[int, ...]


_SHAPES_MAX = 20_000
_shapes: dict[tuple[int, str, bool], _Shape] = {}


def spend_for(caller: Caller, base_model: str, tokens: int, call: UUID) -> Spend | None:
    """What a call of this caller takes: one charge per limited dimension of every limit whose
    models include it. None when nothing limits it.

    `tokens` is the estimate (input plus output limit); with 0 no token bucket is touched, which
    is meant for calls that use none. Keys are made of uuids only, those of Redis under the hash tag `{tenant}`.
    """
    limits = caller.policy.limits
    key = (id(limits), base_model, tokens > 0)
    shape = _shapes.get(key)
    if shape is None or shape.limits is not limits or shape.tenant != caller.tenant:
        if len(_shapes) >= _SHAPES_MAX:
            _shapes.clear()
        shape = _shapes[key] = _shape(limits, caller.tenant, base_model, charges_tokens=tokens > 0)
    if not shape.charges and not shape.leases:
        return None
    charges = shape.charges
    if shape.tokens:
        cost, own = min(tokens, UNITS_MAX), list(charges)
        for n in shape.tokens:
            c = own[n]
            own[n] = Charge(
                c.key, c.scope, "tokens", c.per_minute, c.burst, cost, c.limit_id, c.enforce, c.reach_us
            )
        charges = tuple(own)
    return Spend(caller.tenant, call, charges, shape.leases)


def _shape(limits: tuple[Limit, ...], tenant: UUID, base_model: str, *, charges_tokens: bool) -> _Shape:
    charges: list[Charge] = []
    leases: list[Lease] = []
    for limit in limits:
        if limit.models is not None and base_model not in limit.models:
            continue
        requests_key, tokens_key, lease_key = _keys(tenant, limit.id, limit.subject)
        enforce = limit.mode == "enforce"
        if limit.requests_per_minute is not None:
            rate, burst = _rate(limit, limit.requests_per_minute)
            charges.append(Charge(requests_key, limit.scope, "requests", rate, burst, 1, limit.id, enforce))
        if limit.tokens_per_minute is not None and charges_tokens:
            rate, burst = _rate(limit, limit.tokens_per_minute)
            charges.append(Charge(tokens_key, limit.scope, "tokens", rate, burst, 0, limit.id, enforce))
        if limit.concurrency is not None:
            leases.append(Lease(lease_key, limit.scope, limit.id, limit.concurrency, enforce))
    tokens = tuple(n for n, charge in enumerate(charges) if charge.dimension == "tokens")
    return _Shape(limits, tenant, tuple(charges), tuple(leases), tokens)


def _rate(limit: Limit, per_minute: int) -> tuple[int, int]:
    rate = min(max(per_minute, 0), RATE_MAX)
    return rate, min(max(rate * limit.burst_seconds // 60, 1), UNITS_MAX)


@lru_cache(maxsize=65_536)
def _keys(tenant: UUID, limit: UUID, subject: UUID) -> tuple[str, str, str]:
    stem = f"{limit.hex}:{subject.hex}:"
    return stem + "r", stem + "t", f"{_stem(tenant)}{stem}c"


@lru_cache(maxsize=65_536)
def _stem(tenant: UUID) -> str:
    """What every key of a tenant begins with: its hash tag."""
    return f"th:{{{tenant}}}:"


def share(spend: Spend, replicas: int) -> Spend:
    """The spend against one of `replicas` equal parts of every limit; each part is at least 1, so
    that a limit below the number of replicas lets more through, never nothing.
    """
    if replicas <= 1:
        return spend

    def part(n: int) -> int:
        return max(n // replicas, 1) if n > 0 else 0

    charges = tuple(
        replace(c, per_minute=part(c.per_minute), burst=part(c.burst), reach_us=-1) for c in spend.charges
    )
    leases = tuple(replace(lease, slots=part(lease.slots)) for lease in spend.leases)
    return Spend(spend.tenant, spend.id, charges, leases)


def rate_headers(decision: Decision) -> list[tuple[bytes, bytes]]:
    """Headers of an answer, names in lower case: OpenAI's `x-ratelimit-*` (the tightest limit of
    each dimension) and `RateLimit` / `RateLimit-Policy` of draft-ietf-httpapi-ratelimit-headers
    (the tightest of each scope and dimension). Limits in mode observe are not shown.
    """
    tightest: dict[str, Snapshot] = {}
    named: dict[tuple[str, str], Snapshot] = {}
    for shot in decision.snapshots:
        seen = tightest.get(shot.dimension)
        if seen is None or shot.remaining < seen.remaining:
            tightest[shot.dimension] = shot
        name = (shot.scope, shot.dimension)
        seen = named.get(name)
        if seen is None or shot.remaining < seen.remaining:
            named[name] = shot
    headers: list[tuple[bytes, bytes]] = []
    for dimension, (limit, left, reset) in _OPENAI.items():
        if (most := tightest.get(dimension)) is not None:
            headers += (
                (limit, b"%d" % most.limit),
                (left, b"%d" % most.remaining),
                (reset, duration(most.reset_ms).encode()),
            )
    if named:
        shots = named.values()
        policies = [_policy(s.scope, s.dimension, s.limit, s.burst) for s in shots]
        headers.append((b"ratelimit-policy", ", ".join(policies).encode()))
        headers.append((b"ratelimit", ", ".join([_state(s) for s in shots]).encode()))
    return headers


_OPENAI = {
    dimension: tuple(f"x-ratelimit-{what}-{dimension}".encode() for what in ("limit", "remaining", "reset"))
    for dimension in ("requests", "tokens")
}


@lru_cache(maxsize=4096)
def _policy(scope: str, dimension: Dimension, limit: int, burst: int) -> str:
    if dimension == "concurrency":
        return f'"{scope}-{dimension}";q={limit};qu="concurrent-requests"'
    window_s = max(-(-burst * 60 // limit), 1) if limit else 60
    unit = ';qu="tokens"' if dimension == "tokens" else ""
    return f'"{scope}-{dimension}";q={burst}{unit};w={window_s}'


def _state(shot: Snapshot) -> str:
    if shot.dimension == "concurrency":
        return f'"{shot.scope}-concurrency";r={shot.remaining}'
    return f'"{shot.scope}-{shot.dimension}";r={shot.remaining};t={-(-shot.reset_ms // 1000)}'


def duration(ms: int) -> str:
    """As OpenAI writes it: `120ms`, `1.5s`, `6m0s`, `1h0m0s`."""
    if ms < 1000:
        return f"{ms}ms"
    if ms < 60_000:
        return f"{ms / 1000:g}s"
    hours, rest = divmod(-(-ms // 1000), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}h{minutes}m{seconds}s" if hours else f"{minutes}m{seconds}s"
