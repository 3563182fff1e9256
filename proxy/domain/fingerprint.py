"""The name under which a request's answer is kept: equal requests meet, different ones never do.

SHA-256 over a canonical form of everything that can change the answer:

- the body without the fields that only label a request (a deny-list, so that a field nobody has
  heard of yet counts). Objects are written with sorted keys and without whitespace; strings keep
  their code points (no normalisation: U+FB01 is not `fi`); numbers are compared as written wherever
  two of them could become one double (long digits, tiny exponents, `-0`); a default that is spelled
  out is another request than one that is left out; a key that comes twice never gets here;
- those headers that are forwarded (an allow-list, so that what SDKs add on every call does not count);
- the tenant, the operation, the model and its targets, the output limit in force, and the version of
  the policy.

Every part is written with its length, so that no two lists of parts can look the same.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

import orjson

from proxy.domain.ledger import Operation

_VERSION = b"tollhouse/fingerprint/1"

#: top-level fields that label a request and change nothing about its answer. Responses is missing on
#: purpose: its answer repeats `metadata` and `user`.
_LABELS: Mapping[Operation, tuple[str, ...]] = {
    Operation.INVOKE_MODEL: ("metadata", "user"),
    Operation.INVOKE_MODEL_WITH_RESPONSE_STREAM: ("metadata", "user"),
    Operation.CONVERSE: ("requestMetadata",),
    Operation.CONVERSE_STREAM: ("requestMetadata",),
    Operation.CHAT_COMPLETIONS: ("metadata", "user", "safety_identifier"),
    Operation.MESSAGES: ("metadata",),
}
_HEADERS = ("anthropic-beta", "anthropic-version")
_BEDROCK = "x-amzn-bedrock-"
_METADATA = "x-amzn-bedrock-request-metadata"
#: forms of "JSON, as always": clients send one, another or none, and get the same bytes
_ANY = frozenset({"", "*/*", "application/json"})

_DIGITS = bytes.maketrans(b"123456789.E", b"0000000000e")
_LONG = b"0" * 16
_TINY = b"e-000"
_MINUS_ZERO = re.compile(rb"-0\s*[,\]}]")


def canonical(body: Mapping[str, Any], raw: bytes, without: Iterable[str] = ()) -> bytes:
    """The canonical form of a parsed body whose received bytes are `raw`.

    Costs 10 µs for a body of 1 KB; three times that where numbers must be kept as they were written.
    """
    kept: Mapping[str, Any] = (
        json.loads(raw, parse_int=_written, parse_float=_written) if _fine(raw) else body
    )
    if any(name in kept for name in without):
        gone = frozenset(without)
        kept = {name: value for name, value in kept.items() if name not in gone}
    return orjson.dumps(kept, option=orjson.OPT_SORT_KEYS)


def _written(literal: str) -> orjson.Fragment:
    return orjson.Fragment(literal)


def _fine(raw: bytes) -> bool:
    """Whether the bytes may hold a number that a double cannot tell from another one. Looks into
    strings too: a text with long digits only takes the slower way.
    """
    flat = raw.translate(_DIGITS)
    return _LONG in flat or _TINY in flat or (b"-0" in raw and _MINUS_ZERO.search(raw) is not None)


def fingerprint(
    *,
    tenant: UUID,
    policy_version: str,
    operation: Operation,
    model: str,
    targets: Iterable[str],
    limit: int,
    body: Mapping[str, Any],
    raw: bytes,
    headers: Mapping[str, str],
) -> bytes:
    """32 bytes. `targets` are labels of the places the call may be sent to, `limit` the output limit
    in force in tokens, `headers` have lower-case names. `raw` are the bytes that `body` was parsed from.
    """
    digest = hashlib.sha256(_VERSION)
    parts = [tenant.bytes, policy_version.encode(), bytes((operation,)), model.encode(), b"%d" % limit]
    parts += [target.encode() for target in targets]
    for part in parts:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    for name, value in sorted(_telling(headers)):
        text = f"{name}={value}".encode("utf-8", "surrogatepass")
        digest.update(b"h%d:" % len(text))
        digest.update(text)
    form = canonical(body, raw, _LABELS.get(operation, ()))
    digest.update(b"b%d:" % len(form))
    digest.update(form)
    return digest.digest()


def retry_key(fingerprint: bytes, key: UUID, token: str) -> bytes:
    """32 bytes: under which the tries of one call of one key find each other."""
    return hashlib.sha256(b"tollhouse/retry/1" + key.bytes + fingerprint + token.encode()).digest()


def promise_key(tenant: UUID, key: UUID, token: str) -> bytes:
    """32 bytes: under which an idempotency key remembers the request it was given with."""
    return hashlib.sha256(b"tollhouse/promise/1" + tenant.bytes + key.bytes + token.encode()).digest()


def _telling(headers: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    """The headers that go upstream and may change the answer."""
    for name in ("accept", "content-type"):
        value = headers.get(name, "").strip().lower()
        if value not in _ANY:
            yield name, value
    for name, value in headers.items():
        if name in _HEADERS or (name.startswith(_BEDROCK) and name != _METADATA):
            yield name, value
