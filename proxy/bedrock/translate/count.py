"""Anthropic's `messages/count_tokens` said in CountTokens, because the runtime host has no such route.

Source: user guide, "Count tokens" (`input.invokeModel.body`, base64 of a native body).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import orjson

from proxy.bedrock.dialects import MESSAGES, counts
from proxy.bedrock.dialects.bounds import terms_of
from proxy.bedrock.dialects.count_tokens import CountTokens
from proxy.domain.catalogue import Model
from proxy.domain.ledger import Operation
from proxy.errors import Invalid
from proxy.ports import Spoken

_VERSION = "bedrock-2023-05-31"


def count_over_count_tokens(body: dict[str, Any], model: Model, headers: Mapping[str, str]) -> Spoken:
    """The request as CountTokens. Raises what the Messages route would."""
    MESSAGES.bound(body, b"", model, headers)
    terms_of(headers)
    if "prompt" in body or "messages" not in body:
        raise Invalid("messages: Field required")
    native = {name: value for name, value in body.items() if name not in {"model", "stream", "service_tier"}}
    native.setdefault("max_tokens", 1)  # the native body must have one; nothing is generated
    native["anthropic_version"] = _VERSION
    betas = [beta for part in headers.get("anthropic-beta", "").split(",") if (beta := part.strip())]
    if betas:
        native["anthropic_beta"] = [*native.get("anthropic_beta", ()), *betas]
    blob = base64.b64encode(orjson.dumps(native)).decode()
    counted: dict[str, Any] = {"input": {"invokeModel": {"body": blob}}}
    return Spoken(
        operation=Operation.COUNT_TOKENS,
        dialect=CountMessages(),
        body=counted,
        raw=orjson.dumps(counted),
        headers={"accept": "application/json"},
    )


class CountMessages(CountTokens):
    """Answers in Anthropic's words."""

    name = "count_messages"

    def heads(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        return {n: v for n, v in headers.items() if not n.startswith("x-amzn-bedrock-")}

    def answer(self, body: bytes) -> bytes:
        counted = (counts.answer_of(body) or {}).get("inputTokens")
        return body if type(counted) is not int else orjson.dumps({"input_tokens": counted})
