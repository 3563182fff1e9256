"""What an upstream error means: for the money, for the next target, and for the client.

The table is data. A complete HTTP error that names itself in `x-amzn-ErrorType`, before any 2xx
byte, is void where its row says so; everything else stays at its ceiling. Rows marked `unsure` rest
on no AWS statement about billing: reconciliation against the invocation log and the bill checks them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from proxy.bedrock.mask import masked

MESSAGE_CHARACTERS_MAX = 2000

_MODELLED = "modelled error of InvokeModel and Converse (service model): "
_REFUSED = "refused before inference; AWS prices tokens of inference only"
_FRONT_DOOR = "authentication at the front door, before any model is chosen"
_FAILED = "the model was asked but the call failed; AWS does not say whether its input is billed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row: an error of Bedrock's, whether it is billed, and whose fault it is."""

    #: nothing was billed
    void: bool
    evidence: str
    #: no AWS statement proves the row
    unsure: bool = False
    #: about us and our targets, not about the request: the client gets 503
    ours: bool = False
    #: another target may do better
    retry_elsewhere: bool = False

    @property
    def client_status(self) -> int | None:
        """The status the client gets instead of Bedrock's, None where Bedrock's is passed on."""
        return 503 if self.ours else None


OUTCOMES: Mapping[str, Outcome] = {
    "ValidationException": Outcome(True, _MODELLED + _REFUSED),
    "ResourceNotFoundException": Outcome(
        True, _MODELLED + "no such model, also past its end of life", retry_elsewhere=True
    ),
    "ThrottlingException": Outcome(True, _MODELLED + _REFUSED, ours=True, retry_elsewhere=True),
    "TooManyRequestsException": Outcome(
        True, "throttling under its older name", unsure=True, ours=True, retry_elsewhere=True
    ),
    "ModelNotReadyException": Outcome(True, _MODELLED + _REFUSED, ours=True, retry_elsewhere=True),
    "ServiceQuotaExceededException": Outcome(True, _MODELLED + _REFUSED, ours=True, retry_elsewhere=True),
    "ServiceUnavailableException": Outcome(
        True,
        _MODELLED + "capacity, not quota (troubleshooting page)",
        unsure=True,
        ours=True,
        retry_elsewhere=True,
    ),
    "ServiceUnavailable": Outcome(
        True, "common AWS error; as ServiceUnavailableException", unsure=True, ours=True, retry_elsewhere=True
    ),
    "InternalServerException": Outcome(
        True, _MODELLED + _FAILED, unsure=True, ours=True, retry_elsewhere=True
    ),
    "InternalFailure": Outcome(
        True, "common AWS error; as InternalServerException", unsure=True, ours=True, retry_elsewhere=True
    ),
    "ModelTimeoutException": Outcome(True, _MODELLED + _FAILED, unsure=True, retry_elsewhere=True),
    "ModelErrorException": Outcome(True, _MODELLED + _FAILED, unsure=True, retry_elsewhere=True),
    "ModelStreamErrorException": Outcome(True, _MODELLED + _FAILED, unsure=True, retry_elsewhere=True),
    # the proxy's own standing with AWS; the tenant can do nothing about it
    "AccessDeniedException": Outcome(True, _MODELLED + _REFUSED, ours=True, retry_elsewhere=True),
    "UnrecognizedClientException": Outcome(True, _FRONT_DOOR, ours=True, retry_elsewhere=True),
    "InvalidSignatureException": Outcome(True, _FRONT_DOOR, ours=True, retry_elsewhere=True),
    "MissingAuthenticationTokenException": Outcome(True, _FRONT_DOOR, ours=True, retry_elsewhere=True),
    "InvalidClientTokenId": Outcome(True, _FRONT_DOOR, ours=True, retry_elsewhere=True),
    "IncompleteSignature": Outcome(True, _FRONT_DOOR, ours=True, retry_elsewhere=True),
    "ExpiredTokenException": Outcome(True, _FRONT_DOOR, ours=True, retry_elsewhere=True),
    "RequestExpired": Outcome(True, _FRONT_DOOR, ours=True, retry_elsewhere=True),
    "NotAuthorized": Outcome(True, _FRONT_DOOR, ours=True, retry_elsewhere=True),
    "FTUFormNotFilled": Outcome(
        True, "the account has not been let in to the model yet", ours=True, retry_elsewhere=True
    ),
}

#: an error that names no known type: nothing says that no model ran
UNKNOWN = Outcome(False, "names no modelled error", unsure=True, ours=True, retry_elsewhere=True)

#: statuses of the OpenAI and Anthropic routes, whose errors may carry no `x-amzn-ErrorType`
_COMPATIBLE: Mapping[int, Outcome] = {
    **dict.fromkeys((400, 404, 413, 422), Outcome(True, "the route refused the request itself", unsure=True)),
    **dict.fromkeys(
        (401, 403, 429),
        Outcome(True, "the route refused us before inference", unsure=True, ours=True, retry_elsewhere=True),
    ),
}

_GENERIC = "The model is not available right now; please retry."
#: errors about us whose text is fit for tenants; the others speak of roles and credentials
_MAY_TELL = frozenset(
    {
        "ServiceUnavailableException",
        "ModelNotReadyException",
        "InternalServerException",
        "ThrottlingException",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamError:
    """A complete error answer, read."""

    status: int
    #: Bedrock's name for it, empty when it names none
    name: str
    #: fit for the client: account ids masked, nothing about the proxy's own standing with AWS
    message: str
    outcome: Outcome


def read_error(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    """What a complete answer other than 2xx means. `headers` have names in lower case.

    Void needs the error's name in the header, or the plain error shape and request id of a
    compatible route: any intermediary can answer 400 with a page of its own.
    """
    answer = _object(body)
    name = error_name(headers)
    inner = answer.get("error")
    outcome = OUTCOMES.get(name, UNKNOWN) if status >= 400 else UNKNOWN
    if not name and type(inner) is dict and "x-amzn-requestid" in headers:
        outcome = _COMPATIBLE.get(status, UNKNOWN)
    message = _message(answer, inner)
    if outcome.ours and name not in _MAY_TELL:
        message = _GENERIC
    return UpstreamError(status=status, name=name, message=message, outcome=outcome)


def error_name(headers: Mapping[str, str]) -> str:
    """Bedrock's name for the error, without the namespace or address that surrounds it on the wire."""
    return headers.get("x-amzn-errortype", "").split(":", 1)[0].rsplit("#", 1)[-1].strip()[:64]


def _message(answer: Mapping[str, object], inner: object) -> str:
    message = answer.get("message") or answer.get("Message")
    if type(message) is not str and type(inner) is dict:
        message = inner.get("message")
    return masked(message)[:MESSAGE_CHARACTERS_MAX] if type(message) is str else ""


def _object(body: bytes) -> dict[str, object]:
    try:
        answer = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError:
        return {}
    return answer if type(answer) is dict else {}
