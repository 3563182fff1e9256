"""How the simulator says no, on each kind of route.

Bedrock: status, ``x-amzn-ErrorType: <Name>:<coral tail>``, ``{"message"}``. Front-door authentication
failures say ``{"Message"}``. The OpenAI and Anthropic routes use those vendors' bodies.
"""

from typing import Any

CORAL_TAIL = ":http://internal.amazon.com/coral/com.amazon.bedrock/"

#: Modelled exception to (HTTP status, message), from the runtime's service model.
MODELLED: dict[str, tuple[int, str]] = {
    "AccessDeniedException": (403, "You don't have access to the model with the specified model ID."),
    "ConflictException": (400, "The request conflicts with another one."),
    "InternalServerException": (
        500,
        "The system encountered an unexpected error during processing. Try again.",
    ),
    "ModelErrorException": (424, "The model returned an error while processing the request."),
    "ModelNotReadyException": (429, "The model is not ready to serve inference requests."),
    "ModelStreamErrorException": (424, "The model stream failed."),
    "ModelTimeoutException": (408, "The model took too long to answer."),
    "ResourceNotFoundException": (404, "This model version has reached the end of its life."),
    "ServiceQuotaExceededException": (400, "The request exceeds the service quota of the account."),
    "ServiceUnavailableException": (503, "The service is temporarily unable to handle the request."),
    "ThrottlingException": (429, "Too many requests, please wait before trying again."),
    "ValidationException": (400, "The request is not valid."),
}
#: Unmodelled names that AWS documents for the front door.
FRONT_DOOR: dict[str, tuple[int, str]] = {
    "IncompleteSignatureException": (403, "Authorization header is incomplete."),
    "InvalidSignatureException": (
        403,
        "The request signature we calculated does not match the signature you provided.",
    ),
    "MissingAuthenticationTokenException": (403, "Missing Authentication Token"),
    "UnrecognizedClientException": (403, "The security token included in the request is invalid."),
    "UnknownOperationException": (404, "The requested operation is not recognised."),
}
_BY_STATUS = {
    400: "ValidationException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    408: "ModelTimeoutException",
    424: "ModelErrorException",
    429: "ThrottlingException",
    500: "InternalServerException",
    503: "ServiceUnavailableException",
}
_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class Refusal(Exception):  # noqa: N818 - it is an answer
    """The request is answered with this error and costs nothing."""

    def __init__(
        self, name: str, message: str = "", status: int = 0, members: dict[str, Any] | None = None
    ) -> None:
        known_status, known_message = (
            MODELLED.get(name) or FRONT_DOOR.get(name) or (500, "An error occurred.")
        )
        self.name = name
        self.message = message or known_message
        self.status = status or known_status
        self.members = members or {}
        super().__init__(f"{self.status} {name}: {self.message}")


def invalid(message: str) -> Refusal:
    return Refusal("ValidationException", message)


def named(spec: str) -> Refusal:
    """The error that a fault names, by exception name (``ModelErrorException``) or by status (``503``)."""
    if spec.isdigit():
        status = int(spec)
        return Refusal(_BY_STATUS.get(status, f"Error{status}"), status=status)
    members = (
        {"originalStatusCode": 500} if spec in {"ModelErrorException", "ModelStreamErrorException"} else None
    )
    return Refusal(spec, members=members)


def bedrock_body(refusal: Refusal) -> dict[str, Any]:
    key = "Message" if refusal.name in FRONT_DOOR else "message"
    return {key: refusal.message, **refusal.members}


def openai_body(refusal: Refusal) -> dict[str, Any]:
    kind = (
        "server_error"
        if refusal.status >= 500
        else _OPENAI_TYPES.get(refusal.status, "invalid_request_error")
    )
    return {"error": {"message": refusal.message, "type": kind, "param": None, "code": refusal.name}}


def anthropic_body(refusal: Refusal, request_id: str) -> dict[str, Any]:
    kind = _ANTHROPIC_TYPES.get(refusal.status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": refusal.message}, "request_id": request_id}
