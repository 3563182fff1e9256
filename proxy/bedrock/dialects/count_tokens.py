"""CountTokens: counts and generates nothing, and AWS charges nothing for it.

Source: user guide, "Count tokens" ("There is no charge for using the CountTokens API"). Its ledger
rows cost 0; what is counted in them stands in the answer only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxy.bedrock.dialects import counts
from proxy.bedrock.dialects.bounds import Tally, object_of, terms_of
from proxy.bedrock.dialects.dialect import NativeDialect
from proxy.domain.catalogue import Model
from proxy.domain.request import Bound
from proxy.domain.usage import NOTHING, Usage
from proxy.errors import Invalid

_MEMBERS = frozenset({"invokeModel", "converse"})


class CountTokens(NativeDialect):
    """The body is a union of two requests. Both are passed on as they are: nothing in them can cost."""

    name = "count_tokens"
    known = frozenset({"input"})
    generates = False

    def content(self, body: dict[str, Any], model: Model, tally: Tally) -> None:
        """Nothing is read by a model."""

    def bound(self, body: dict[str, Any], raw: bytes, model: Model, headers: Mapping[str, str]) -> Bound:  # noqa: ARG002
        given = object_of(body.get("input"), "input")
        if len(body) != 1 or len(given) != 1 or not given.keys() <= _MEMBERS:
            raise Invalid("CountTokens takes input with exactly one of invokeModel and converse.")
        terms = terms_of(headers)
        return Bound(input_tokens=0, output_limit=0, arns=tuple(terms.arns), deterministic=True)

    def usage(self, headers: Mapping[str, str], body: bytes) -> Usage | None:  # noqa: ARG002
        """Nothing, once there is a count."""
        answer = counts.answer_of(body) or {}
        return NOTHING if type(answer.get("inputTokens")) is int else None


COUNT_TOKENS = CountTokens()
