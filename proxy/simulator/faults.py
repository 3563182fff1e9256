"""What can be asked to go wrong, and how a request is told to.

A fault is written ``kind`` or ``kind:argument[:argument]``. It comes from a directive in the prompt,
``[[fault=reset:3]]``, or from a rule of ``POST /_control``. ``k`` counts events that still get out.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

#: kind: (smallest, largest number of arguments). README.md says what each does.
KINDS: dict[str, tuple[int, int]] = {
    "throttle": (0, 1),
    "error": (1, 2),
    "html502": (0, 0),
    "reset": (0, 1),
    "close": (0, 1),
    "silence": (0, 1),
    "delay": (1, 1),
    "exception": (0, 2),
    "unmodelled": (0, 1),
    "truncate": (0, 1),
    "badcrc": (0, 1),
    "garbage": (0, 1),
    "nousage": (0, 0),
    "usage": (1, 1),
    "downgrade": (0, 0),
}
_USAGE_FAULTS = {"negative", "huge", "twice", "decreasing"}
_DIRECTIVE = re.compile(rb"\[\[(\w+)=([\w:./-]+)\]\]")


@dataclass(frozen=True, slots=True)
class Fault:
    kind: str
    arguments: tuple[str, ...] = ()

    def number(self, place: int = 0) -> int | None:
        """An argument as a number; None when it is not given."""
        return int(self.arguments[place]) if len(self.arguments) > place else None


def parse(spec: str) -> Fault:
    """Raises ValueError for a kind that does not exist or arguments that do not fit."""
    kind, *arguments = spec.split(":")
    if kind not in KINDS:
        raise ValueError(f"unknown fault {kind!r}; known: {', '.join(sorted(KINDS))}")
    low, high = KINDS[kind]
    if not low <= len(arguments) <= high:
        raise ValueError(f"fault {kind!r} takes {low} to {high} arguments")
    if kind == "usage" and arguments[0] not in _USAGE_FAULTS:
        raise ValueError(f"fault 'usage' takes one of {sorted(_USAGE_FAULTS)}")
    words = 1 if kind in {"error", "exception", "usage"} else 0
    if any(not argument.isdigit() for argument in arguments[words:]):
        raise ValueError(f"fault {kind!r}: {spec!r} has an argument that is no number")
    return Fault(kind, tuple(arguments))


@dataclass(slots=True)
class Orders:
    """Everything the prompt's directives and the matching rules say about one call."""

    faults: list[Fault] = field(default_factory=list)
    output_tokens: int | None = None
    cached_tokens: int | None = None
    written_tokens: int | None = None
    delay_ms: float = 0.0
    guardrail_blocks: bool = False

    def of(self, *kinds: str) -> Fault | None:
        return next((fault for fault in self.faults if fault.kind in kinds), None)


def _times_of(fault: Fault) -> int | None:
    """How often a counted fault strikes before the same prompt gets through."""
    if fault.kind == "throttle":
        return fault.number()
    return fault.number(1) if fault.kind == "error" else None


@dataclass(slots=True)
class Rule:
    """A fault for the calls that match every given condition, at most ``left`` times (None: always)."""

    fault: Fault
    left: int | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)
    spec: str = ""

    def matches(self, names: Iterable[str], operation: str, prompt: str, metadata: Mapping[str, str]) -> bool:
        wanted = self.conditions
        if self.left == 0:
            return False
        if wanted.get("model") is not None and wanted["model"] not in names:
            return False
        if wanted.get("operation") is not None and wanted["operation"] != operation:
            return False
        if wanted.get("prompt") is not None and wanted["prompt"] not in prompt:
            return False
        if wanted.get("tenant") is not None and wanted["tenant"] not in metadata.values():
            return False
        return all(metadata.get(key) == value for key, value in (wanted.get("metadata") or {}).items())


class Faults:
    """Rules in force, and how often a counted directive has struck."""

    def __init__(self) -> None:
        self.rules: list[Rule] = []
        self._struck: dict[tuple[int, Fault], int] = {}

    def reset(self) -> None:
        self.rules.clear()
        self._struck.clear()

    def add(self, rule: Mapping[str, Any]) -> None:
        """Raises ValueError for a rule that cannot be understood."""
        known = {"fault", "times", "model", "operation", "prompt", "tenant", "metadata"}
        if not isinstance(rule, Mapping) or not isinstance(rule.get("fault"), str) or set(rule) - known:
            raise ValueError(f"a rule has 'fault' and may have {sorted(known - {'fault'})}")
        conditions = {key: value for key, value in rule.items() if key not in {"fault", "times"}}
        self.rules.append(Rule(parse(rule["fault"]), rule.get("times"), conditions, rule["fault"]))

    def listed(self) -> list[dict[str, Any]]:
        return [{"fault": rule.spec, "left": rule.left, **rule.conditions} for rule in self.rules]

    def orders(
        self,
        body: bytes,
        prompt: str,
        seed: int,
        names: Iterable[str],
        operation: str,
        metadata: Mapping[str, str],
    ) -> Orders:
        """Directives first, then every matching rule in the order of their making; each match uses one up."""
        orders = Orders()
        if b"[[" in body:
            self._directives(orders, body, seed)
        for rule in self.rules:
            if rule.matches(names, operation, prompt, metadata):
                if rule.left is not None:
                    rule.left -= 1
                orders.faults.append(rule.fault)
        return orders

    def _directives(self, orders: Orders, body: bytes, seed: int) -> None:
        """Directives that mean nothing are text: a prompt may talk about double brackets."""
        for name, value in _DIRECTIVE.findall(body):
            text = value.decode()
            if name == b"fault":
                try:
                    fault = parse(text)
                except ValueError:
                    continue
                if self._strikes(seed, fault):
                    orders.faults.append(fault)
            elif name == b"guardrail":
                orders.guardrail_blocks = text == "block"
            elif text.isdigit():
                amount = min(int(text), 10_000_000)
                match name:
                    case b"tokens":
                        orders.output_tokens = amount
                    case b"delay_ms":
                        orders.delay_ms = amount
                    case b"cached":
                        orders.cached_tokens = amount
                    case b"cache_write":
                        orders.written_tokens = amount

    def _strikes(self, seed: int, fault: Fault) -> bool:
        times = _times_of(fault)
        if times is None:
            return True
        struck = self._struck.get((seed, fault), 0)
        if struck >= times:
            return False
        self._struck[seed, fault] = struck + 1
        return True
