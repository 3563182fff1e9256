"""Simulated guardrails: content and denied-topic filters that look at every thousand characters.

A prompt with ``[[guardrail=block]]`` is blocked by any guardrail; the model is then not invoked.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from proxy.simulator.errors import invalid
from proxy.simulator.families.base import Json, Reply

BLOCKED = ("Sorry,", " the", " model", " cannot", " answer", " this", " question.")
#: Members of GuardrailUsage that this guardrail's policies consume.
POLICIES = ("contentPolicyUnits", "topicPolicyUnits")
_CHARACTERS_PER_UNIT = 1_000
_MEMBERS = (
    "topicPolicyUnits",
    "contentPolicyUnits",
    "wordPolicyUnits",
    "sensitiveInformationPolicyUnits",
    "sensitiveInformationPolicyFreeUnits",
    "contextualGroundingPolicyUnits",
)


def units_for(characters: int) -> dict[str, int]:
    amount = max(1, -(-characters // _CHARACTERS_PER_UNIT))
    return dict.fromkeys(POLICIES, amount)


def cost(units: Mapping[str, int], prices: Mapping[str, Decimal]) -> Decimal:
    return sum((prices.get(name, Decimal(0)) * amount for name, amount in units.items()), Decimal(0))


def _metrics(units: Mapping[str, int]) -> Json:
    return {"guardrailProcessingLatency": 1, "usage": {name: units.get(name, 0) for name in _MEMBERS}}


def _assessment(units: Mapping[str, int], *, blocked: bool) -> Json:
    assessment: Json = {"invocationMetrics": _metrics(units)}
    if blocked:
        topic = {"name": "Simulated", "type": "DENY", "action": "BLOCKED"}
        assessment["topicPolicy"] = {"topics": [topic]}
    return assessment


def assess(identifier: str, characters: int, reply: Reply, *, blocked: bool) -> tuple[Json, dict[str, int]]:
    """What the answer says about the guardrail, and the text units of prompt and answer together."""
    before = units_for(characters)
    name = identifier.rpartition("/")[2]
    trace: Json = {"inputAssessment": {name: _assessment(before, blocked=blocked)}}
    units = dict(before)
    if not blocked:
        after = units_for(sum(len(choice.text) for choice in reply.choices))
        trace["outputAssessments"] = {name: [_assessment(after, blocked=False)]}
        units = {key: before[key] + after[key] for key in before}
    return {"action": "INTERVENED" if blocked else "NONE", "trace": trace}, units


def apply(body: Json, raw: bytes) -> tuple[Json, dict[str, int]]:
    """ApplyGuardrail: the answer and its text units. Raises Refusal for a malformed request."""
    content: Any = body.get("content")
    if body.get("source") not in {"INPUT", "OUTPUT"} or not isinstance(content, list) or not content:
        raise invalid("The value at source or content failed to satisfy constraint.")
    texts = []
    for block in content:
        text = block.get("text") if isinstance(block, dict) else None
        if not isinstance(text, dict) or not isinstance(text.get("text"), str):
            raise invalid("The value at content failed to satisfy constraint: text blocks only")
        texts.append(text["text"])
    units = units_for(sum(len(text) for text in texts))
    blocked = b"[[guardrail=block]]" in raw
    answer: Json = {
        "usage": {name: units.get(name, 0) for name in _MEMBERS},
        "action": "GUARDRAIL_INTERVENED" if blocked else "NONE",
        "outputs": [{"text": "".join(BLOCKED)}] if blocked else [],
        "assessments": [_assessment(units, blocked=blocked)] if blocked else [],
    }
    return answer, units
