"""When somebody should be told. Facts and the time go in, conditions that hold come out.

A condition is named by its subject and by what holds of it; whoever keeps the names tells it once
when it begins. Money is integer nano-dollars, times are aware.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID

KINDS = ("threshold", "forecast", "anomaly", "key_expiry", "ceilings", "test")
#: kinds that are told once for their subject, whatever becomes of the condition; thresholds and the
#: like begin anew when they were false in between
ONCE = frozenset({"forecast", "anomaly", "key_expiry"})
#: a forecast needs so much of the period behind it and so much of the limit spent
_PACE_SHARE = Decimal("0.05")
_SPENT_SHARE = Decimal("0.1")
#: an anomaly needs so many days of history and at least so much money
HISTORY_DAYS = 28
_HISTORY_DAYS_MIN = 7
_ANOMALY_MIN = 1_000_000_000
EXPIRY_DAYS = (7, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    subject: str
    kind: str
    #: of what was told apart from others of its kind and subject, such as a share
    detail: str
    tenant: UUID | None
    message: str
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def what(self) -> str:
        return f"{self.kind}:{self.detail}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetFacts:
    """A budget in its current period. `spent` includes overruns, not what is only held."""

    budget: UUID
    account: int
    tenant: UUID
    scope: str
    period: str
    limit: int
    spent: int
    starts_at: dt.datetime
    #: None for a budget without an end
    ends_at: dt.datetime | None
    thresholds: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFacts:
    key: UUID
    name: str
    tenant: UUID
    tenant_slug: str
    expires_at: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendFacts:
    """What a tenant spent on each of its last local days, the oldest first, and today so far."""

    tenant: UUID
    tenant_slug: str
    today: str
    spent: int
    history: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class CeilingFacts:
    """Attempts of a tenant on a target that were charged their ceiling and nothing explained since."""

    tenant: UUID
    tenant_slug: str
    target: str
    attempts: int
    charged: int


def of_budget(facts: BudgetFacts, now: dt.datetime) -> list[Condition]:
    """Thresholds that are reached, and whether the limit is reached before the period ends."""
    found = [_reached(facts, share) for share in facts.thresholds if _is_reached(facts, Decimal(share))]
    forecast = _forecast(facts, now)
    return found if forecast is None else [*found, forecast]


def _is_reached(facts: BudgetFacts, share: Decimal) -> bool:
    return facts.spent > 0 and facts.spent >= share * facts.limit


def _reached(facts: BudgetFacts, share: str) -> Condition:
    percent = f"{Decimal(share) * 100:f}".rstrip("0").rstrip(".") if "." in share else str(int(share) * 100)
    message = (
        f"{facts.scope} has spent {_usd(facts.spent)} USD, {percent} % of its budget of "
        f"{_usd(facts.limit)} USD per {facts.period}"
    )
    return Condition(
        subject=_account(facts), kind="threshold", detail=share, tenant=facts.tenant, message=message,
        data=_budget_data(facts) | {"threshold": share},
    )  # fmt: skip


def _forecast(facts: BudgetFacts, now: dt.datetime) -> Condition | None:
    """At the pace of the period so far. A limit that is reached already is no forecast."""
    if facts.ends_at is None or facts.spent >= facts.limit or facts.spent < _SPENT_SHARE * facts.limit:
        return None
    passed, whole = now - facts.starts_at, facts.ends_at - facts.starts_at
    if passed <= dt.timedelta(0) or passed < float(_PACE_SHARE) * whole:
        return None
    reached = facts.starts_at + passed * (facts.limit / facts.spent)
    if reached >= facts.ends_at:
        return None
    message = (
        f"at this pace {facts.scope} will have spent its budget of {_usd(facts.limit)} USD per "
        f"{facts.period} by {reached:%Y-%m-%d %H:%M} UTC, before the period ends on {facts.ends_at:%Y-%m-%d}"
    )
    return Condition(
        subject=_account(facts), kind="forecast", detail="spent-early", tenant=facts.tenant, message=message,
        data=_budget_data(facts) | {"reached_at": reached.isoformat()},
    )  # fmt: skip


def of_spend(facts: SpendFacts) -> Condition | None:
    """Today is far above the tenant's own days: three times their mean, and four deviations above it."""
    history = facts.history[-HISTORY_DAYS:]
    if len(history) < _HISTORY_DAYS_MIN or facts.spent < _ANOMALY_MIN:
        return None
    mean = sum(history) // len(history)
    deviation = math.isqrt(sum((one - mean) ** 2 for one in history) // len(history))
    usual = max(3 * mean, mean + 4 * deviation)
    if facts.spent <= usual:
        return None
    message = (
        f"tenant:{facts.tenant_slug} has spent {_usd(facts.spent)} USD today; its mean of the last "
        f"{len(history)} days is {_usd(mean)} USD"
    )
    data = {"day": facts.today, "spent_usd": _usd(facts.spent), "mean_usd": _usd(mean)}
    return Condition(
        subject=f"tenant:{facts.tenant_slug}", kind="anomaly", detail=facts.today, tenant=facts.tenant,
        message=message, data=data,
    )  # fmt: skip


def of_key(facts: KeyFacts, now: dt.datetime) -> list[Condition]:
    """A key that ends within seven days, and again within one."""
    left = facts.expires_at - now
    days = [days for days in EXPIRY_DAYS if dt.timedelta(0) < left <= dt.timedelta(days=days)]
    message = f"the key {facts.name!r} of tenant:{facts.tenant_slug} expires at {facts.expires_at:%Y-%m-%d %H:%M} UTC"
    data = {"key": str(facts.key), "name": facts.name, "expires_at": facts.expires_at.isoformat()}
    return [
        Condition(
            subject=f"key:{facts.key}", kind="key_expiry", detail=f"{facts.expires_at:%Y%m%dT%H%M%S}/{d}d",
            tenant=facts.tenant, message=message, data=data,
        )
        for d in days
    ]  # fmt: skip


def of_ceilings(facts: CeilingFacts) -> Condition:
    message = (
        f"{facts.attempts} calls of tenant:{facts.tenant_slug} on {facts.target} were charged their ceiling, "
        f"{_usd(facts.charged)} USD together, and nothing has explained them yet"
    )
    data = {"target": facts.target, "attempts": facts.attempts, "charged_usd": _usd(facts.charged)}
    return Condition(
        subject=f"tenant:{facts.tenant_slug}", kind="ceilings", detail=facts.target, tenant=facts.tenant,
        message=message, data=data,
    )  # fmt: skip


def _account(facts: BudgetFacts) -> str:
    return f"budget:{facts.budget}/{facts.account}"


def _budget_data(facts: BudgetFacts) -> dict[str, Any]:
    return {
        "budget": str(facts.budget), "scope": facts.scope, "period": facts.period,
        "limit_usd": _usd(facts.limit), "spent_usd": _usd(facts.spent),
        "period_start": facts.starts_at.isoformat(),
        "resets_at": None if facts.ends_at is None else facts.ends_at.isoformat(),
    }  # fmt: skip


def _usd(nano_dollars: int) -> str:
    whole, part = divmod(nano_dollars, 1_000_000_000)
    return f"{whole}.{f'{part:09d}'.rstrip('0').ljust(2, '0')}"


def back_off_seconds(tries: int) -> int | None:
    """How long after a failed delivery the next is made; None: it was the last."""
    steps = (10, 30, 120, 600, 1800, 3600, 10_800, 21_600, 43_200)
    return steps[tries - 1] if tries <= len(steps) else None
