"""Sends what is in the outbox to its webhooks: signed, retried with growing pauses, and to nowhere that
the inside of a network could be reached through.

A host is looked up here, all its addresses are judged, and the connection is made to one of those very
addresses: a name that resolves to another one meanwhile changes nothing. Redirects are not followed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import time
from collections.abc import Callable, Sequence
from typing import Protocol
from urllib.parse import urlsplit
from uuid import UUID

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from proxy import telemetry
from proxy.domain.alerting import back_off_seconds
from proxy.domain.delivery import (
    Network,
    Parcel,
    UnsafeUrlError,
    body_of,
    check_addresses,
    check_url,
    signature,
    webhook_context,
)
from proxy.keys import Keyring, SealError

log = logging.getLogger("tollhouse.deliveries")

_AT_ONCE = 20
_SECONDS = 10.0


class Outbox(Protocol):
    """Everything raises `BankAway`."""

    async def claim(self, most: int) -> list[Parcel]:
        """Deliveries that are due, each for this caller alone for a while."""
        ...

    async def delivered(self, parcel: UUID) -> None: ...

    async def failed(self, parcel: UUID, error: str, retry_seconds: int | None) -> None:
        """`retry_seconds` None: it is not tried again."""
        ...


class DeliveryError(Exception):
    """One try failed; the message is for the administrator."""


class Courier:
    """Makes deliveries. `allowed` networks may be called though they are not public."""

    def __init__(
        self,
        outbox: Outbox,
        keyring: Keyring,
        allowed: Sequence[Network],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._outbox = outbox
        self._keyring = keyring
        self._allowed = tuple(allowed)
        self._clock = clock

    async def round(self) -> int:
        """Deliver what is due; returns how many tries were made."""
        parcels = await self._outbox.claim(_AT_ONCE)
        await asyncio.gather(*(self._deliver(parcel) for parcel in parcels))
        return len(parcels)

    async def _deliver(self, parcel: Parcel) -> None:
        if parcel.off:
            await self._outbox.failed(parcel.id, "the webhook was deleted or disabled", None)
            return
        try:
            await self._send(parcel)
        except DeliveryError as error:
            wait = back_off_seconds(parcel.tries)
            telemetry.DELIVERIES.labels("failed" if wait is None else "retried").inc()
            log.warning("alert %s to webhook %s: %s", parcel.alert, parcel.webhook, error)
            await self._outbox.failed(parcel.id, str(error), wait)
        else:
            telemetry.DELIVERIES.labels("delivered").inc()
            await self._outbox.delivered(parcel.id)

    async def _send(self, parcel: Parcel) -> None:
        """Raises `DeliveryError`."""
        try:
            secret = self._keyring.unseal_answer(parcel.sealed, webhook_context(parcel.webhook))
            resolver = await self._resolved(parcel.url)
        except SealError:
            raise DeliveryError("its secret was sealed under another master key") from None
        except (UnsafeUrlError, OSError, TimeoutError) as error:
            raise DeliveryError(f"not sent: {error}") from None
        body = body_of(parcel)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "tollhouse",
            "X-Tollhouse-Event": parcel.kind,
            "X-Tollhouse-Delivery": str(parcel.id),
            "X-Tollhouse-Signature": signature(secret, int(self._clock()), body),
        }
        timeout = aiohttp.ClientTimeout(total=_SECONDS)
        connector = aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False, force_close=True)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session,
                session.post(parcel.url, data=body, headers=headers, allow_redirects=False) as answer,
            ):
                if not 200 <= answer.status < 300:
                    raise DeliveryError(f"it answered {answer.status}")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise DeliveryError(f"not delivered: {type(error).__name__}") from None

    async def _resolved(self, url: str) -> _Vetted:
        """The addresses of the URL's host, all judged. Raises `UnsafeUrlError`, `OSError`."""
        host, port = check_url(url, self._allowed)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_SECONDS):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found]
        judged = [ipaddress.ip_address(one.split("%", 1)[0]) for one in addresses]
        check_addresses(judged, urlsplit(url).scheme, self._allowed)
        return _Vetted(addresses)


class _Vetted(AbstractResolver):
    """Answers with addresses that were judged, whatever it is asked."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = tuple(dict.fromkeys(addresses))

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002 (every address was judged)
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host, host=address, port=port, flags=socket.AI_NUMERICHOST, proto=0,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
            )
            for address in self._addresses
        ]  # fmt: skip

    async def close(self) -> None:
        pass
