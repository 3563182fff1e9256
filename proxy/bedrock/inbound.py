"""Signatures of clients: what a head claims, and whether a body proves it (see `signing`)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from proxy.bedrock.signing import Authorization, parse_authorization, precheck, verify
from proxy.errors import Unauthenticated

RawHeaders = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class SignatureClaim:
    """A well-formed, timely signature by somebody it merely names."""

    authorization: Authorization
    method: str
    raw_path: str
    query: str
    headers: dict[str, str]
    now: float

    @property
    def access_key_id(self) -> str:
        return self.authorization.access_key_id

    def proven(self, secret: str, body: bytes) -> bool:
        """True when this is the signature of the request with this body under `secret`."""
        try:
            verify(
                secret,
                self.authorization,
                self.method,
                self.raw_path,
                self.query,
                self.headers,
                hashlib.sha256(body).hexdigest(),
                self.now,
            )
        except Unauthenticated:
            return False
        return True


class InboundSignatures:
    """`clock` gives unix seconds; a signature is judged by the time its head arrived."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def claim(
        self, method: str, raw_path: bytes, query: bytes, raw_headers: RawHeaders, authorization: bytes
    ) -> SignatureClaim:
        """Raises `Unauthenticated` for what can be refused without the secret."""
        headers: dict[str, str] = {}
        for name, value in raw_headers:
            key, text = name.decode("latin-1").lower(), value.decode("latin-1")
            headers[key] = f"{headers[key]},{text}" if key in headers else text
        parsed = parse_authorization(authorization.decode("latin-1"))
        now = self._clock()
        precheck(parsed, headers, now)
        return SignatureClaim(
            parsed, method, raw_path.decode("latin-1"), query.decode("latin-1"), headers, now
        )
