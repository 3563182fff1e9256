"""What an error of the admin REST tells, and what it must not."""

import logging
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException

from proxy.domain.control import ConflictError, MissingError, RangeError, VersionError
from proxy.errors import BankAway, ConfigurationError, Forbidden, Unauthenticated, Unavailable
from proxy.web.admin import core, paging, problems


def told(error: Exception) -> dict[str, Any]:
    answer = problems.handle(cast("Any", None), error)
    body: dict[str, Any] = msgspec.json.decode(answer.content)
    assert body["status"] == answer.status_code and answer.media_type == "application/problem+json"
    return body | {"headers": answer.headers}


@pytest.mark.parametrize(
    ("error", "status", "slug"),
    [
        (problems.invalid("name", "wrong"), 400, "invalid"),
        (MissingError("tenant"), 404, "not-found"),
        (ConflictError("there is one"), 409, "conflict"),
        (VersionError("changed"), 412, "changed-meanwhile"),
        (ConfigurationError("no such plan"), 400, "invalid"),
        (Unauthenticated("no"), 401, "unauthenticated"),
        (Forbidden("no", reason="tenant_suspended"), 403, "tenant-suspended"),
        (Unavailable("stale"), 503, "unavailable"),
        (BankAway("gone"), 503, "unavailable"),
        (RangeError("out of range"), 400, "invalid"),
        (NotFoundException(), 404, "not-found"),
        (MethodNotAllowedException(), 405, "method-not-allowed"),
    ],
)
def test_every_error_has_its_status(error: Exception, status: int, slug: str) -> None:
    body = told(error)
    assert (body["status"], body["type"]) == (status, f"urn:tollhouse:problem:{slug}")
    assert body["headers"]["Cache-Control"] == "no-store"
    assert ("Retry-After" in body["headers"]) == (status == 503)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("SELECT secret"),
        HTTPException("litestar internals", status_code=500),
    ],
)
def test_a_defect_tells_an_incident_and_nothing_else(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        body = told(error)
    assert body["status"] == 500 and body["detail"].startswith("internal error ")
    assert "secret" not in str(body) and "litestar" not in str(body)
    assert body["detail"].removeprefix("internal error ") in caplog.text


@given(st.text(max_size=700))
def test_any_cursor_is_ours_or_refused(text: str) -> None:
    kinds: tuple[Any, ...] = (str, int)
    for kind in kinds:
        try:
            place = paging.decode(text, kind)
        except problems.Problem as problem:
            assert problem.status == 400
        else:
            assert isinstance(place, kind)


@given(st.one_of(st.integers(min_value=-(2**62), max_value=2**62), st.text(max_size=100)))
def test_cursors_come_back(place: Any) -> None:
    assert paging.decode(paging.encode(place), type(place)) == place


def test_cursors_of_ids() -> None:
    with pytest.raises(problems.Problem):
        paging.decode_id(paging.encode("not a uuid"))
    assert paging.decode_id(None) is None


@pytest.mark.parametrize(
    ("tag", "version"), [(None, None), ("*", None), ('"3"', 3), ('W/"3"', 3), (" 3 ", 3)]
)
def test_etags_are_read(tag: str | None, version: int | None) -> None:
    assert core.expected(tag) == version


def test_other_etags_match_nothing() -> None:
    for tag in ('"abc"', "", '"1", "2"', "-1", "\u0663"):
        with pytest.raises(VersionError):
            core.expected(tag)
