"""The pipeline's view of Bedrock's wire: which dialect, which request, what an error means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from proxy.bedrock import dialects
from proxy.bedrock.eventstream import exception_frame
from proxy.bedrock.metadata import stamp
from proxy.bedrock.outcomes import read_error
from proxy.bedrock.sse import error_event
from proxy.domain.catalogue import Model, Target
from proxy.domain.ledger import Operation
from proxy.domain.request import Bound
from proxy.errors import Invalid
from proxy.ports import Dialect, Failure, UpstreamRequest

_SUFFIX = {
    Operation.INVOKE_MODEL: "invoke",
    Operation.INVOKE_MODEL_WITH_RESPONSE_STREAM: "invoke-with-response-stream",
    Operation.CONVERSE: "converse",
    Operation.CONVERSE_STREAM: "converse-stream",
    Operation.COUNT_TOKENS: "count-tokens",
}
_CONVERSE = frozenset({Operation.CONVERSE, Operation.CONVERSE_STREAM})
_INVOKE = frozenset({Operation.INVOKE_MODEL, Operation.INVOKE_MODEL_WITH_RESPONSE_STREAM})
#: client headers that go upstream besides `x-amzn-bedrock-*`; everything else is dropped
_FORWARDED = ("content-type", "accept")
_RETRY_ELSEWHERE_MS = 1000


class BedrockWires:
    """Stateless. `first_byte` and `idle` are seconds."""

    def __init__(self, *, first_byte: float, idle: float) -> None:
        self._first_byte = first_byte
        self._idle = idle

    def dialect(self, operation: Operation, model: Model, target: Target) -> Dialect:  # noqa: ARG002
        """Raises `UnknownModel` or `Invalid` where the model does not speak that operation."""
        if operation in _CONVERSE:
            return dialects.CONVERSE
        if operation in _INVOKE:
            return dialects.native(model.family)
        raise Invalid(f"{operation.label} is not served for {model.id}", reason="not_governed")

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
        passed = {name: headers[name] for name in _FORWARDED if name in headers}
        passed.update((n, v) for n, v in headers.items() if n.startswith("x-amzn-bedrock-"))
        passed.setdefault("content-type", "application/json")
        raw, stamped = stamp(operation, body, passed, tuple(pairs.items()), bound.metadata)
        return UpstreamRequest(
            target=target,
            method="POST",
            path=f"/model/{quote(target.model_id, safe='')}/{_SUFFIX[operation]}",
            headers=stamped,
            body=raw,
            first_byte_timeout=self._first_byte,
            read_timeout=self._idle,
        )


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
