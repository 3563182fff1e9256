import hashlib
import hmac
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.bedrock.signing import StaticCredentials, parse_authorization, precheck, signed_headers, verify
from proxy.errors import Unauthenticated
from tests.unit.bedrock.support import captured

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
NOW = datetime(2026, 11, 23, 7, 14, 21, tzinfo=UTC)
PATHS = [
    "/model/meta.llama3-1-405b-instruct-v1%3A0/invoke",
    "/model/meta.llama3-1-405b-instruct-v1:0/invoke",
    "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A123456789012%3Aapplication-inference-profile%2Fab12/converse",
    "/model/arn:aws:bedrock:us-east-1:123456789012:application-inference-profile%2Fab12/invoke",
    "/prefix/model/x~y_z.a-b/converse-stream",
]
values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=40)
header_sets = st.dictionaries(
    st.sampled_from(
        [
            "Content-Type", "Accept", "X-Amzn-Bedrock-Service-Tier", "x-amzn-bedrock-request-metadata",
            "X-Amzn-Bedrock-GuardrailIdentifier", "anthropic-version", "User-Agent", "X-Amzn-Trace-Id",
        ]
    ),
    values,
)  # fmt: skip


def botocore_headers(path, headers, body, *, token=None, region="us-east-1", query=""):
    url = f"https://bedrock-runtime.{region}.amazonaws.com{path}" + (f"?{query}" if query else "")
    request = botocore.awsrequest.AWSRequest(method="POST", url=url, headers=headers, data=body)
    request.context["timestamp"] = NOW.strftime("%Y%m%dT%H%M%SZ")
    auth: Any = botocore.auth.SigV4Auth(
        botocore.credentials.Credentials("AKIDEXAMPLE", SECRET, token), "bedrock", region
    )
    auth._modify_request_before_signing(request)
    signature = auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)
    auth._inject_signature_to_request(request, signature)
    return dict(request.headers.items())


@given(
    st.sampled_from(PATHS), header_sets, st.binary(max_size=80), st.sampled_from([None, "FwoGZXIvYXdzEBYaD+/="]),
    st.sampled_from(["", "b=2&a=1", "a=%2F&a=", "max=1&a"]),
)  # fmt: skip
def test_equal_to_botocore_byte_for_byte(path, headers, body, token, query):
    ours = signed_headers(
        StaticCredentials("AKIDEXAMPLE", SECRET, token), "us-east-1", "POST",
        "bedrock-runtime.us-east-1.amazonaws.com", path, headers, body, NOW.timestamp(), query,
    )  # fmt: skip
    theirs = botocore_headers(path, headers, body, token=token, query=query)
    assert ours["Authorization"] == theirs["Authorization"]
    assert {name.lower() for name in ours} == {name.lower() for name in theirs}


def test_the_key_cache_follows_secret_date_and_region():
    def authorization(secret, region, now):
        credentials = StaticCredentials("AKIDEXAMPLE", secret)
        return signed_headers(credentials, region, "POST", "h", "/x", {}, b"", now)["Authorization"]

    now = NOW.timestamp()
    seen = {
        authorization(secret, region, moment)
        for secret in ("a", "b")
        for region in ("us-east-1", "eu-west-1")
        for moment in (now, now + 86_400)
    }
    assert len(seen) == 8


def head(sample):
    """Headers as a server hands them on: lower case, `:authority` as itself."""
    return {name.lower(): value for name, value in sample["headers"]}


def resign(sample, secret):
    """The captured request with a signature under a secret we know, over the same headers.

    Written out from the specification, not with the code under test.
    """
    headers = head(sample)
    old = headers["authorization"]
    key, date, region, service, end = old.split("Credential=")[1].split(",")[0].split("/")
    signed = old.split("SignedHeaders=")[1].split(",")[0]
    body_hash = hashlib.sha256(sample["body"].encode()).hexdigest()
    lines = [f"{name}:{headers[name]}" for name in signed.split(";")]
    canonical = "\n".join(["POST", quote(sample["path"], safe="/"), "", *lines, "", signed, body_hash])
    scope = f"{date}/{region}/{service}/{end}"
    to_sign = "\n".join(
        ["AWS4-HMAC-SHA256", headers["x-amz-date"], scope, hashlib.sha256(canonical.encode()).hexdigest()]
    )
    derived = ("AWS4" + secret).encode()
    for part in (date, region, service, end):
        derived = hmac.new(derived, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(derived, to_sign.encode(), hashlib.sha256).hexdigest()
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={key}/{scope}, SignedHeaders={signed}, Signature={signature}"
    )
    return headers


SIGNED = [sample for sample in captured() if any("AWS4" in value for _, value in sample["headers"])]


def moment_of(headers):
    return datetime.strptime(headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()


def check(headers, path, body, *, now, secret=SECRET, query=""):
    authorization = parse_authorization(headers["authorization"])
    body_hash = hashlib.sha256(body.encode()).hexdigest()
    verify(secret, authorization, "POST", path, query, headers, body_hash, now)


@pytest.mark.parametrize("sample", SIGNED, ids=lambda sample: sample["client"])
def test_every_captured_client_verifies_and_nothing_else_does(sample):
    headers = resign(sample, SECRET)
    path, body, now = sample["path"], sample["body"], moment_of(headers)
    check(headers, path, body, now=now + 299)
    wrong = [
        {"body": body + " "},
        {"path": path + "x"},
        {"path": path.replace("%3A", ":") if "%3A" in path else path.replace(":", "%3A")},
        {"secret": SECRET + "x"},
        {"query": "a=1"},
        {"now": now + 301},
        {"now": now - 301},
        {"headers": headers | {"x-amzn-bedrock-service-tier": "priority"}},
        {"headers": headers | {"x-amz-content-sha256": "UNSIGNED-PAYLOAD"}},
        {"headers": headers | {"x-amz-content-sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"}},
        {"headers": headers | {"x-amz-content-sha256": "0" * 64}},
    ]
    for name in parse_authorization(headers["authorization"]).signed:
        wrong.append({"headers": headers | {name: "changed"}})
        wrong.append({"headers": {key: value for key, value in headers.items() if key != name}})
    for change in wrong:
        with pytest.raises(Unauthenticated):
            check(**{"headers": headers, "path": path, "body": body, "now": now} | change)


def test_clients_of_both_protocols_are_in_the_corpus():
    assert any(":authority" in head(sample) for sample in SIGNED)
    assert any("host" in head(sample) for sample in SIGNED)
    assert len(SIGNED) >= 12


def test_authority_may_arrive_as_the_host_header():
    sample = next(sample for sample in SIGNED if ":authority" in head(sample))
    headers = resign(sample, SECRET)
    headers["host"] = headers.pop(":authority")
    check(headers, sample["path"], sample["body"], now=moment_of(headers))


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer x",
        "AWS4-HMAC-SHA256",
        "AWS4-ECDSA-P256-SHA256 Credential=A/20261123/us-east-1/bedrock/aws4_request, SignedHeaders=host, Signature=" + "0" * 64,
        "AWS4-HMAC-SHA256 Credential=A/20261123/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=" + "0" * 64,
        "AWS4-HMAC-SHA256 Credential=A/20261123/us-east-1/bedrock/aws4_request, SignedHeaders=host;host, Signature=" + "0" * 64,
        "AWS4-HMAC-SHA256 Credential=A/20261123/us-east-1/bedrock/aws4_request, SignedHeaders=;host, Signature=" + "0" * 64,
        "AWS4-HMAC-SHA256 Credential=A/20261123/us-east-1/bedrock/aws4_request, SignedHeaders=Host, Signature=" + "0" * 64,
        "AWS4-HMAC-SHA256 Credential=A/20261123/us-east-1/bedrock/aws4_request, SignedHeaders=host, Signature=" + "0" * 63,
        "AWS4-HMAC-SHA256 Credential=A/2026112/us-east-1/bedrock/aws4_request, SignedHeaders=host, Signature=" + "0" * 64,
        "AWS4-HMAC-SHA256 Credential=A/B/20261123/us-east-1/bedrock/aws4_request, SignedHeaders=host, Signature=" + "0" * 64,
        "AWS4-HMAC-SHA256 Credential=" + "A" * 10_000,
        "AWS4-HMAC-SHA256 Credential=A/20261123/us-east-1/bedrock/aws4_request, SignedHeaders="
        + ";".join(f"h{number}" for number in range(101)) + ", Signature=" + "0" * 64,
    ],
)  # fmt: skip
def test_what_is_no_signature_of_ours_is_refused(header):
    with pytest.raises(Unauthenticated):
        parse_authorization(header)


@pytest.mark.parametrize(
    ("signed", "headers"),
    [
        ("x-amz-date", {}),
        ("host", {}),
        ("host;x-amz-date", {"x-amz-date": ""}),
        ("host;x-amz-date", {"x-amz-date": "20261122T071421Z"}),
        ("host;x-amz-date", {"x-amz-date": "2026112 T071421Z"}),
        ("host;x-amz-date", {"x-amz-date": "20261123T071421Z", "x-amzn-bedrock-guardrailidentifier": "g"}),
    ],
)
def test_the_head_is_refused_before_a_body_is_read(signed, headers):
    authorization = parse_authorization(
        "AWS4-HMAC-SHA256 Credential=A/20261123/us-east-1/bedrock/aws4_request, "
        f"SignedHeaders={signed}, Signature={'0' * 64}"
    )
    with pytest.raises(Unauthenticated):
        precheck(authorization, {"host": "h", "x-amz-date": "20261123T071421Z"} | headers, NOW.timestamp())


@given(st.text(max_size=300))
def test_garbage_raises_nothing_but_unauthenticated(text):
    with pytest.raises(Unauthenticated):
        parse_authorization(text)
