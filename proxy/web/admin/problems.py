"""Errors of the admin REST on the wire: `application/problem+json` (RFC 9457), in one place.

Nothing here repeats a stack trace, SQL or the name of a library. A defect of ours shows an incident
id, which its log line carries too.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException

from proxy.domain.control import ControlError, MissingError, RangeError, VersionError
from proxy.errors import BankAway, ConfigurationError, Invalid, Refusal, Unauthenticated, Unavailable
from proxy.web.schemas import FieldError, ProblemOut

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):  # noqa: N818
    """An answer that is not the one asked for. `slug` is the stable end of the problem's `type`."""

    def __init__(
        self,
        status: int,
        slug: str,
        detail: str,
        *,
        errors: list[FieldError] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.slug = slug
        self.errors = errors or []
        self.headers = headers or {}


class Replay(Exception):  # noqa: N818
    """The answer that the same request got before; no error at all."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers
        self.body = body


def invalid(field: str, message: str) -> Problem:
    return Problem(400, "invalid", message, errors=[FieldError(field=field, message=message)])


def not_found(what: str) -> Problem:
    """Also for things that exist and belong to somebody else: the two must look alike."""
    return Problem(404, "not-found", f"no such {what}")


def conflict(detail: str) -> Problem:
    return Problem(409, "conflict", detail)


def unauthenticated() -> Problem:
    return Problem(
        401,
        "unauthenticated",
        "no valid admin key was presented; send it as `Authorization: Bearer <admin key>`",
        headers={"WWW-Authenticate": 'Bearer realm="tollhouse-admin"'},
    )


def forbidden(detail: str) -> Problem:
    return Problem(403, "forbidden", detail)


def answer(problem: Problem) -> Response[bytes]:
    title = HTTPStatus(problem.status).phrase
    body = ProblemOut(
        type=f"urn:tollhouse:problem:{problem.slug}",
        title=title,
        status=problem.status,
        detail=str(problem),
        errors=problem.errors,
    )
    headers = {"Cache-Control": "no-store"} | problem.headers
    return Response(
        msgspec.json.encode(body), status_code=problem.status, media_type=MEDIA_TYPE, headers=headers
    )


_PATH = re.compile(r"^(.*?)(?: - at `\$?\.?(.*)`)?$", re.DOTALL)
_UNKNOWN_FIELD = re.compile(r"^Object contains unknown field `(.*)`$", re.DOTALL)


def from_validation(error: msgspec.ValidationError) -> Problem:
    """A body that is JSON but not the one wanted, with the path of the wrong value."""
    match = _PATH.match(str(error))
    message, path = (match[1], match[2] or "") if match else (str(error), "")
    unknown = _UNKNOWN_FIELD.match(message)
    if unknown:
        path = f"{path}.{unknown[1]}" if path else unknown[1]
    path = path[:200]
    return Problem(
        400, "invalid", f"{path}: {message[:300]}" if path else message[:300],
        errors=[FieldError(field=path, message=message[:300])],
    )  # fmt: skip


def _from_litestar(error: HTTPException) -> Problem:
    if isinstance(error, ValidationException):
        extra: Any = error.extra if isinstance(error.extra, list) else []
        errors = [FieldError(field=str(e.get("key", "")), message=str(e.get("message", ""))) for e in extra]
        detail = "; ".join(f"{e.field}: {e.message}" for e in errors) or "the request is not valid"
        return Problem(400, "invalid", detail, errors=errors)
    status = error.status_code
    slug = {404: "not-found", 405: "method-not-allowed", 413: "too-large"}.get(status, "refused")
    text = {404: "no such route", 405: "this path does not take this method", 413: "the body is too large"}
    headers = {k: v for k, v in (error.headers or {}).items() if k.lower() == "allow"}
    return Problem(status, slug, text.get(status, HTTPStatus(status).phrase), headers=headers)


def _unavailable(detail: str = "the database does not answer; please retry") -> Problem:
    return Problem(503, "unavailable", detail, headers={"Retry-After": "1"})


def _from_control(error: ControlError) -> Problem:
    if isinstance(error, MissingError):
        return not_found(str(error))
    if isinstance(error, VersionError):
        return Problem(412, "changed-meanwhile", str(error))
    if isinstance(error, RangeError):
        return Problem(400, "invalid", str(error))
    return conflict(str(error))


def _from_refusal(error: Refusal) -> Problem:
    if isinstance(error, Unauthenticated):
        headers = {"WWW-Authenticate": 'Bearer realm="tollhouse"'}
        return Problem(401, error.reason.replace("_", "-"), str(error), headers=headers)
    if isinstance(error, Unavailable):
        return _unavailable(str(error))
    if isinstance(error, Invalid):
        return Problem(400, error.reason.replace("_", "-"), str(error))
    return Problem(403, error.reason.replace("_", "-"), str(error))


def _known(error: Exception) -> Problem | None:
    if isinstance(error, Problem):
        return error
    if isinstance(error, HTTPException):
        return _from_litestar(error) if error.status_code < 500 else None
    if isinstance(error, ControlError):
        return _from_control(error)
    if isinstance(error, Refusal):
        return _from_refusal(error)
    if isinstance(error, ConfigurationError):
        return Problem(400, "invalid", str(error))
    if isinstance(error, BankAway):
        log.warning("admin request failed for now: %s", error)
        return _unavailable()
    return None


def handle(_request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """The exception handler of every admin route."""
    if isinstance(error, Replay):
        headers = {name: value for name, value in error.headers.items() if name != "content-type"}
        return Response(
            error.body,
            status_code=error.status,
            media_type=error.headers.get("content-type"),
            headers=headers | {"Idempotent-Replayed": "true"},
        )
    problem = _known(error)
    if problem is None:
        incident = str(uuid4())
        log.error("admin request failed, incident %s", incident, exc_info=error)
        problem = Problem(500, "internal", f"internal error {incident}")
    return answer(problem)


HANDLERS: dict[int | type[Exception], Callable[..., Response[bytes]]] = {Exception: handle}
