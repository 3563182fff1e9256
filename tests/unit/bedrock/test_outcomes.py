import json

import botocore.session
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.bedrock.outcomes import OUTCOMES, read_error

CORAL = ":http://internal.amazon.com/coral/com.amazon.bedrock/"


def error(status, name, message="m", *, key="message", **headers):
    named = {"x-amzn-errortype": name} if name else {}
    return read_error(status, named | headers, json.dumps({key: message}).encode())


def test_every_modelled_error_has_a_row_with_its_evidence():
    service = botocore.session.Session().get_service_model("bedrock-runtime")
    for operation in ("InvokeModel", "InvokeModelWithResponseStream", "Converse", "ConverseStream"):
        for shape in service.operation_model(operation).error_shapes:
            assert shape.name in OUTCOMES
    assert all(row.evidence for row in OUTCOMES.values())
    assert all(
        OUTCOMES[name].unsure
        for name in ("ModelErrorException", "ModelTimeoutException", "InternalServerException")
    )


@pytest.mark.parametrize("name", OUTCOMES)
@pytest.mark.parametrize("form", ["{}", "{}" + CORAL, "com.amazon.bedrock#{}"])
def test_a_complete_named_error_is_void(name, form):
    found = error(400, form.format(name))
    assert found.name == name and found.outcome.void


@pytest.mark.parametrize(
    ("status", "name"),
    [(429, "ThrottlingException"), (400, "ServiceQuotaExceededException"), (503, "ServiceUnavailableException"),
     (403, "AccessDeniedException"), (403, "UnrecognizedClientException"), (429, "ModelNotReadyException")],
)  # fmt: skip
def test_what_is_about_us_becomes_503_and_tries_elsewhere(status, name):
    found = error(status, name)
    assert found.outcome.client_status == 503 and found.outcome.retry_elsewhere


@pytest.mark.parametrize(
    "name",
    ["ValidationException", "ResourceNotFoundException", "ModelErrorException", "ModelTimeoutException"],
)
def test_what_is_about_the_request_is_passed_on(name):
    found = error(400, name, "The provided model identifier is invalid.")
    assert found.outcome.client_status is None
    assert found.message == "The provided model identifier is invalid."


@pytest.mark.parametrize(
    ("status", "name"), [(500, ""), (502, ""), (400, ""), (400, "NeverHeardOfException"), (302, "ValidationException"), (101, "")]
)  # fmt: skip
def test_an_unnamed_error_proves_nothing(status, name):
    found = error(status, name)
    assert not found.outcome.void and found.outcome.client_status == 503


def test_a_body_alone_is_no_proof():
    body = json.dumps(
        {"__type": "ValidationException", "code": "ValidationException", "message": "m"}
    ).encode()
    assert not read_error(400, {}, body).outcome.void
    assert not read_error(502, {"content-type": "text/html"}, b"<html>Bad Gateway</html>").outcome.void


def test_errors_of_the_compatible_routes_need_the_request_id():
    body = b'{"type":"error","error":{"type":"invalid_request_error","message":"bad 123456789012"}}'
    proven = read_error(400, {"x-amzn-requestid": "r"}, body)
    assert proven.outcome.void and proven.outcome.unsure and proven.message == "bad ************"
    assert not read_error(400, {}, body).outcome.void
    assert read_error(429, {"x-amzn-requestid": "r"}, body).outcome.client_status == 503
    assert not read_error(500, {"x-amzn-requestid": "r"}, body).outcome.void


def test_account_ids_are_masked_and_our_own_standing_is_not_told():
    arn = "arn:aws:bedrock:us-east-1:123456789012:provisioned-model/abc"
    assert (
        error(400, "ValidationException", f"bad {arn}").message
        == f"bad {arn.replace('123456789012', '*' * 12)}"
    )
    assert "123456789012" not in error(404, "ResourceNotFoundException", arn, key="Message").message
    denied = error(
        403,
        "AccessDeniedException",
        "User: arn:aws:sts::123456789012:assumed-role/tollhouse is not authorized",
    )
    assert "assumed-role" not in denied.message
    assert error(400, "ValidationException", "1234567890123").message == "1234567890123"


@given(
    st.integers(100, 599),
    st.dictionaries(st.just("x-amzn-errortype"), st.text(max_size=40)),
    st.binary(max_size=80),
)
def test_garbage_raises_nothing(status, headers, body):
    assert type(read_error(status, headers, body).message) is str
