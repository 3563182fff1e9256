"""The Bedrock runtime over HTTP: signs once, sends once, never retries."""

from __future__ import annotations

import logging
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Self
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from proxy.bedrock.credentials import AwsCredentials, CredentialSource, FixedCredentials
from proxy.bedrock.roles import TenantRoles
from proxy.bedrock.signing import signed_headers
from proxy.errors import ConfigurationError, UpstreamFailure
from proxy.ports import UpstreamRequest, UpstreamResponse

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_SECONDS = 5.0
#: NATs and load balancers forget silent connections after 350 s
KEEPALIVE_IDLE_SECONDS = 45
KEEPALIVE_INTERVAL_SECONDS = 15
KEEPALIVE_PROBES = 4
#: idle connections are closed before the other side does, which would cost a sent request
IDLE_CONNECTION_SECONDS = 20.0
#: whole answers are held in memory; the largest are images
ANSWER_BYTES_MAX = 64 << 20

_REGION = re.compile(r"[a-z]{2,4}(-[a-z]+)+-[0-9]{1,2}")
#: DNS suffixes of the partitions, by how their regions begin (botocore: `partitions.json`)
_SUFFIXES = {
    "cn-": "amazonaws.com.cn",
    "eusc-": "amazonaws.eu",
    "us-iso-": "c2s.ic.gov",
    "us-isob-": "sc2s.sgov.gov",
    "us-isof-": "csp.hci.ic.gov",
    "eu-isoe-": "cloud.adc-e.uk",
}
#: headers that aiohttp would add by itself
_AUTOMATIC = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")
#: raised before a connection exists, TLS handshake included: no byte of the request has left
_NEVER_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL)


class AiohttpUpstream:
    """`proxy.ports.Upstream`. Use as an async context manager, or `start` and `aclose`.

    `credentials` are boto3's chain unless others are given. `endpoint_url` overrides AWS's address (a
    simulator, a private endpoint; `{region}` in it is replaced), and then a machine without AWS
    credentials of its own signs with dummies. `connections_max` bounds open connections of this worker, 0 for no bound; a call that finds none
    free within `connect_timeout` fails unsent. `roles` sign the requests that name a tenant.
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
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

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
        connector = aiohttp.TCPConnector(
            limit=self._connections_max,
            limit_per_host=0,
            keepalive_timeout=IDLE_CONNECTION_SECONDS,
            ttl_dns_cache=10,
            ssl=self._ssl or True,
            socket_factory=_socket,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_AUTOMATIC,
        )

    async def aclose(self) -> None:
        if self._chain is not None:
            await self._chain.close()
            self._chain = None
            self._credentials = None
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        """Raises `UpstreamFailure`; `sent` is False only when no byte of the request left."""
        if self._session is None or self._credentials is None:
            raise UpstreamFailure("The Bedrock client is not started.", sent=False)
        region = request.target.region
        try:
            credentials = self._credentials.current()
            if request.tenant and self._roles is not None:
                credentials = await self._roles.of(request.tenant)
            place = self._endpoints.place(region)
            path = place.prefix + request.path
            headers = signed_headers(
                credentials,
                region,
                request.method,
                place.host,
                path,
                request.headers,
                request.body,
                request.signed_at or self._now(),
            )
            url = URL(place.origin + path, encoded=True)
        except (ConfigurationError, ValueError) as error:
            raise UpstreamFailure(f"The request could not be made: {error}", sent=False) from error
        timeout = aiohttp.ClientTimeout(
            total=None,
            connect=self._connect_timeout,
            sock_connect=self._connect_timeout,
            sock_read=request.first_byte_timeout,
            ceil_threshold=3600,
        )
        try:
            response = await self._session.request(
                request.method,
                url,
                data=request.body or None,
                headers=headers,
                allow_redirects=False,
                timeout=timeout,
            )
        except _NEVER_SENT as error:
            raise UpstreamFailure(_told(error), sent=False) from error
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RuntimeError) as error:
            raise UpstreamFailure(_told(error), sent=True) from error
        return AiohttpResponse(response, request.read_timeout)


class AiohttpResponse:
    """`proxy.ports.UpstreamResponse`."""

    def __init__(self, response: aiohttp.ClientResponse, read_timeout: float) -> None:
        self._response = response
        self.status = response.status
        self.headers: Mapping[str, str] = _joined(response)
        connection = response.connection
        if connection is not None and connection.protocol is not None:
            # the first byte is here: from now on the gap between two reads counts
            connection.protocol.read_timeout = read_timeout
            connection.protocol.start_timeout()

    async def read(self) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for chunk in self.chunks():
            size += len(chunk)
            if size > ANSWER_BYTES_MAX:
                raise UpstreamFailure("The answer is larger than allowed.", sent=True)
            parts.append(chunk)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def chunks(self) -> AsyncIterator[bytes]:
        content = self._response.content
        try:
            while chunk := await content.readany():
                yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UpstreamFailure(_told(error), sent=True) from error

    def close(self) -> None:
        """Gives the connection back when the body was read to its end, else drops it."""
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()


def _joined(response: aiohttp.ClientResponse) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, value in response.headers.items():
        name = raw_name.lower()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _told(error: BaseException) -> str:
    """What went wrong, without addresses of hosts."""
    return f"The connection to Bedrock failed: {type(error).__name__}"


def _socket(address: tuple[object, ...]) -> socket.socket:
    """A socket whose silent connection is probed, so that a cut one is noticed."""
    family, kind, protocol = address[0], address[1], address[2]
    sock = socket.socket(family, kind, protocol)  # type: ignore[arg-type]
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):  # Linux
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    return sock


class Place:
    """Where requests of one region go: what is signed as the host, and what the URL begins with."""

    __slots__ = ("host", "origin", "prefix")

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.query:
            raise ConfigurationError(f"{endpoint!r} is not an http or https address")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        usual = {"http": 80, "https": 443}[parts.scheme]
        self.host = host if parts.port in {None, usual} else f"{host}:{parts.port}"
        self.origin = f"{parts.scheme}://{self.host}"
        self.prefix = parts.path.rstrip("/")


class Endpoints:
    """The place of each region. Raises `ConfigurationError` for what is no region.

    `override` is one address for every region (`{region}` in it is replaced), or `region=address` pairs
    separated by commas; an address without a region among them is for all other regions.
    """

    def __init__(self, override: str | None) -> None:
        self._override: str | None = None
        self._regions: dict[str, str] = {}
        self._places: dict[str, Place] = {}
        for one in (override or "").split(","):
            region, equals, address = one.strip().partition("=")
            if equals and _REGION.fullmatch(region):
                self._regions[region] = address.strip()
            elif one.strip():
                self._override = one.strip()
        for known in (self._override, *self._regions.values()):
            if known is not None:
                Place(known.replace("{region}", "us-east-1"))

    @property
    def overridden(self) -> bool:
        return self._override is not None or bool(self._regions)

    def place(self, region: str) -> Place:
        place = self._places.get(region)
        if place is None:
            if not _REGION.fullmatch(region):
                raise ConfigurationError(f"{region[:40]!r} is not an AWS region")
            place = self._places[region] = Place(self._address(region))
        return place

    def _address(self, region: str) -> str:
        override = self._regions.get(region, self._override)
        if override is not None:
            return override.replace("{region}", region)
        suffix = next(
            (suffix for start, suffix in _SUFFIXES.items() if region.startswith(start)), "amazonaws.com"
        )
        return f"https://bedrock-runtime.{region}.{suffix}"
