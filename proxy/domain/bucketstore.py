"""Buckets and leases in memory: what `redis/limiter.lua` does with keys, told in Python.

Pure: the time is an argument. It decides for a worker that cannot reach Redis, it is the in-memory
double of the tests, and the Lua program is tested to give the same answers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

from proxy.domain import bucket
from proxy.domain.bucket import LEASE_TTL_US, REFUSAL_TTL_US, UNITS_MAX, Charge, Spend, Step, correct

#: ended leases are forgotten by one spend in so many
PURGE_EVERY = 16


@dataclass(slots=True)
class _Record:
    state: Literal["open", "refused", "settled"]
    until_us: int
    reply: tuple[int, ...]
    charges: tuple[Charge, ...] = ()


@dataclass(slots=True)
class Buckets:
    """Buckets and leases in memory, by key; what `limiter.lua` does in Redis.

    Replies are flat integers: 1 or 0 (allowed), then per charge us until full, then per lease slots in
    use; n that does not fit is told as -1 - n. A limit in mode observe that does not fit is not taken, so
    its bucket tells what enforcing would have done.
    """

    ttl_us: int = LEASE_TTL_US
    _full_at: dict[str, int] = field(default_factory=dict)
    _slots: dict[str, dict[UUID, int]] = field(default_factory=dict)
    _records: dict[UUID, _Record] = field(default_factory=dict)

    def spend(self, spend: Spend, now_us: int) -> tuple[int, ...]:
        """All charges and leases, or none. The same id gets the first reply again until it is settled."""
        known = self._record(spend.id, now_us)
        if known is not None:
            return known.reply or (0,) * (1 + len(spend.charges) + len(spend.leases))
        steps = [bucket.spend(self._full_at.get(c.key, 0), now_us, c) for c in spend.charges]
        used = [self._count(lease.key, now_us) for lease in spend.leases]
        fits = [s.allowed for s in steps] + [
            n < lease.slots for n, lease in zip(used, spend.leases, strict=True)
        ]
        allowed = all(
            fit or not item.enforce for fit, item in zip(fits, spend.charges + spend.leases, strict=True)
        )
        if allowed:
            self._take(spend, steps, fits, now_us)
            used = [n + fit for n, fit in zip(used, fits[len(steps) :], strict=True)]
        reply = [int(allowed)]
        ahead = [max(self._full_at.get(charge.key, 0) - now_us, 0) for charge in spend.charges]
        reply += [n if fit else -1 - n for n, fit in zip(ahead + used, fits, strict=True)]
        until = now_us + (self.ttl_us if allowed else REFUSAL_TTL_US)
        self._records[spend.id] = _Record(
            "open" if allowed else "refused", until, tuple(reply), spend.charges
        )
        return tuple(reply)

    def settle(self, spend: Spend, actual_tokens: int | None, now_us: int) -> bool:
        """Leases come back and token buckets are corrected, once. False when it did nothing."""
        record = self._record(spend.id, now_us)
        if record is not None and record.state != "open":
            return False
        for lease in spend.leases:
            self._slots.get(lease.key, {}).pop(spend.id, None)
        if record is not None:
            for i, charge in enumerate(record.charges):
                if charge.dimension == "tokens" and record.reply[1 + i] >= 0:
                    full_at = self._full_at.get(charge.key, 0)
                    actual = min(max(actual_tokens or 0, 0), UNITS_MAX)
                    self._put(charge.key, correct(full_at, now_us, charge, actual), now_us)
        self._records[spend.id] = _Record("settled", now_us + self.ttl_us, ())
        return record is not None

    def renew(self, spend: Spend, now_us: int) -> bool:
        """A call still runs: its leases and its record last another term.

        A spend that is not known (decided elsewhere, or forgotten) takes its enforced slots anyway,
        because the call is there. False when the spend was settled or refused.
        """
        record = self._record(spend.id, now_us)
        if record is not None and record.state != "open":
            return False
        first = 1 + len(spend.charges)
        for i, lease in enumerate(spend.leases):
            if record.reply[first + i] >= 0 if record else lease.enforce:
                self._slots.setdefault(lease.key, {})[spend.id] = now_us + self.ttl_us
        if record is not None:
            record.until_us = now_us + self.ttl_us
        return True

    def knows(self, spend: UUID) -> bool:
        return spend in self._records

    def prune(self, now_us: int) -> None:
        """Forget what is full, free or over."""
        self._full_at = {k: t for k, t in self._full_at.items() if t > now_us}
        self._records = {k: r for k, r in self._records.items() if r.until_us > now_us}
        for key in list(self._slots):
            self._purge(key, now_us)

    def _take(self, spend: Spend, steps: list[Step], fits: list[bool], now_us: int) -> None:
        for charge, step in zip(spend.charges, steps, strict=True):
            if step.allowed:
                self._put(charge.key, step.full_at_us, now_us)
        for lease, fit in zip(spend.leases, fits[len(steps) :], strict=True):
            if fit:
                self._slots.setdefault(lease.key, {})[spend.id] = now_us + self.ttl_us

    def _put(self, key: str, full_at_us: int, now_us: int) -> None:
        """A full bucket is an absent one."""
        if full_at_us > now_us:
            self._full_at[key] = full_at_us
        else:
            self._full_at.pop(key, None)

    def _record(self, spend: UUID, now_us: int) -> _Record | None:
        record = self._records.get(spend)
        return record if record is not None and record.until_us > now_us else None

    def _count(self, key: str, now_us: int) -> int:
        """The leases that have not ended. Those that have are forgotten now and then, as Redis does it: a clock
        that steps back finds the others again.
        """
        if now_us % PURGE_EVERY == 0:
            self._purge(key, now_us)
        return sum(until > now_us for until in self._slots.get(key, {}).values())

    def _purge(self, key: str, now_us: int) -> None:
        live = {k: until for k, until in self._slots.get(key, {}).items() if until > now_us}
        if live:
            self._slots[key] = live
        else:
            self._slots.pop(key, None)
