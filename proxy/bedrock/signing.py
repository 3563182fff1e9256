"""AWS Signature Version 4: signing what goes to Bedrock, verifying what clients signed.

Both build the same canonical request; its path is the raw path of the request line quoted once
more (all services but S3), so `%3A` signs as `%253A` and a literal `:` as `%3A`.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple, Protocol
from urllib.parse import quote

from proxy.errors import Unauthenticated
from proxy.keys import Mac

ALGORITHM = "AWS4-HMAC-SHA256"
SERVICE = "bedrock"
#: seconds that a client's clock may be off, either way
SKEW_SECONDS = 300
EMPTY_SHA256 = sha256(b"").hexdigest()

_AUTHORIZATION_MAX = 8192
_SIGNED_HEADERS_MAX = 100
#: changed or added on the way by anybody; botocore leaves them out too
_UNSIGNED = frozenset(
    {
        "baggage", "connection", "expect", "keep-alive", "proxy-authenticate", "proxy-authorization",
        "te", "traceparent", "tracestate", "trailer", "transfer-encoding", "upgrade", "user-agent",
        "x-amzn-trace-id",
    }
)  # fmt: skip


class SigningCredentials(Protocol):
    """AWS credentials; `token` only where they are temporary."""

    @property
    def access_key(self) -> str: ...
    @property
    def secret_key(self) -> str: ...
    @property
    def token(self) -> str | None: ...


@lru_cache(maxsize=1024)
def canonical_path(raw_path: str) -> str:
    """The raw path as it is signed. Cached: one a model and operation."""
    return quote(raw_path or "/", safe="/~")


@lru_cache(maxsize=64)
def signing_key(secret: str, date: str, region: str) -> Mac:
    """The key of one day and region. Cached: four HMACs saved a request, and most of the fifth.

    The cache holds derived keys of the last few secrets, in a process that holds the secrets too.
    """
    key = ("AWS4" + secret).encode()
    for part in (date, region, SERVICE, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return Mac(key)


def canonical_query(query: str) -> str:
    """Pairs of a raw query string in the order in which they are signed."""
    if not query:
        return ""
    pairs = (pair.partition("=") for pair in query.split("&"))
    return "&".join(f"{key}={value}" for key, _, value in sorted(pairs))


def _signature(key: Mac, moment: str, scope: str, canonical: str) -> str:
    to_sign = f"{ALGORITHM}\n{moment}\n{scope}\n{sha256(canonical.encode()).hexdigest()}"
    return key.digest(to_sign.encode()).hex()


def signed_headers(
    credentials: SigningCredentials,
    region: str,
    method: str,
    host: str,
    raw_path: str,
    headers: Mapping[str, str],
    body: bytes,
    now: float,
    query: str = "",
) -> dict[str, str]:
    """`headers` with `X-Amz-Date`, `X-Amz-Security-Token` and `Authorization`, ready to send.

    Equal to botocore's byte for byte. Every header given is signed, except those that intermediaries
    change. `now` is unix seconds; `host` is what the `Host` header will say.
    """
    moment, date = _moment(int(now))
    sent = {**headers, "X-Amz-Date": moment}
    if credentials.token:
        sent["X-Amz-Security-Token"] = credentials.token
    order, listed = _order(tuple(sent))
    head = "\n".join([f"{low}:{' '.join(sent[name].split()) if name else host}" for low, name in order])
    canonical = (
        f"{method}\n{canonical_path(raw_path)}\n{canonical_query(query)}\n{head}\n\n{listed}\n"
        f"{sha256(body).hexdigest() if body else EMPTY_SHA256}"
    )
    scope = f"{date}/{region}/{SERVICE}/aws4_request"
    signature = _signature(signing_key(credentials.secret_key, date, region), moment, scope, canonical)
    sent["Authorization"] = (
        f"{ALGORITHM} Credential={credentials.access_key}/{scope}, "
        f"SignedHeaders={listed}, Signature={signature}"
    )
    return sent


@lru_cache(maxsize=256)
def _order(names: tuple[str, ...]) -> tuple[tuple[tuple[str, str], ...], str]:
    """The headers that are signed, in order: in lower case and as they are sent ("" for the host); and
    their list. Cached: calls of one kind carry the same headers.
    """
    known = {name.lower(): name for name in names} | {"host": ""}
    order = tuple(sorted((low, name) for low, name in known.items() if low not in _UNSIGNED))
    return order, ";".join(low for low, _ in order)


@lru_cache(maxsize=4)
def _moment(now: int) -> tuple[str, str]:
    moment = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    return moment, moment[:8]


class Authorization(NamedTuple):
    """A parsed `Authorization` header. Nothing in it is proven yet."""

    access_key_id: str
    date: str
    region: str
    signed: tuple[str, ...]
    signature: str

    @property
    def scope(self) -> str:
        return f"{self.date}/{self.region}/{SERVICE}/aws4_request"


_AUTHORIZATION = re.compile(
    ALGORITHM + r"[ ]+Credential=([A-Za-z0-9_-]{1,128})/([0-9]{8})/([a-z0-9-]{1,32})/([a-z0-9-]{1,32})"
    r"/aws4_request,[ ]*SignedHeaders=([a-z0-9:;._-]{1,4096}),[ ]*Signature=([0-9a-f]{64})"
)


def parse_authorization(header: str) -> Authorization:
    """The parts of a SigV4 `Authorization` header. Raises `Unauthenticated`."""
    found = _AUTHORIZATION.fullmatch(header) if len(header) <= _AUTHORIZATION_MAX else None
    if found is None:
        raise Unauthenticated("The Authorization header is not a valid AWS signature.")
    access_key_id, date, region, service, listed, signature = found.groups()
    if service != SERVICE:
        raise Unauthenticated(f"The signature is for service {service!r}; it must be for {SERVICE!r}.")
    signed = tuple(listed.split(";"))
    if len(signed) > _SIGNED_HEADERS_MAX or len(set(signed)) != len(signed) or "" in signed:
        raise Unauthenticated("SignedHeaders of the Authorization header is not a valid list.")
    return Authorization(access_key_id, date, region, signed, signature)


def precheck(authorization: Authorization, headers: Mapping[str, str], now: float) -> None:
    """Everything that can be refused before the body is read: dates and what must be signed.

    `headers` have names in lower case, and several values of one name joined by commas; on HTTP/2
    `host` may hold the `:authority`. `now` is unix seconds. Raises `Unauthenticated`.
    """
    signed = authorization.signed
    if "host" not in signed and ":authority" not in signed:
        raise Unauthenticated("The Host header must be signed.")
    for name in headers:
        must = name == "x-amz-date" or name.startswith("x-amzn-bedrock-")
        if must and name not in signed:
            raise Unauthenticated(f"Header {name[:80]} must be signed.")
    _check_dates(authorization.date, headers.get("x-amz-date", ""), now)
    said = headers.get("x-amz-content-sha256")
    if said is not None and (len(said) != 64 or not _HEX.issuperset(said)):
        raise Unauthenticated("Unsigned and chunk-signed payloads are not accepted: sign the body's SHA-256.")


_HEX = frozenset("0123456789abcdef")


_MOMENT = re.compile(r"([0-9]{4})([0-9]{2})([0-9]{2})T([0-9]{2})([0-9]{2})([0-9]{2})Z")


def _check_dates(date: str, moment: str, now: float) -> None:
    found = _MOMENT.fullmatch(moment)
    try:
        # strptime takes four times as long
        signed_at = datetime(*map(int, found.groups()), tzinfo=UTC) if found else None  # type: ignore[misc,arg-type]
    except ValueError:
        signed_at = None
    if signed_at is None:
        raise Unauthenticated("Header X-Amz-Date is missing or not a time like 20261123T071421Z.")
    if moment[:8] != date:
        raise Unauthenticated("The date of the credential scope is not that of X-Amz-Date.")
    if abs(signed_at.timestamp() - now) > SKEW_SECONDS:
        raise Unauthenticated(
            "Signature expired: the client's clock is more than five minutes off.", reason="clock_skew"
        )


def verify(
    secret: str,
    authorization: Authorization,
    method: str,
    raw_path: str,
    query: str,
    headers: Mapping[str, str],
    body_sha256: str,
    now: float,
) -> None:
    """Whether the request was signed with `secret`. Raises `Unauthenticated` when it was not.

    `body_sha256` is of the body received, in hex; a client's own word for it is only compared.
    Includes `precheck`.
    """
    precheck(authorization, headers, now)
    if headers.get("x-amz-content-sha256", body_sha256) != body_sha256:
        raise Unauthenticated("The body received is not the body that was signed.")
    head = "\n".join(_signed_lines(authorization.signed, headers))
    canonical = (
        f"{method}\n{canonical_path(raw_path)}\n{canonical_query(query)}\n"
        f"{head}\n\n{';'.join(authorization.signed)}\n{body_sha256}"
    )
    key = signing_key(secret, authorization.date, authorization.region)
    expected = _signature(key, headers["x-amz-date"], authorization.scope, canonical)
    if not hmac.compare_digest(expected, authorization.signature):
        raise Unauthenticated(
            "The request signature we calculated does not match the signature you provided.",
            reason="signature_mismatch",
        )


def _signed_lines(signed: Iterable[str], headers: Mapping[str, str]) -> Iterable[str]:
    for name in signed:
        value = headers.get(name)
        if value is None and name in {":authority", "host"}:
            value = headers.get("host" if name == ":authority" else ":authority")
        if value is None:
            raise Unauthenticated(f"Header {name[:80]} was signed but is not there.")
        yield f"{name}:{' '.join(value.split())}"


@dataclass(frozen=True, slots=True)
class StaticCredentials:
    """Credentials that do not change; for tests and for the simulator, which verifies nothing."""

    access_key: str
    secret_key: str
    token: str | None = None
