"""Who sends this request: proven from its head as far as that goes, then from its body.

A key is accepted as `Authorization: Bearer`, as `x-api-key`, or as an AWS signature. `present` looks
at nothing but the head, so that a large body under a bad key is never read; a signature is proven by
`verify`, over the body that was received.

Every wrong credential gets the same answer: unknown, expired, mistyped, badly signed. Only the holder
of a good one learns that its key is disabled or revoked, or its tenant suspended.
"""

from __future__ import annotations

from typing import Protocol

from proxy.directory import REFUSALS
from proxy.domain.tenant import Caller
from proxy.errors import Forbidden, Refusal, Unauthenticated
from proxy.keys import is_access_key_id
from proxy.ports import Directory

RawHeaders = list[tuple[bytes, bytes]]

#: larger ones cannot be ours; nothing is computed over them
CREDENTIAL_BYTES_MAX = 4096
MISSING = (
    "No key was presented: send it as `Authorization: Bearer <key>`, as `x-api-key`, "
    "or sign the request with the key's AWS access key pair."
)
WRONG = "The security token included in the request is invalid."
TWO = "The request carries two different credentials; send one."

_SIGV4 = b"AWS4-HMAC-SHA256"


class Claim(Protocol):
    """A well-formed signature with a date that is near enough, by somebody it merely names."""

    @property
    def access_key_id(self) -> str: ...

    def proven(self, secret: str, body: bytes) -> bool:
        """True when it is the signature of the request with this body under `secret`."""
        ...


class Signatures(Protocol):
    def claim(
        self, method: str, raw_path: bytes, query: bytes, raw_headers: RawHeaders, authorization: bytes
    ) -> Claim:
        """Raises `Unauthenticated` for what can be refused without knowing the secret: its form, its
        date, its scope, a header that had to be signed and is not.
        """
        ...


class Proven:
    """A caller whose token was shown in full."""

    __slots__ = ("caller",)

    def __init__(self, caller: Caller) -> None:
        self.caller = caller

    def verify(self, body: bytes) -> None:
        """Nothing is left to prove."""


class Claimed:
    """A caller named by a signature, which `verify` proves or refuses."""

    __slots__ = ("_claim", "_secret", "caller")

    def __init__(self, caller: Caller, claim: Claim, secret: str) -> None:
        self.caller = caller
        self._claim = claim
        self._secret = secret

    def verify(self, body: bytes) -> None:
        """Raises `Unauthenticated`, or the true reason why a proven key may not be used."""
        if not self._claim.proven(self._secret, body):
            raise Unauthenticated(WRONG)
        if self.caller.refusal is not None:
            raise refusal_of(self.caller)


class KeyAuthenticator:
    """Proves issued keys against the directory. No I/O, no state of its own."""

    def __init__(self, directory: Directory, signatures: Signatures) -> None:
        self._directory = directory
        self._signatures = signatures

    def present(
        self, method: str, raw_path: bytes, query: bytes, raw_headers: RawHeaders
    ) -> Proven | Claimed:
        """The caller behind the head of a request.

        Header names may be in any case. Raises `Unauthenticated`, or `Forbidden` for the holder of a
        good key whose tenant is suspended.
        """
        authorization, token = _credentials(raw_headers)
        if authorization is None:
            caller = self._directory.by_token(token)
            if caller is None:
                raise Unauthenticated(WRONG)
            if caller.refusal is not None:
                raise refusal_of(caller)
            return Proven(caller)
        claim = self._signatures.claim(method, raw_path, query, raw_headers, authorization)
        known = (
            self._directory.by_access_key_id(claim.access_key_id)
            if is_access_key_id(claim.access_key_id)
            else None
        )
        if known is None:
            raise Unauthenticated(WRONG)
        return Claimed(known[0], claim, known[1])


def refusal_of(caller: Caller) -> Refusal:
    """The true reason for the holder of a good key that may not be used."""
    reason = caller.refusal or "key_refused"
    message = REFUSALS.get(reason, "this key may not be used")
    kind = Unauthenticated if reason.startswith("key_") else Forbidden
    return kind(f"{message[0].upper()}{message[1:]}.", reason=reason)


def _credentials(raw_headers: RawHeaders) -> tuple[bytes | None, str]:
    """The AWS authorization, or None and the bearer token. Raises `Unauthenticated`."""
    signature: bytes | None = None
    token: bytes | None = None
    for name, value in raw_headers:
        size = len(name)
        if size == 13 and name.lower() == b"authorization":
            if value.startswith(_SIGV4):
                if signature is not None:
                    raise Unauthenticated(TWO)
                signature = value
                continue
            scheme, _, found = value.partition(b" ")
            if scheme.lower() != b"bearer":
                raise Unauthenticated(WRONG)
        elif size == 9 and value and name.lower() == b"x-api-key":
            found = value
        else:
            continue
        if token is not None and token != found:
            raise Unauthenticated(TWO)
        token = found
    if signature is not None:
        if token is not None:
            raise Unauthenticated(TWO)
        return signature, ""
    if token is None:
        raise Unauthenticated(MISSING)
    if len(token) > CREDENTIAL_BYTES_MAX or not token.isascii():
        raise Unauthenticated(WRONG)
    return None, token.decode("ascii")
