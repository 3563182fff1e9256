"""The service tier and latency mode that a target asks for, said in the words of the operation.

Converse takes both in its body, InvokeModel as headers, the OpenAI routes the tier only. What the client
asked for itself is already there and stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxy.bedrock.dialects.bounds import LATENCY_HEADER, TIER_HEADER
from proxy.bedrock.dialects.edit import with_field
from proxy.domain.catalogue import Target
from proxy.domain.ledger import Operation
from proxy.domain.request import Bound

_CONVERSE = frozenset({Operation.CONVERSE, Operation.CONVERSE_STREAM})
_INVOKE = frozenset({Operation.INVOKE_MODEL, Operation.INVOKE_MODEL_WITH_RESPONSE_STREAM})
_OPENAI = frozenset({Operation.CHAT_COMPLETIONS, Operation.RESPONSES})
#: stands for a body that has members but not the one that is added
_NOT_EMPTY: Mapping[str, Any] = {"": None}


def placed(
    operation: Operation, target: Target, raw: bytes, headers: dict[str, str], bound: Bound
) -> tuple[bytes, dict[str, str]]:
    """Body and headers that ask for what `bound` says the target asks for."""
    if target.tier is not None and bound.tier == target.tier:
        if operation in _CONVERSE:
            raw = _with(raw, "serviceTier", {"type": target.tier})
        elif operation in _INVOKE:
            headers.setdefault(TIER_HEADER, target.tier)
        elif operation in _OPENAI:
            raw = _with(raw, "service_tier", target.tier)
    if target.latency is not None and bound.latency == target.latency:
        if operation in _CONVERSE:
            raw = _with(raw, "performanceConfig", {"latency": target.latency})
        elif operation in _INVOKE:
            headers.setdefault(LATENCY_HEADER, target.latency)
    return raw, headers


def _with(raw: bytes, name: str, value: Any) -> bytes:
    there = f'"{name}"'.encode() in raw or b"\\u" in raw
    return with_field({name: None} if there else _NOT_EMPTY, raw, (name,), value)
