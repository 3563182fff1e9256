"""ApplyGuardrail: no model runs; AWS bills text units by policy, which the answer tells.

Source: the `bedrock-runtime` service model (GuardrailContentBlock, GuardrailUsage) and the price list
("up to 1,000 characters" a text unit; images apiece). Whether units are counted per block or over the
whole request is unsure, so every block counts as beginning its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxy.bedrock.dialects import counts
from proxy.bedrock.dialects.bounds import Allowance, Tally, known_only, list_of, object_of, one_of
from proxy.bedrock.dialects.dialect import NativeDialect
from proxy.domain.catalogue import Model
from proxy.domain.request import Bound
from proxy.domain.usage import NOTHING, Usage
from proxy.errors import Invalid, UnboundedCost

_SOURCES = frozenset({"INPUT", "OUTPUT"})
_SCOPES = frozenset({"INTERVENTIONS", "FULL"})
_TEXT = frozenset({"text", "qualifiers"})


class Guardrail(NativeDialect):
    """`Bound.input_tokens` holds characters here: they bound text units, and there are no tokens.

    The model is the guardrail itself; its name stands in the bound's ARNs, because a tenant may use only
    those on its allow-list.
    """

    name = "guardrail"
    known = frozenset({"source", "content", "outputScope"})
    allowance = Allowance(request=0, message=0)
    generates = False

    def content(self, body: dict[str, Any], model: Model, tally: Tally) -> None:  # noqa: ARG002
        for block in list_of(body.get("content"), "content"):
            if type(block) is not dict or len(block) != 1:
                raise Invalid("A content block must be an object with exactly one member.")
            kind, value = next(iter(block.items()))
            if kind == "text":
                known_only(object_of(value, "text"), _TEXT, "a text block")
                tally.text(value.get("text"), "text")
            elif kind == "image":
                tally.images += 1
            else:
                raise UnboundedCost(f"Content block {str(kind)[:64]!r} has no known bound.")

    def bound(self, body: dict[str, Any], raw: bytes, model: Model, headers: Mapping[str, str]) -> Bound:  # noqa: ARG002
        known_only(body, self.known, "the ApplyGuardrail body")
        one_of(body.get("source"), _SOURCES, "source")
        one_of(body.get("outputScope", "INTERVENTIONS"), _SCOPES, "outputScope")
        tally = Tally(self.allowance)
        self.content(body, model, tally)
        return Bound(
            input_tokens=tally.tokens,
            output_limit=0,
            choices=max(1, len(body["content"])),
            images=tally.images,
            guardrail=True,
            guardrail_id=model.name,
            arns=(model.name,),
            deterministic=True,
        )

    def usage(self, headers: Mapping[str, str], body: bytes) -> Usage | None:  # noqa: ARG002
        answer = counts.answer_of(body)
        report = answer.get("usage") if answer is not None else None
        return counts.guarded(NOTHING, counts.policy_units(report)) if type(report) is dict else None


GUARDRAIL = Guardrail()
