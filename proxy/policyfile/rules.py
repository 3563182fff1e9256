"""`rules/*.yaml`: conditions with effects, and examples of what they do."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

from proxy.domain.ledger import Operation
from proxy.domain.rules import Rule
from proxy.policyfile.expressions import Condition, ConditionError
from proxy.policyfile.schema import Reader
from proxy.policyfile.strict import Node, Scalar

_THEN = ("deny", "cap_output_tokens", "substitute", "require_guardrail", "targets")
_REQUEST = (
    *("model", "operation", "output_limit", "input_bytes", "stream", "tools", "tier", "latency"),
    *("guardrail", "tags"),
)
_EXPECT = ("deny", "output_limit", "model", "guardrail", "targets", "rules", "observed")
_OPERATIONS = tuple(operation.label for operation in Operation)
_TOKENS_MAX = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The call of an example. `used` is the spent share of its budget."""

    model: str
    operation: str = "Converse"
    output_limit: int = 512
    input_bytes: int = 1000
    stream: bool = False
    tools: bool = False
    tier: str = "default"
    latency: str = "standard"
    guardrail: str = ""
    tags: Mapping[str, str]
    tenant: str = "example"
    project: str = ""
    key: str = "00000000-0000-0000-0000-000000000000"
    key_name: str = "example"
    plan: str = "default"
    used: float = 0.0
    time: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What an example demands; None where it says nothing."""

    deny: bool | None = None
    output_limit: int | None = None
    model: str | None = None
    guardrail: Literal["required", "not-required"] | None = None
    targets: tuple[str, ...] | None = None
    #: names of the rules that hold, in order
    rules: tuple[str, ...] | None = None
    observed: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    name: str
    asked: Asked
    expected: Expected
    path: str
    line: int


def read_rules(node: Node, reader: Reader, rules: list[Rule], examples: list[Example]) -> None:
    """Add the file's rules and examples."""
    items = reader.table(node, ("rules", "examples")).items
    for row in reader.rows(items.get("rules")):
        rule = _rule(row, reader)
        if rule is None:
            continue
        known = next((other for other in rules if other.name == rule.name), None)
        if known is not None:
            reader.fail(row, f"the rule {rule.name!r} is in {known.path}:{known.line} too")
        else:
            rules.append(rule)
    examples += [one for row in reader.rows(items.get("examples")) if (one := _example(row, reader))]


def _rule(node: Node, reader: Reader) -> Rule | None:
    items = reader.table(
        node, ("name", "description", "when", "then", "mode"), ("name", "when", "then")
    ).items
    failures = reader.failures
    name = reader.name(items.get("name")) or ""
    reader.text(items.get("description"), 2000)
    mode = reader.choice(items.get("mode"), ("enforce", "observe"))
    condition = _condition(items.get("when"), reader)
    effect = _effect(items.get("then"), reader)
    if reader.failures > failures or condition is None or effect is None:
        return None
    return Rule(
        name=name, when=condition.text, holds=condition, reads=condition.reads, observe=mode == "observe",
        path=reader.path, line=node.line, **effect,
    )  # fmt: skip


def _condition(node: Node | None, reader: Reader) -> Condition | None:
    text = reader.text(node, 4000)
    if node is None or text is None:
        return None
    try:
        return Condition(text.strip())
    except ConditionError as error:
        # a block's lines follow its own; in one line the place is a column of the expression
        at = Scalar("", node.line + error.line - 1, node.column, plain=True)
        reader.fail(at, f"the condition is wrong at {error.line}:{error.column}: {error}")
        return None


def _effect(node: Node | None, reader: Reader) -> dict[str, Any] | None:
    table = reader.table(node, _THEN)
    if node is None:
        return None
    if len(table.items) != 1:
        reader.fail(node, f"a rule has exactly one effect: {', '.join(_THEN)}")
        return None
    [(name, value)] = table.items.items()
    if name == "deny":
        return {"effect": "deny", "text": reader.text(value, 500) or ""}
    if name == "cap_output_tokens":
        return {"effect": "cap", "tokens": reader.integer(value, 1, _TOKENS_MAX) or 0}
    if name == "substitute":
        return {"effect": "substitute", "text": reader.text(value, 256) or ""}
    if name == "require_guardrail":
        return {"effect": "require_guardrail", "text": reader.glob(value) or ""}
    targets = reader.many(value, reader.glob)
    if not targets:
        reader.fail(value, "at least one pattern of targets, such as us-east-1/*")
    return {"effect": "route", "targets": targets}


def _example(node: Node, reader: Reader) -> Example | None:
    known = (
        "name",
        "request",
        "tenant",
        "project",
        "key",
        "key_name",
        "plan",
        "budget_used",
        "time",
        "expect",
    )
    items = reader.table(node, known, ("name", "request", "expect")).items
    failures = reader.failures
    name = reader.text(items.get("name"), 200) or ""
    asked = _asked(items, reader)
    expected = _expected(items.get("expect"), reader)
    if reader.failures > failures:
        return None
    return Example(name=name, asked=asked, expected=expected, path=reader.path, line=node.line)


def _asked(items: Mapping[str, Node], reader: Reader) -> Asked:
    request = reader.table(items.get("request"), _REQUEST, ("model",)).items
    values: dict[str, Any] = {}
    for name in ("tier", "latency", "guardrail"):
        values[name] = reader.text(request.get(name), 500)
    for name in ("tenant", "project", "key", "key_name", "plan"):
        values[name] = reader.text(items.get(name), 200)
    for name in ("stream", "tools"):
        values[name] = reader.boolean(request.get(name))
    for name in ("output_limit", "input_bytes"):
        values[name] = reader.integer(request.get(name), 0)
    values["operation"] = reader.choice(request.get("operation"), _OPERATIONS)
    values["used"] = _share(items.get("budget_used"), reader)
    values["time"] = _time(items.get("time"), reader)
    given = {name: value for name, value in values.items() if value is not None}
    tags = {key.value: reader.text(value, 256) or "" for key, value in reader.entries(request.get("tags"))}
    return Asked(model=reader.text(request.get("model"), 256) or "", tags=tags, **given)


def _expected(node: Node | None, reader: Reader) -> Expected:
    items = reader.table(node, _EXPECT).items
    guardrail = reader.choice(items.get("guardrail"), ("required", "not-required"))
    lists = {
        name: reader.many(items[name], lambda row: reader.text(row, 256)) if name in items else None
        for name in ("targets", "rules", "observed")
    }
    return Expected(
        deny=reader.boolean(items.get("deny")), output_limit=reader.integer(items.get("output_limit")),
        model=reader.text(items.get("model"), 256), guardrail=guardrail,  # type: ignore[arg-type]
        **lists,
    )  # fmt: skip


def _share(node: Node | None, reader: Reader) -> float | None:
    word = reader.text(node, 20)
    if node is None or word is None:
        return None
    try:
        share = Decimal(word)
    except InvalidOperation:
        share = Decimal(-1)
    if not share.is_finite() or not 0 <= share <= 100:
        reader.fail(node, f"{word!r} is no share of a budget, such as 0.8")
        return None
    return float(share)


def _time(node: Node | None, reader: Reader) -> dt.datetime:
    word = reader.text(node, 40)
    noon = dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC)
    if node is None or word is None:
        return noon
    try:
        moment = dt.datetime.fromisoformat(word)
    except ValueError:
        moment = dt.datetime.min
    if moment.tzinfo is None:
        reader.fail(node, f"{word!r} is no time with an offset, such as 2026-11-24T09:00:00Z")
        return noon
    return moment
