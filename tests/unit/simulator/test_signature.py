"""Verification of SigV4, against signatures made by botocore."""

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.simulator import signature
from proxy.simulator.errors import Refusal

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"


def signed(path: str, body: bytes = b"{}", headers: dict[str, str] | None = None, service: str = "bedrock"):
    request = AWSRequest("POST", f"http://localhost:8080{path}", data=body, headers=headers or {})
    SigV4Auth(Credentials("AKIDEXAMPLE", SECRET), service, "eu-west-1").add_auth(request)
    sent = {name.lower(): value for name, value in request.headers.items()}
    return {"host": "localhost:8080", **sent}


def check(path: str, headers: dict[str, str], body: bytes = b"{}", secret: str | None = SECRET):
    return signature.check("POST", path, "", headers, body, secret)


PATHS = [
    "/model/meta.llama3-1-405b-instruct-v1%3A0/invoke",
    "/model/meta.llama3-1-405b-instruct-v1:0/invoke",
    "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A123456789012%3Aapplication-inference-profile%2Fabc/converse",
    "/model/arn:aws:bedrock:us-east-1:123456789012:application-inference-profile%2Fabc/invoke",
]


@pytest.mark.parametrize("path", PATHS)
def test_botocore_signatures_verify(path):
    headers = signed(path, headers={"Content-Type": "application/json"})
    assert check(path, headers) == "eu-west-1"


@given(st.binary(max_size=200), st.text(st.characters(codec="ascii", categories=["L", "N"]), max_size=20))
@settings(max_examples=30)
def test_any_body_and_metadata_verify(body, value):
    headers = signed(PATHS[0], body, {"X-Amzn-Bedrock-Request-Metadata": f'{{"k":"{value}"}}'})
    assert check(PATHS[0], headers, body) == "eu-west-1"


def test_another_body_or_path_or_secret_does_not_verify():
    headers = signed(PATHS[0])
    for path, body, secret in ((PATHS[0], b"{} ", SECRET), (PATHS[1], b"{}", SECRET), (PATHS[0], b"{}", "x")):
        with pytest.raises(Refusal, match="InvalidSignatureException"):
            check(path, headers, body, secret)


def test_without_a_secret_only_the_form_is_checked():
    headers = signed(PATHS[0])
    assert check(PATHS[0], headers, b"other", None) == "eu-west-1"
    broken = {**headers, "authorization": headers["authorization"].replace("Signature=", "Sig=")}
    with pytest.raises(Refusal, match="IncompleteSignatureException"):
        check(PATHS[0], broken, secret=None)


def test_request_metadata_must_be_signed():
    headers = {**signed(PATHS[0]), "x-amzn-bedrock-request-metadata": "{}"}
    with pytest.raises(Refusal, match="must be a signed header"):
        check(PATHS[0], headers, secret=None)


def test_the_service_must_be_bedrock():
    with pytest.raises(Refusal, match="correct service"):
        check(PATHS[0], signed(PATHS[0], service="bedrock-runtime"), secret=None)


def test_bearer_tokens_and_api_keys_are_accepted_and_nothing_is_not():
    assert check(PATHS[0], {"authorization": "Bearer abc"}) is None
    assert check(PATHS[0], {"x-api-key": "abc"}) is None
    with pytest.raises(Refusal, match="MissingAuthenticationTokenException"):
        check(PATHS[0], {})
    with pytest.raises(Refusal, match="IncompleteSignatureException"):
        check(PATHS[0], {"authorization": "Basic abc"})


def test_authority_stands_for_host():
    headers = signed(PATHS[0])
    as_signed = headers["authorization"].replace("SignedHeaders=host", "SignedHeaders=:authority")
    with pytest.raises(Refusal, match="InvalidSignatureException"):
        check(PATHS[0], {**headers, "authorization": as_signed})
    assert check(PATHS[0], {**headers, "authorization": as_signed}, secret=None) == "eu-west-1"
