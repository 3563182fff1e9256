"""Rules over single calls: a condition and an effect, decided before anything is spent.

Every rule looks at the call as it was asked, none at what another made of it. Of those that hold, the
first that denies, substitutes or routes decides that; the lowest cap counts; every required guardrail
must be named. A rule in `observe` is only counted. A condition that cannot be evaluated fails closed:
an enforced rule then refuses the call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Effect = Literal["deny", "cap", "substitute", "require_guardrail", "route"]
EFFECTS: tuple[Effect, ...] = ("deny", "cap", "substitute", "require_guardrail", "route")


class RuleError(Exception):
    """A condition had no answer for this call. The message names the rule."""

    def __init__(self, rule: str, why: str) -> None:
        super().__init__(f"the rule {rule!r} has no answer: {why}")
        self.rule = rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`holds` answers for the variables of one call, and raises `ValueError` when it has no answer."""

    name: str
    when: str
    holds: Callable[[Mapping[str, Any]], bool]
    effect: Effect
    #: the message of a deny, the model or route of a substitute, the pattern of a guardrail
    text: str = ""
    #: tokens of a cap
    tokens: int = 0
    #: patterns of the targets of a route, in order
    targets: tuple[str, ...] = ()
    observe: bool = False
    #: names that the condition reads
    reads: frozenset[str] = frozenset()
    path: str = ""
    line: int = 0


@dataclass(slots=True, kw_only=True)
class Ruling:
    """What the rules that hold make of one call."""

    #: the rule that decided, by effect
    by: dict[Effect, str] = field(default_factory=dict)
    deny: str | None = None
    tokens: int | None = None
    model: str | None = None
    guardrails: tuple[tuple[str, str], ...] = ()
    targets: tuple[str, ...] = ()
    #: rules that held, enforced or observed, in order
    enforced: list[Rule] = field(default_factory=list)
    observed: list[Rule] = field(default_factory=list)
    #: observed rules that had no answer
    unanswered: list[RuleError] = field(default_factory=list)


def decide(rules: Iterable[Rule], values: Mapping[str, Any]) -> Ruling:
    """Raises `RuleError` when an enforced rule has no answer."""
    ruling = Ruling()
    for rule in rules:
        try:
            if not rule.holds(values):
                continue
        except ValueError as error:
            if not rule.observe:
                raise RuleError(rule.name, str(error)) from None
            ruling.unanswered.append(RuleError(rule.name, str(error)))
            continue
        if rule.observe:
            ruling.observed.append(rule)
        else:
            ruling.enforced.append(rule)
            _apply(ruling, rule)
    return ruling


def _apply(ruling: Ruling, rule: Rule) -> None:
    if rule.effect == "cap":
        if ruling.tokens is None or rule.tokens < ruling.tokens:
            ruling.tokens = rule.tokens
            ruling.by["cap"] = rule.name
        return
    if rule.effect == "require_guardrail":
        ruling.guardrails = (*ruling.guardrails, (rule.name, rule.text))
        return
    if rule.effect in ruling.by:
        return
    ruling.by[rule.effect] = rule.name
    if rule.effect == "deny":
        ruling.deny = rule.text
    elif rule.effect == "substitute":
        ruling.model = rule.text
    else:
        ruling.targets = rule.targets
