"""A call that generates, asked as CountTokens: how many input tokens would it be billed?

Source: user guide, "Count tokens": the count of the same input is what an invocation would be charged;
`input` holds a Converse request or the native body of InvokeModel, base64. It takes base model ids.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import orjson

from proxy.bedrock.dialects import counts
from proxy.bedrock.dialects.count_tokens import COUNT_TOKENS
from proxy.bedrock.translate.count import count_over_count_tokens
from proxy.domain.catalogue import Model
from proxy.domain.ledger import Operation
from proxy.errors import Invalid
from proxy.ports import Spoken

#: what of a Converse request is input
_MEMBERS = ("messages", "system", "toolConfig", "additionalModelRequestFields")
_CONVERSE = frozenset({Operation.CONVERSE, Operation.CONVERSE_STREAM})
_INVOKE = frozenset({Operation.INVOKE_MODEL, Operation.INVOKE_MODEL_WITH_RESPONSE_STREAM})


def counting(
    operation: Operation, model: Model, body: dict[str, Any], raw: bytes, headers: Mapping[str, str]
) -> Spoken | None:
    """The same input as a CountTokens request; None where Bedrock counts no such request."""
    if not model.count_tokens:
        return None
    if operation in _CONVERSE:
        return _asked({"converse": {name: body[name] for name in _MEMBERS if name in body}})
    if operation in _INVOKE:
        return _asked({"invokeModel": {"body": base64.b64encode(raw).decode()}})
    if operation is Operation.MESSAGES:
        try:
            return count_over_count_tokens(body, model, headers)
        except Invalid:
            return None
    return None


def counted(body: bytes) -> int | None:
    """The tokens in an answer of CountTokens, None when it has none."""
    found = (counts.answer_of(body) or {}).get("inputTokens")
    return found if type(found) is int and found >= 0 else None


def _asked(union: dict[str, Any]) -> Spoken:
    body = {"input": union}
    return Spoken(
        operation=Operation.COUNT_TOKENS,
        dialect=COUNT_TOKENS,
        body=body,
        raw=orjson.dumps(body),
        headers={"accept": "application/json"},
    )
