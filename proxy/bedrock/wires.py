"""The pipeline's view of Bedrock's wire: which words serve a request, which path, what an error means."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from proxy.bedrock import dialects
from proxy.bedrock.dialects.count_tokens import COUNT_TOKENS
from proxy.bedrock.dialects.guardrail import GUARDRAIL
from proxy.bedrock.eventstream import exception_frame
from proxy.bedrock.metadata import stamp
from proxy.bedrock.outcomes import read_error
from proxy.bedrock.placing import placed
from proxy.bedrock.sse import error_event
from proxy.bedrock.translate.chat import chat_over_converse
from proxy.bedrock.translate.count import count_over_count_tokens
from proxy.bedrock.translate.counting import counted, counting
from proxy.domain.catalogue import Model, Route, Target
from proxy.domain.ledger import Operation
from proxy.domain.request import Bound
from proxy.errors import Invalid
from proxy.ports import Dialect, Failure, Spoken, UpstreamRequest

_SUFFIX = {
    Operation.INVOKE_MODEL: "invoke",
    Operation.INVOKE_MODEL_WITH_RESPONSE_STREAM: "invoke-with-response-stream",
    Operation.CONVERSE: "converse",
    Operation.CONVERSE_STREAM: "converse-stream",
    Operation.COUNT_TOKENS: "count-tokens",
}
#: routes whose body names the model; `/anthropic/v1/messages/count_tokens` is not on the runtime host
_FIXED = {
    Operation.CHAT_COMPLETIONS: "/openai/v1/chat/completions",
    Operation.RESPONSES: "/openai/v1/responses",
    Operation.MESSAGES: "/anthropic/v1/messages",
}
_CONVERSE = frozenset({Operation.CONVERSE, Operation.CONVERSE_STREAM})
_INVOKE = frozenset({Operation.INVOKE_MODEL, Operation.INVOKE_MODEL_WITH_RESPONSE_STREAM})
#: families behind Bedrock's own OpenAI routes
_OPENAI = frozenset({"openai", "openai-compatible"})
#: places that Bedrock's OpenAI and Anthropic routes are documented to take; ARNs of capacity are not
_ROUTED = frozenset({"on_demand", "profile"})
#: client headers that go upstream besides `x-amzn-bedrock-*`; everything else is dropped
_FORWARDED = ("content-type", "accept")
_ANTHROPIC_HEADERS = ("anthropic-version", "anthropic-beta")
_ANTHROPIC_VERSION = "2023-06-01"
_RETRY_ELSEWHERE_MS = 1000


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the choice of words depends on."""

    model: Model
    target: Target
    body: dict[str, Any]
    raw: bytes
    headers: Mapping[str, str]

    def native(self, operation: Operation, dialect: Dialect) -> Spoken:
        """As received."""
        return Spoken(
            operation=operation, dialect=dialect, body=self.body, raw=self.raw, headers=self.headers
        )


class BedrockWires:
    """Stateless. `first_byte` and `idle` are seconds."""

    def __init__(self, *, first_byte: float, idle: float) -> None:
        self._first_byte = first_byte
        self._idle = idle

    def speak(
        self, operation: Operation, route: Route, body: dict[str, Any], raw: bytes, headers: Mapping[str, str]
    ) -> Spoken:
        """The request in words that the route's model speaks.

        Raises `UnknownModel` or `Invalid` where the model has no such operation, or the request
        says what cannot be said in the other words.
        """
        asked = _Asked(route.model, route.targets[0], body, raw, headers)
        if operation in _CONVERSE:
            return asked.native(operation, dialects.CONVERSE)
        if operation in _INVOKE:
            return asked.native(operation, dialects.native(route.model.family))
        return _SPEAKERS[operation](asked)

    def counting(
        self, operation: Operation, model: Model, body: dict[str, Any], raw: bytes, headers: Mapping[str, str]
    ) -> Spoken | None:
        """The same input as a CountTokens request; None where Bedrock counts no such request."""
        return counting(operation, model, body, raw, headers)

    def counted(self, body: bytes) -> int | None:
        """The tokens in an answer of CountTokens, None when it has none."""
        return counted(body)

    def parse(self, body: bytes) -> dict[str, Any]:
        return dialects.parse(body)

    def breaker(self, operation: Operation) -> Callable[[str], bytes]:
        route = _ROUTE_SSE.get(operation)
        if route is not None:
            return lambda message: error_event(route, "server_error", message)
        return lambda message: exception_frame("modelStreamErrorException", message)

    def request(
        self, operation: Operation, target: Target, body: bytes, headers: Mapping[str, str], bound: Bound,
        pairs: Mapping[str, str],
    ) -> UpstreamRequest:  # fmt: skip
        """One sending: nothing of the client's goes along but what is on the allow-list."""
        passed = {n: v for n, v in headers.items() if n in _FORWARDED or n.startswith("x-amzn-bedrock-")}
        passed.setdefault("content-type", "application/json")
        if operation is Operation.MESSAGES:
            passed.update((name, headers[name]) for name in _ANTHROPIC_HEADERS if name in headers)
            passed.setdefault("anthropic-version", _ANTHROPIC_VERSION)
        if target.tier is not None or target.latency is not None:
            body, passed = placed(operation, target, body, passed, bound)
        raw, stamped = stamp(operation, body, passed, tuple(pairs.items()), bound.metadata)
        return UpstreamRequest(
            target=target,
            method="POST",
            path=_path(operation, target.model_id),
            headers=stamped,
            body=raw,
            first_byte_timeout=self._first_byte,
            read_timeout=self._idle,
            signed_at=time.time(),
        )


@lru_cache(maxsize=1024)
def _path(operation: Operation, model_id: str) -> str:
    fixed = _FIXED.get(operation)
    if fixed is not None:
        return fixed
    if operation is Operation.APPLY_GUARDRAIL:
        identifier, _, version = model_id.rpartition(":")
        return f"/guardrail/{quote(identifier, safe='')}/version/{quote(version, safe='')}/apply"
    return f"/model/{quote(model_id, safe='')}/{_SUFFIX[operation]}"


def _chat(asked: _Asked) -> Spoken:
    """Bedrock's own route where it serves the model, Converse for every other chat model."""
    model = asked.model
    if model.openai and model.family in _OPENAI and asked.target.kind in _ROUTED:
        return asked.native(Operation.CHAT_COMPLETIONS, dialects.CHAT_COMPLETIONS)
    if not (dialects.native(model.family).generates and model.modality.endswith("text")):
        raise Invalid(f"{model.id} does not chat; call it with InvokeModel", reason="not_a_chat_model")
    return chat_over_converse(asked.body, asked.headers)


def _responses(asked: _Asked) -> Spoken:
    model = asked.model
    if not (model.openai and model.family in _OPENAI and asked.target.kind in _ROUTED):
        raise Invalid(
            f"Bedrock does not serve {model.id} on the Responses API; use /openai/v1/chat/completions, "
            "which serves every chat model here",
            reason="not_on_this_route",
        )
    return asked.native(Operation.RESPONSES, dialects.RESPONSES)


def _messages(asked: _Asked) -> Spoken:
    _claude_only(asked.model, "the Messages API")
    if not (asked.model.openai and asked.target.kind in _ROUTED):
        raise Invalid(
            f"Bedrock does not serve {asked.target.model_id} on the Messages API; call it with InvokeModel "
            "or Converse",
            reason="not_on_this_route",
        )
    return asked.native(Operation.MESSAGES, dialects.MESSAGES)


def _count(asked: _Asked) -> Spoken:
    _countable(asked.model)
    return asked.native(Operation.COUNT_TOKENS, COUNT_TOKENS)


def _count_messages(asked: _Asked) -> Spoken:
    _claude_only(asked.model, "the Messages API")
    _countable(asked.model)
    return count_over_count_tokens(asked.body, asked.model, asked.headers)


def _guardrail(asked: _Asked) -> Spoken:
    return asked.native(Operation.APPLY_GUARDRAIL, GUARDRAIL)


def _claude_only(model: Model, what: str) -> None:
    if model.family != "anthropic":
        raise Invalid(
            f"{what} serves Claude models, and {model.id} is none; use /openai/v1/chat/completions or Converse",
            reason="not_on_this_route",
        )


def _countable(model: Model) -> None:
    if not model.count_tokens:
        raise Invalid(
            f"CountTokens doesn't support {model.id}; its answers say how many tokens they took",
            reason="not_countable",
        )


_SPEAKERS: Mapping[Operation, Callable[[_Asked], Spoken]] = {
    Operation.CHAT_COMPLETIONS: _chat,
    Operation.RESPONSES: _responses,
    Operation.MESSAGES: _messages,
    Operation.COUNT_TOKENS: _count,
    Operation.MESSAGES_COUNT_TOKENS: _count_messages,
    Operation.APPLY_GUARDRAIL: _guardrail,
}

_ROUTE_SSE = {
    Operation.CHAT_COMPLETIONS: "chat_completions",
    Operation.RESPONSES: "responses",
    Operation.MESSAGES: "messages",
}


def classify(status: int, headers: Mapping[str, str], body: bytes) -> Failure:
    """A complete answer that is not 2xx, by the table in `outcomes`."""
    error = read_error(status, headers, body)
    outcome = error.outcome
    ours = outcome.client_status == 503
    message = error.message or f"Bedrock answered {status}"
    if ours:
        message = f"Bedrock does not serve this call now ({error.name or status}): {message}"
    return Failure(
        status=status if status >= 400 else 502,
        kind=error.name or "InternalServerException",
        message=message,
        void=outcome.void,
        ours=ours,
        elsewhere=outcome.retry_elsewhere,
        retry_after_ms=_RETRY_ELSEWHERE_MS if ours else None,
    )
