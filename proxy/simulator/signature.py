"""Checks of a request's credentials, as far as AWS would see them.

Service name ``bedrock``; the canonical path is the raw path quoted once more; ``:authority`` may stand
for ``host`` (the JavaScript SDK signs it over HTTP/2).
"""

import hmac
import re
from collections.abc import Mapping
from hashlib import sha256
from urllib.parse import quote

from proxy.simulator.errors import Refusal

METADATA_HEADER = "x-amzn-bedrock-request-metadata"
_FIELD = re.compile(r"(Credential|SignedHeaders|Signature)=([^,\s]+)")
_SCOPE = re.compile(r"([A-Za-z0-9._~-]{1,128})/(\d{8})/([a-z0-9-]+)/([a-z0-9-]+)/aws4_request$")


def check(
    method: str, path: str, query: str, headers: Mapping[str, str], body: bytes, secret: str | None
) -> str | None:
    """Region of a SigV4 scope, or None for a bearer token or an API key.

    Raises Refusal when there are no credentials, when they are malformed, when request metadata is not
    among the signed headers, or when ``secret`` is given and the signature is wrong.
    """
    authorization = headers.get("authorization", "")
    if not authorization.startswith("AWS4-HMAC-SHA256"):
        _check_bearer(authorization, headers)
        return None
    fields = dict(_FIELD.findall(authorization))
    scope = _SCOPE.match(fields.get("Credential", ""))
    if len(fields) != 3 or scope is None or not re.fullmatch(r"[0-9a-f]{64}", fields["Signature"]):
        raise Refusal("IncompleteSignatureException")
    _, day, region, service = scope.groups()
    signed = fields["SignedHeaders"].split(";")
    stamp = headers.get("x-amz-date", "")
    if service != "bedrock":
        raise Refusal(
            "InvalidSignatureException", "Credential should be scoped to correct service: 'bedrock'."
        )
    if not re.fullmatch(r"\d{8}T\d{6}Z", stamp) or stamp[:8] != day or "x-amz-date" not in signed:
        raise Refusal("IncompleteSignatureException", "Authorization header requires a signed 'X-Amz-Date'.")
    if not {"host", ":authority"} & set(signed) or signed != sorted(signed):
        raise Refusal(
            "IncompleteSignatureException", "'Host' must be a 'SignedHeader' in the AWS Authorization."
        )
    if METADATA_HEADER in headers and METADATA_HEADER not in signed:
        raise Refusal("InvalidSignatureException", f"{METADATA_HEADER} must be a signed header.")
    if secret is not None:
        canonical = _canonical(method, path, query, headers, signed, body)
        expected = _sign(secret, day, region, stamp, canonical)
        if not hmac.compare_digest(expected, fields["Signature"]):
            raise Refusal("InvalidSignatureException")
    return region


def _check_bearer(authorization: str, headers: Mapping[str, str]) -> None:
    if authorization:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            return
        raise Refusal("IncompleteSignatureException")
    if not headers.get("x-api-key"):
        raise Refusal("MissingAuthenticationTokenException")


def _canonical(
    method: str, path: str, query: str, headers: Mapping[str, str], signed: list[str], body: bytes
) -> str:
    named = {**headers, ":authority": headers.get(":authority", headers.get("host", ""))}
    lines = "".join(f"{name}:{' '.join(named.get(name, '').split())}\n" for name in signed)
    pairs = sorted(pair if "=" in pair else pair + "=" for pair in query.split("&") if pair)
    return "\n".join(
        (
            method,
            quote(path, safe="/-_.~"),
            "&".join(pairs),
            lines,
            ";".join(signed),
            sha256(body).hexdigest(),
        )
    )


def _sign(secret: str, day: str, region: str, stamp: str, canonical: str) -> str:
    key = f"AWS4{secret}".encode()
    for part in (day, region, "bedrock", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    scope = f"{day}/{region}/bedrock/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{sha256(canonical.encode()).hexdigest()}"
    return hmac.digest(key, text.encode(), "sha256").hex()
