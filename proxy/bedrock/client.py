"""The Bedrock runtime over HTTP/1.1: signs once, sends once, never retries.

What decides between VOID and CEILING is whether a request may have left. It certainly has not while no
byte of it was handed to a transport: its head could not be made, no connection came about. From
`Connection.begin` on it counts as sent, also on a kept connection that turns out to be closed.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Self

from proxy.bedrock.connection import Connection
from proxy.bedrock.credentials import AwsCredentials, CredentialSource, FixedCredentials
from proxy.bedrock.places import Endpoints, Place
from proxy.bedrock.pool import Pool
from proxy.bedrock.roles import TenantRoles
from proxy.bedrock.signing import signed_headers
from proxy.errors import ConfigurationError, UpstreamFailure
from proxy.ports import UpstreamRequest, UpstreamResponse

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_SECONDS = 5.0
#: whole answers are held in memory; the largest are images
ANSWER_BYTES_MAX = 64 << 20


class BedrockUpstream:
    """`proxy.ports.Upstream`. Use as an async context manager, or `start` and `aclose`.

    `credentials` are boto3's chain unless others are given. `endpoint_url` overrides AWS's address (a
    simulator, a private endpoint; `{region}` in it is replaced), and then a machine without AWS
    credentials of its own signs with dummies. `connections_max` bounds open connections of this worker,
    0 for no bound; a call that finds none free within `connect_timeout` fails unsent. `ssl_context` is
    trusted in place of the system's authorities. `roles` sign the requests that name a tenant.
    """

    def __init__(
        self,
        credentials: CredentialSource | None = None,
        *,
        endpoint_url: str | None = None,
        roles: TenantRoles | None = None,
        connections_max: int = 0,
        connect_timeout: float = CONNECT_TIMEOUT_SECONDS,
        ssl_context: ssl.SSLContext | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._credentials = credentials
        self._roles = roles
        self._chain: AwsCredentials | None = None
        self._endpoints = Endpoints(endpoint_url)
        self._connections_max = connections_max
        self._connect_timeout = connect_timeout
        self._ssl = ssl_context
        self._now = now
        self._pool: Pool | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def address(self, region: str) -> tuple[str, int]:
        """Host and port of Bedrock in a region."""
        place = self._endpoints.place(region)
        return place.name, place.port

    async def start(self) -> None:
        """Raises `ConfigurationError` when there are no credentials to sign with."""
        if self._credentials is None:
            self._chain = AwsCredentials()
            try:
                await self._chain.start()
                self._credentials = self._chain
            except ConfigurationError as error:
                if not self._endpoints.overridden:
                    raise
                log.warning("signing upstream requests with dummy credentials: %s", error)
                self._credentials = FixedCredentials("AKIDDUMMY", "dummy")
        self._pool = Pool(
            tls=self._ssl or _trusting_the_system(),
            connections_max=self._connections_max,
            connect_timeout=self._connect_timeout,
        )

    async def aclose(self) -> None:
        if self._chain is not None:
            await self._chain.close()
            self._chain = None
            self._credentials = None
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        """Raises `UpstreamFailure`; `sent` is False only when no byte of the request left."""
        pool, credentials = self._pool, self._credentials
        if pool is None or credentials is None:
            raise UpstreamFailure("The Bedrock client is not started.", sent=False)
        try:
            signer = credentials.current()
            if request.tenant and self._roles is not None:
                signer = await self._roles.of(request.tenant)
            place = self._endpoints.place(request.target.region)
            path = place.prefix + request.path
            headers = signed_headers(
                signer, request.target.region, request.method, place.host, path, request.headers, request.body,
                request.signed_at or self._now(),
            )  # fmt: skip
            head = _head(request, place.host, path, headers)
        except (ConfigurationError, ValueError) as error:
            raise UpstreamFailure(f"The request could not be made: {error}", sent=False) from error
        connection = pool.reuse(place) or await _opened(pool, place)
        return await _sent(pool, connection, head, request)


async def _opened(pool: Pool, place: Place) -> Connection:
    try:
        return await pool.open(place)
    except (OSError, ValueError) as error:
        raise UpstreamFailure(_told(error), sent=False) from error


async def _sent(
    pool: Pool, connection: Connection, head: bytes, request: UpstreamRequest
) -> UpstreamResponse:
    """The answer, once its head is here. Whatever goes wrong, the request may have left."""
    try:
        connection.begin(head, request.body, request.first_byte_timeout, request.read_timeout)
        await connection.head()
    except (OSError, RuntimeError, ValueError) as error:
        pool.give(connection)
        raise UpstreamFailure(_told(error), sent=True) from error
    except BaseException:
        pool.give(connection)
        raise
    return BedrockResponse(connection, pool)


class BedrockResponse:
    """`proxy.ports.UpstreamResponse`, and the iterator over its own body."""

    __slots__ = ("_connection", "_pool", "headers", "status")

    def __init__(self, connection: Connection, pool: Pool) -> None:
        self._connection: Connection | None = connection
        self._pool = pool
        self.status = connection.status
        self.headers: Mapping[str, str] = connection.headers

    async def read(self) -> bytes:
        connection = self._connection
        if connection is None:
            return b""
        if connection.complete:  # the usual: it came with its head
            return connection.take()
        parts: list[bytes] = []
        size = 0
        async for chunk in self:
            size += len(chunk)
            if size > ANSWER_BYTES_MAX:
                raise UpstreamFailure("The answer is larger than allowed.", sent=True)
            parts.append(chunk)
        return b"".join(parts)

    def chunks(self) -> AsyncIterator[bytes]:
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        connection = self._connection
        while connection is not None:
            chunk = connection.more()
            if chunk:
                return chunk
            if chunk is not None:
                break
            await connection.arrival()
        raise StopAsyncIteration

    def close(self) -> None:
        """Gives the connection back; it is kept when the body has come to its end, else dropped."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.give(connection)


def _head(request: UpstreamRequest, host: str, path: str, headers: Mapping[str, str]) -> bytes:
    """The request line and headers as bytes. Raises `ValueError` for what would be read as more of them."""
    lines = "\r\n".join([f"{name}: {value}" for name, value in headers.items()])
    head = f"{request.method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(request.body)}\r\n{lines}\r\n\r\n"
    breaks = len(headers) + 4
    if head.count("\r") != breaks or head.count("\n") != breaks or "\0" in head:
        raise ValueError("a line break in a header")
    return head.encode()


def _trusting_the_system() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(("http/1.1",))
    return context


def _told(error: BaseException) -> str:
    """What went wrong, without addresses of hosts."""
    return f"The connection to Bedrock failed: {type(error).__name__}"
