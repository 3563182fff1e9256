"""The policies' own examples, run: what rules make of a call, against what their author said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from proxy.domain.catalogue import Route
from proxy.domain.rules import RuleError, Ruling, decide
from proxy.errors import Refusal
from proxy.policyfile.policyset import PolicySet
from proxy.policyfile.rules import Asked, Example
from proxy.policyfile.strict import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What rules make of one call."""

    deny: bool
    #: why it is denied, empty when it is not
    why: str
    output_limit: int
    model: str
    guardrail: str
    targets: tuple[str, ...]
    rules: tuple[str, ...]
    observed: tuple[str, ...]


def run_examples(policies: PolicySet) -> list[Problem]:
    """Every example that does not come out as it says; empty when all do."""
    return [
        Problem(example.path, example.line, 1, f"example {example.name!r}: {told}")
        for example in policies.examples
        for told in _differences(policies, example)
    ]


def _differences(policies: PolicySet, example: Example) -> Iterator[str]:
    try:
        found = outcome(policies, example.asked)
    except (RuleError, Refusal) as error:
        yield str(error)
        return
    for name in type(example.expected).__dataclass_fields__:
        expected, actual = getattr(example.expected, name), getattr(found, name)
        if expected is not None and expected != actual:
            why = f" ({found.why})" if name == "deny" and found.why else ""
            yield f"{name} is {_shown(actual)}{why}, not {_shown(expected)}"


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def outcome(policies: PolicySet, asked: Asked) -> Outcome:
    """Raises `RuleError` when an enforced rule has no answer, `UnknownModel` or `UnboundedCost`."""
    route = policies.resolve(asked.model)
    ruling = decide(policies.rules, variables(asked, route))
    served = policies.resolve(ruling.model) if ruling.model else route
    why = ruling.deny or next((f"no guardrail {p}" for _, p in ruling.guardrails if not _named(asked, p)), "")
    targets = _picked(served, ruling)
    if ruling.targets and not targets:
        why = why or "no target fits"
    return Outcome(
        deny=bool(why),
        why=why,
        output_limit=asked.output_limit if ruling.tokens is None else min(asked.output_limit, ruling.tokens),
        model=served.model.id,
        guardrail="required" if ruling.guardrails else "not-required",
        targets=targets,
        rules=tuple(rule.name for rule in ruling.enforced),
        observed=tuple(rule.name for rule in ruling.observed),
    )


def _named(asked: Asked, pattern: str) -> bool:
    return fnmatchcase(asked.guardrail, pattern)


def _picked(route: Route, ruling: Ruling) -> tuple[str, ...]:
    labels = [(target.label, target.model_id) for target in route.targets]
    if not ruling.targets:
        return tuple(label for label, _ in labels)
    found = dict.fromkeys(
        label
        for pattern in ruling.targets
        for label, name in labels
        if fnmatchcase(label, pattern) or fnmatchcase(name, pattern)
    )
    return tuple(found)


def variables(asked: Asked, route: Route) -> dict[str, Any]:
    """A call in the variables of conditions."""
    return {
        "request.model": route.model.id, "request.name": asked.model, "request.family": route.model.family,
        "request.operation": asked.operation, "request.output_limit": asked.output_limit,
        "request.input_bytes": asked.input_bytes, "request.stream": asked.stream,
        "request.tools": asked.tools, "request.tier": asked.tier, "request.latency": asked.latency,
        "request.guardrail": asked.guardrail, "request.tags": dict(asked.tags), "tenant": asked.tenant,
        "project": asked.project, "key": asked.key, "key.name": asked.key_name, "plan": asked.plan,
        "budget.used": asked.used, "time": asked.time,
    }  # fmt: skip
