"""What a request and its policy say about sharing answers. Pure.

Three things can be shared: an answer that is kept (the cache), an answer that is under way
(single-flight), and one call with its own retries. The first two need the policy's and the client's
consent; the third is owed to every client that says which tries belong together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from proxy.domain.ledger import Operation
from proxy.domain.policy import CachePolicy
from proxy.domain.request import Bound

#: longest `Idempotency-Key`, characters
TOKEN_MAX = 255
_TOKEN_OF_SDK_MAX = 128
#: operations whose answers are answers; probes are free and tell the state of the moment
_ANSWERS = frozenset(
    {
        Operation.INVOKE_MODEL,
        Operation.INVOKE_MODEL_WITH_RESPONSE_STREAM,
        Operation.CONVERSE,
        Operation.CONVERSE_STREAM,
        Operation.CHAT_COMPLETIONS,
        Operation.RESPONSES,
        Operation.MESSAGES,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What may be shared of one call."""

    #: may be answered by what is kept or by a like call under way
    look: bool = False
    #: a complete answer may be kept
    keep: bool = False
    #: oldest kept answer that is welcome, seconds; None for any
    max_age: int | None = None
    #: what the tries of one call have in common, "" when the client does not say
    token: str = ""
    #: this is not the first try, or the client promises that the token means one request
    again: bool = False
    #: the token is an `Idempotency-Key`: using it for another request is an error
    promised: bool = False
    #: the client wants its answer written nowhere
    private: bool = False

    @property
    def any(self) -> bool:
        """Whether the request needs a fingerprint at all."""
        return self.look or self.keep or bool(self.token)


ALONE = Terms()
_SHARED = Terms(look=True, keep=True)
#: the headers that say something about sharing
_TELLING = frozenset({"cache-control", "idempotency-key", "amz-sdk-invocation-id"})


def terms_of(policy: CachePolicy, operation: Operation, bound: Bound, headers: Mapping[str, str]) -> Terms:
    """The terms of a bounded request. Header names are in lower case.

    Answers to calls with tools are shared with nobody: their tool calls act. A retry of the very
    same call still joins it.
    """
    silent = _TELLING.isdisjoint(headers)
    if silent and not policy.enabled:
        return ALONE
    token, again, promised = _token(headers)
    said = _directives(headers.get("cache-control", ""))
    private = "no-store" in said
    max_age = _seconds(said.get("max-age"))
    shared = (
        policy.enabled
        and operation in _ANSWERS
        and not private
        and not bound.tools
        and (bound.deterministic or not policy.deterministic_only)
    )
    if silent:
        return _SHARED if shared else ALONE
    return Terms(
        look=shared and "no-cache" not in said and max_age != 0,
        keep=shared,
        max_age=max_age,
        token=token if operation in _ANSWERS else "",
        again=again,
        promised=promised,
        private=private,
    )


def _token(headers: Mapping[str, str]) -> tuple[str, bool, bool]:
    promised = headers.get("idempotency-key", "")
    if promised:
        return promised, True, True
    token = headers.get("amz-sdk-invocation-id", "")[:_TOKEN_OF_SDK_MAX]
    return token, bool(token) and _is_retry(headers.get("amz-sdk-request", "")), False


def _is_retry(request: str) -> bool:
    """`amz-sdk-request: attempt=2; max=3` (botocore and the AWS SDKs for JavaScript)."""
    for part in request.split(";"):
        name, _, number = part.strip().partition("=")
        if name == "attempt":
            return number.isascii() and number.isdigit() and int(number) > 1
    return False


def _directives(header: str) -> dict[str, str]:
    """Directives of a `Cache-Control` header (RFC 9111), names in lower case."""
    found: dict[str, str] = {}
    for part in header.split(",") if header else ():
        name, _, value = part.strip().partition("=")
        found[name.strip().lower()] = value.strip().strip('"')
    return found


def _seconds(text: str | None) -> int | None:
    """A delta of seconds; one that cannot be read is as good as 0, the careful reading."""
    if text is None:
        return None
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else 0
