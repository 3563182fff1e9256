"""Refusals on the wire: the one place where a decision becomes a status, headers and a body.

Statuses follow what stock clients do with them: a refusal that no retry can cure carries a status
nobody retries; one that passes by itself carries both retry headers, because botocore reads only
`x-amz-retry-after` (milliseconds) and everybody else only `Retry-After` (seconds).
"""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from proxy import errors
from proxy.clock import uuid7
from proxy.web.routes import Wire

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Shape:
    """How one kind of refusal looks in the three dialects."""

    bedrock: tuple[int, str]
    openai: tuple[int, str, str]  # status, type, code
    anthropic: tuple[int, str]
    retry: bool | None = None  # True: both retry headers; False: x-should-retry: false; None: neither


SHAPES: tuple[tuple[type[errors.Refusal], Shape], ...] = (
    (errors.Unauthenticated, Shape((403, "UnrecognizedClientException"), (401, "invalid_request_error", "invalid_api_key"), (401, "authentication_error"))),
    (errors.Forbidden, Shape((403, "AccessDeniedException"), (403, "permission_error", "access_denied"), (403, "permission_error"))),
    (errors.TooLarge, Shape((413, "ValidationException"), (413, "invalid_request_error", "request_too_large"), (413, "request_too_large"))),
    (errors.UnboundedCost, Shape((400, "ValidationException"), (400, "invalid_request_error", "unbounded_cost"), (400, "invalid_request_error"))),
    (errors.UnknownModel, Shape((400, "ValidationException"), (404, "invalid_request_error", "model_not_found"), (404, "not_found_error"))),
    (errors.Invalid, Shape((400, "ValidationException"), (400, "invalid_request_error", "invalid_request"), (400, "invalid_request_error"))),
    (errors.NotServed, Shape((404, "UnknownOperationException"), (404, "invalid_request_error", "unknown_url"), (404, "not_found_error"))),
    (errors.RateLimited, Shape((429, "ThrottlingException"), (429, "rate_limit_error", "rate_limit_exceeded"), (429, "rate_limit_error"), retry=True)),
    (errors.BudgetHeld, Shape((429, "ThrottlingException"), (429, "rate_limit_error", "budget_held"), (429, "rate_limit_error"), retry=True)),
    (errors.BudgetSpent, Shape((400, "ServiceQuotaExceededException"), (402, "insufficient_quota", "budget_spent"), (402, "billing_error"), retry=False)),
    (errors.UpstreamUnavailable, Shape((503, "ServiceUnavailableException"), (503, "server_error", "upstream_unavailable"), (503, "overloaded_error"), retry=True)),
    (errors.Unavailable, Shape((503, "ServiceUnavailableException"), (503, "server_error", "unavailable"), (503, "overloaded_error"), retry=True)),
)  # fmt: skip

#: refusals whose dialects have a status of their own for one reason of their kind
_BY_REASON = {
    "idempotency_key_reused": Shape(
        (400, "ValidationException"),
        (422, "invalid_request_error", "idempotency_key_reused"),
        (422, "invalid_request_error"),
    )
}
_INTERNAL = Shape(
    (500, "InternalServerException"), (500, "server_error", "internal_error"), (500, "api_error")
)
DEFAULT_RETRY_MS = 1000


def shape_of(refusal: errors.Refusal) -> Shape:
    if refusal.reason in _BY_REASON:
        return _BY_REASON[refusal.reason]
    for kind, shape in SHAPES:
        if isinstance(refusal, kind):
            return shape
    return _INTERNAL


def render(wire: Wire, refusal: errors.Refusal) -> tuple[int, Headers, bytes]:
    """Status, headers and body of a refusal in the dialect of its route."""
    shape = shape_of(refusal)
    status, headers, body = message(wire, shape, str(refusal))
    headers.append((b"x-tollhouse-reason", refusal.reason.encode()))
    if shape.retry is True:
        milliseconds = refusal.retry_after_ms if refusal.retry_after_ms is not None else DEFAULT_RETRY_MS
        seconds = max(1, -(-milliseconds // 1000))
        headers.append((b"retry-after", str(seconds).encode()))
        headers.append((b"x-amz-retry-after", str(max(1, milliseconds)).encode()))
    elif shape.retry is False:
        headers.append((b"x-should-retry", b"false"))
    return status, headers, body


def internal_error(wire: Wire, incident: str) -> tuple[int, Headers, bytes]:
    """An error of ours. Names nothing but the incident id that the log line carries."""
    return message(wire, _INTERNAL, f"internal error {incident}")


def upstream_error(wire: Wire, status: int, kind: str, text: str) -> tuple[int, Headers, bytes]:
    """An error of Bedrock's that passes through: its own status and type, in the route's dialect."""
    openai = (
        "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
    )
    anthropic = (
        "rate_limit_error" if status == 429 else "api_error" if status >= 500 else "invalid_request_error"
    )
    return message(wire, Shape((status, kind), (status, openai, kind), (status, anthropic)), text)


def message(wire: Wire, shape: Shape, text: str) -> tuple[int, Headers, bytes]:
    request_id = str(uuid7()).encode()
    headers: Headers = [
        (b"content-type", b"application/json"),
        (b"x-amzn-requestid", request_id),
        (b"x-request-id", request_id),
    ]
    body: dict[str, object]
    if wire == "openai":
        status, kind, code = shape.openai
        body = {"error": {"message": text, "type": kind, "param": None, "code": code}}
    elif wire == "anthropic":
        status, kind = shape.anthropic
        body = {"type": "error", "error": {"type": kind, "message": text}, "request_id": request_id.decode()}
    else:
        status, kind = shape.bedrock
        headers.append((b"x-amzn-errortype", kind.encode()))
        body = {"message": text}
    data = orjson.dumps(body)
    headers.append((b"content-length", str(len(data)).encode()))
    return status, headers, data
