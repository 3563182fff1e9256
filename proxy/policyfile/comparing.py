"""What changes from one set of policies to another, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from proxy.domain.rates import KINDS, Rates, usd
from proxy.errors import Refusal
from proxy.policyfile.plans import Fields, Plan
from proxy.policyfile.policyset import PolicySet


def differences(old: PolicySet, new: PolicySet, at: float) -> list[str]:
    """One line per change. Prices are compared as in force at `at` (unix seconds) and, where a version
    begins later, from then on.
    """
    lines = [*_models(old, new), *_plans(old, new), *_rules(old, new), *_routes(old, new)]
    moments = {at} | {float(v.effective_from) for v in new.prices.versions if v.effective_from > at}
    lines += _versions(old, new)
    for moment in sorted(moments):
        lines += _prices(old, new, moment)
    return list(dict.fromkeys(lines))


def _keys(old: Mapping[str, Any], new: Mapping[str, Any], what: str) -> Iterator[str]:
    for name in sorted(old.keys() - new.keys()):
        yield f"{what} {name}: removed"
    for name in sorted(new.keys() - old.keys()):
        yield f"{what} {name}: added"


def _models(old: PolicySet, new: PolicySet) -> Iterator[str]:
    yield from _keys(old.models, new.models, "model")
    for name in sorted(old.models.keys() & new.models.keys()):
        yield from _fields(f"model {name}", old.models[name], new.models[name])


def _plans(old: PolicySet, new: PolicySet) -> Iterator[str]:
    yield from _keys(old.plans, new.plans, "plan")
    for name in sorted(old.plans.keys() & new.plans.keys()):
        yield from _plan(name, old.plans[name], new.plans[name])


def _plan(name: str, old: Plan, new: Plan) -> Iterator[str]:
    yield from _fields(f"plan {name}", old.fields, new.fields)
    for what in ("limits", "budgets"):
        before, after = getattr(old, what), getattr(new, what)
        for one in before:
            if one not in after:
                yield f"plan {name}: {what[:-1]} removed: {_short(one)}"
        for one in after:
            if one not in before:
                yield f"plan {name}: {what[:-1]} added: {_short(one)}"


def _fields(where: str, old: Any, new: Any) -> Iterator[str]:
    for field in fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if field.name == "cache" and isinstance(old, Fields):
            yield from _fields(f"{where}: cache", before, after)
        elif before != after:
            yield f"{where}: {field.name} {_value(before)} -> {_value(after)}"


def _value(value: object) -> str:
    if isinstance(value, tuple | frozenset | list):
        return f"[{', '.join(map(str, value))}]"
    return "unset" if value is None else str(value)


def _short(value: Any) -> str:
    given = {
        f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) not in (None, ())
    }
    if isinstance(given.get("limit"), int):
        given["limit"] = f"{usd(given['limit'])} USD"
    if given.get("on_short") == "reject":
        given.pop("floor_output_tokens", None)
    return ", ".join(f"{name} {_value(one)}" for name, one in given.items())


def _rules(old: PolicySet, new: PolicySet) -> Iterator[str]:
    before, after = ({rule.name: rule for rule in p.rules} for p in (old, new))
    yield from _keys(before, after, "rule")
    for name in sorted(before.keys() & after.keys()):
        one, other = before[name], after[name]
        for what in ("when", "effect", "text", "tokens", "targets", "observe"):
            if getattr(one, what) != getattr(other, what):
                yield f"rule {name}: {what} {_value(getattr(one, what))} -> {_value(getattr(other, what))}"
    shared = [[name for name in side if name in before and name in after] for side in (before, after)]
    if shared[0] != shared[1]:
        yield f"rules are asked in another order: {', '.join(after)}"


def _routes(old: PolicySet, new: PolicySet) -> Iterator[str]:
    before, after = old.routes.routes, new.routes.routes
    yield from _keys(before, after, "route")
    for name in sorted(before.keys() & after.keys()):
        labels = [[t.label for t in p.resolve(name).targets] for p in (old, new)]
        if labels[0] != labels[1]:
            yield f"route {name}: targets {_value(labels[0])} -> {_value(labels[1])}"
        for what in ("policy", "fallbacks"):
            if getattr(before[name], what) != getattr(after[name], what):
                yield f"route {name}: {what} {_value(getattr(before[name], what))} -> {_value(getattr(after[name], what))}"
    if old.routes.regions != new.routes.regions:
        yield f"regions: {_value(old.routes.regions)} -> {_value(new.routes.regions)}"
    if old.default_region != new.default_region:
        yield f"default_region: {old.default_region} -> {new.default_region}"


def _versions(old: PolicySet, new: PolicySet) -> Iterator[str]:
    before, after = ({version.id: version for version in p.prices.versions} for p in (old, new))
    yield from _keys(before, after, "price version")


def _prices(old: PolicySet, new: PolicySet, at: float) -> Iterator[str]:
    names = dict.fromkeys((*old.ids, *new.ids))
    for name in names:
        before, after = _rates(old, name, at), _rates(new, name, at)
        if before == after:
            continue
        if before is None or after is None:
            yield f"price of {name}: {'added' if before is None else 'removed'}"
            continue
        changes = (
            f"{kind} {_rate(getattr(before, kind))} -> {_rate(getattr(after, kind))}"
            for kind in KINDS
            if getattr(before, kind) != getattr(after, kind)
        )
        yield f"price of {name}, USD per million: {', '.join(changes)}"


def _rate(rate: int | None) -> str:
    return "none" if rate is None else usd(rate)


def _rates(policies: PolicySet, name: str, at: float) -> Rates | None:
    """Of the first target."""
    try:
        route = policies.resolve(name)
        return policies.priced(route.model, route.targets[0]).rates(at).rates
    except Refusal:
        return None
