"""Recorded calls replayed under changed policies: what would have been refused, moved and saved.

The ledger keeps no prompts, so what a rule reads of a request is rebuilt from its usage: the output limit
is what was written, the input four bytes a token, no tools and no guardrail. The spent share of budgets is
rebuilt from the replayed costs themselves, so begin where a period begins.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from zoneinfo import ZoneInfo

from proxy.domain.catalogue import Target
from proxy.domain.rules import RuleError
from proxy.domain.usage import Usage
from proxy.errors import ConfigurationError, Refusal
from proxy.policyfile.policyset import PolicySet
from proxy.policyfile.rules import Asked
from proxy.policyfile.trying import outcome

BYTES_PER_TOKEN = 4
Verdict = Literal["same", "refused", "moved", "capped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One resolved attempt. `cost` in nano-dollars."""

    id: str
    tenant: str
    project: str
    key: str
    operation: str
    model: str
    #: `region/id` it was sent to
    target: str
    tags: Mapping[str, str]
    usage: Usage
    cost: int
    at: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Payer:
    """What decides about a tenant's calls besides the files."""

    plan: str
    overrides: Mapping[str, Any] | None = None
    #: overrides of its keys, by id
    keys: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Pot:
    """A budget. `scope` as callers name it; `limit` nano-dollars."""

    scope: str
    period: str
    zone: str
    limit: int
    models: frozenset[str] | None = None
    began: dt.datetime | None = None
    spent: int = 0

    def applies(self, call: Recorded) -> bool:
        scopes = (f"tenant:{call.tenant}", f"project:{call.tenant}/{call.project}", f"key:{call.key}")
        return self.scope in scopes and (self.models is None or call.model in self.models)

    def used(self, at: dt.datetime) -> float:
        began = _began(self.period, at.astimezone(ZoneInfo(self.zone)))
        if began != self.began:
            self.began, self.spent = began, 0
        return self.spent / self.limit if self.limit else 1.0


def _began(period: str, local: dt.datetime) -> dt.datetime | None:
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        return midnight
    if period == "week":
        return midnight - dt.timedelta(days=midnight.weekday())
    return midnight.replace(day=1) if period == "month" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What became of one call. `cost` is what it would have cost, 0 for a refused one."""

    call: Recorded
    verdict: Verdict
    why: str
    model: str
    cost: int


def replay(
    policies: PolicySet,
    calls: Iterable[Recorded],
    payers: Mapping[str, Payer],
    pots: Sequence[Pot] = (),
    *,
    prices_at: float | None = None,
) -> list[Replayed]:
    """Calls must come in the order of their times. Prices are those in force at each call's time, or at
    `prices_at` (unix seconds) for all.
    """
    made = []
    for call in calls:
        mine = [pot for pot in pots if pot.applies(call)]
        used = max((pot.used(call.at) for pot in mine), default=0.0)
        one = _replay(policies, call, payers.get(call.tenant, Payer(plan="default")), used, prices_at)
        for pot in mine:
            pot.spent += one.cost
        made.append(one)
    return made


def _replay(
    policies: PolicySet, call: Recorded, payer: Payer, used: float, prices_at: float | None
) -> Replayed:
    def refused(why: str) -> Replayed:
        return Replayed(call=call, verdict="refused", why=why, model=call.model, cost=0)

    try:
        policy = policies.effective(payer.plan, payer.overrides, payer.keys.get(call.key), ())
        if not policy.allows(call.model):
            return refused(f"{call.model} is not allowed in plan {payer.plan}")
        found = outcome(policies, _asked(call, payer.plan, used))
        if found.deny:
            return refused(found.why)
        if not policy.allows(found.model):
            return refused(f"{found.model} is not allowed in plan {payer.plan}")
        cost = _cost(policies, call, found.model, found.output_limit, prices_at)
    except (Refusal, RuleError, ConfigurationError) as error:
        return refused(str(error))
    verdict: Verdict = "same"
    if found.model != call.model or (
        call.target not in found.targets and "route" in _effects(policies, found.rules)
    ):
        verdict = "moved"
    elif found.output_limit < call.usage.output_tokens:
        verdict = "capped"
    why = f"by {', '.join(found.rules)}" if found.rules and verdict != "same" else ""
    return Replayed(call=call, verdict=verdict, why=why, model=found.model, cost=cost)


def _effects(policies: PolicySet, names: Sequence[str]) -> set[str]:
    return {rule.effect for rule in policies.rules if rule.name in names}


def _asked(call: Recorded, plan: str, used: float) -> Asked:
    usage = call.usage
    read = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
    return Asked(
        model=call.model, operation=call.operation, output_limit=usage.output_tokens,
        input_bytes=read * BYTES_PER_TOKEN, stream="Stream" in call.operation, tags=call.tags,
        tenant=call.tenant, project=call.project, key=call.key, plan=plan, used=used, time=call.at,
    )  # fmt: skip


def _cost(policies: PolicySet, call: Recorded, model: str, output: int, prices_at: float | None) -> int:
    """At standard tier and latency. Raises `UnknownModel`."""
    route = policies.resolve(model)
    target = route.targets[0]
    if model == call.model:
        region, _, name = call.target.partition("/")
        target = recorded_target(policies, region, name) or target
    usage = call.usage
    used = Usage(
        input_tokens=usage.input_tokens, output_tokens=min(usage.output_tokens, output),
        cache_read_tokens=usage.cache_read_tokens, cache_write_5m_tokens=usage.cache_write_5m_tokens,
        cache_write_1h_tokens=usage.cache_write_1h_tokens, images=usage.images,
        guardrail_units=usage.guardrail_units,
    )  # fmt: skip
    at = call.at.timestamp() if prices_at is None else prices_at
    return policies.priced(route.model, target).cost(used, "default", "standard", at)[0]


def recorded_target(policies: PolicySet, region: str, name: str) -> Target | None:
    """The target that the ledger calls `region/name`; None when the policies do not know it any more."""
    try:
        first = policies.resolve(name).targets[0]
    except Refusal:
        return None
    return Target(model=first.model, model_id=name, region=region, kind=first.kind, prefix=first.prefix)
