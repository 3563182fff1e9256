"""What guardrails cost: text units, by policy.

AWS counts what a guardrail reads in text units of up to 1,000 characters and bills them once for each
policy of the guardrail, at that policy's rate; images apiece. Which policies a guardrail has only its
own usage report says. Rates are nano-dollars per million units, by `GuardrailUsage` member.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from proxy.domain.catalogue import Model, Route, Target
from proxy.domain.rates import Price, Rates
from proxy.domain.request import Bound
from proxy.domain.usage import Usage

#: longest token of the published vocabularies, in characters: bounds what a guardrail reads of an answer
CHARS_PER_TOKEN = 128
#: characters of one guardrail text unit (AWS: "up to 1,000 characters")
CHARS_PER_UNIT = 1_000
IMAGE_UNITS = "contentPolicyImageUnits"
#: id of the "base model" that budgets, prices and reports see behind ApplyGuardrail
GUARDRAIL = "guardrail"
#: no model runs in it
NO_TOKENS = Price(rates=Rates(input=0, output=0))


@dataclass(frozen=True, slots=True)
class GuardrailRates:
    """The rates of one price version."""

    rates: Mapping[str, int]

    @property
    def unit(self) -> int | None:
        """The dearest text policy's rate, None without a price."""
        return max((rate for name, rate in self.rates.items() if "Image" not in name), default=None)

    @property
    def policies(self) -> int:
        """How many policies may bill the same text."""
        return sum(1 for name, rate in self.rates.items() if rate and "Image" not in name)

    @property
    def image(self) -> int:
        return max((rate for name, rate in self.rates.items() if "Image" in name), default=0)

    @property
    def text(self) -> int:
        """The dearest that one text unit can be, all policies together."""
        return (self.unit or 0) * self.policies

    def charge(self, usage: Usage) -> int:
        """Units x rate: by policy where they are told, at the dearest policy's rate elsewhere."""
        dearest = self.unit or 0
        named = sum(count for _, count in usage.guardrail)
        told = sum(count * self.rates.get(name, dearest) for name, count in usage.guardrail)
        return told + max(usage.guardrail_units - named, 0) * dearest

    def assumed(self, usage: Usage, bound: Bound, images: int) -> Usage:
        """The usage with as many units as the guardrail can have billed for that much output."""
        units = text_units(bound, usage.output_tokens) * self.policies
        told = ((IMAGE_UNITS, images),) if images else ()
        return replace(usage, guardrail=told, guardrail_units=units + images, exact=False)


def text_units(bound: Bound, output_tokens: int) -> int:
    """Most text units of a request and `output_tokens` of answer; every choice begins its own."""
    chars = bound.input_tokens + output_tokens * CHARS_PER_TOKEN
    return chars // CHARS_PER_UNIT + 1 + bound.choices


def guardrail_route(identifier: str, version: str, region: str) -> Route:
    """The one place of ApplyGuardrail. An ARN names its Region itself."""
    parts = identifier.split(":")
    where = parts[3] if identifier.startswith("arn:") and len(parts) > 5 and parts[3] else region
    model = Model(
        id=GUARDRAIL, provider="Amazon", name=identifier, family=GUARDRAIL,
        context_tokens=0, max_output_tokens=0, modality="text",
    )  # fmt: skip
    target = Target(model=GUARDRAIL, model_id=f"{identifier}:{version}", region=where)
    return Route(name=identifier, model=model, targets=(target,))
