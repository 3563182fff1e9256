"""An alert on its way to a webhook: what is sent, how it is signed, and where it may go."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import ipaddress
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit
from uuid import UUID

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
URL_MAX = 2000


class UnsafeUrlError(ValueError):
    """Where a webhook must not be sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """One try. `sealed` is the webhook's secret; `off`: the webhook was deleted or disabled meanwhile."""

    id: UUID
    tries: int
    webhook: UUID
    url: str
    format: Literal["json", "slack"]
    sealed: bytes
    off: bool
    alert: UUID
    kind: str
    at: dt.datetime
    subject: str
    message: str
    tenant: str | None
    data: dict[str, Any]


def webhook_context(webhook: UUID) -> str:
    """What a webhook's sealed secret is bound to."""
    return f"webhook|{webhook}"


def body_of(parcel: Parcel) -> bytes:
    """What is sent, in the shape the webhook asked for."""
    if parcel.format == "slack":
        return json.dumps({"text": parcel.message}, ensure_ascii=False).encode()
    told = {
        "id": str(parcel.alert), "kind": parcel.kind, "tenant": parcel.tenant, "subject": parcel.subject,
        "message": parcel.message, "at": parcel.at.astimezone(dt.UTC).isoformat(), "data": parcel.data,
    }  # fmt: skip
    return json.dumps(told, ensure_ascii=False).encode()


def signature(secret: bytes, at: int, body: bytes) -> str:
    """`t=<unix seconds>,v1=<hex>`: HMAC-SHA256 over the time, a point and the body. A receiver compares it
    and refuses times that are long past.
    """
    digest = hmac.new(secret, str(at).encode() + b"." + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


def allowed_networks(setting: str) -> tuple[Network, ...]:
    """`10.0.0.0/8, 192.168.7.1`. Raises `ValueError`."""
    return tuple(ipaddress.ip_network(word.strip()) for word in setting.split(",") if word.strip())


def check_url(url: str, allowed: Iterable[Network]) -> tuple[str, int]:
    """Host and port of a webhook. Raises `UnsafeUrlError` for what can be seen to be wrong before the name
    is looked up; the addresses are judged by `check_addresses`.
    """
    if len(url) > URL_MAX or any(ord(c) <= 32 or ord(c) >= 127 for c in url):
        raise UnsafeUrlError("a URL has at most 2,000 visible ASCII characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UnsafeUrlError("this is no URL") from None
    if parts.scheme not in {"https", "http"} or not parts.hostname:
        raise UnsafeUrlError("the URL must begin with https://")
    if parts.username is not None or parts.password is not None or "\\" in url:
        raise UnsafeUrlError("a URL with a user or a backslash is not called")
    if parts.fragment:
        raise UnsafeUrlError("a URL with a fragment is not called")
    literal = _literal(parts.hostname)
    if literal is not None:
        check_addresses([literal], parts.scheme, allowed)
    elif parts.scheme == "http" and not tuple(allowed):
        raise UnsafeUrlError("the URL must begin with https://")
    return parts.hostname, port or (443 if parts.scheme == "https" else 80)


def check_addresses(addresses: Iterable[Address], scheme: str, allowed: Iterable[Network]) -> None:
    """Every address of the host must be public, or in a network that is allowed by name; only those are
    called without TLS. Raises `UnsafeUrlError`.
    """
    networks = tuple(allowed)
    found = False
    for address in addresses:
        found = True
        inner = _inner(address)
        if any(inner in network for network in networks if network.version == inner.version):
            continue
        if not _public(inner):
            raise UnsafeUrlError(f"{address} is not a public address")
        if scheme != "https":
            raise UnsafeUrlError("the URL must begin with https://")
    if not found:
        raise UnsafeUrlError("the host has no address")


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host.split("%", 1)[0])
    except ValueError:
        return None


def _inner(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, where it stands for one."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.sixtofour is not None:
            return address.sixtofour
        if address.teredo is not None:
            return address.teredo[1]
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def _public(address: Address) -> bool:
    return address.is_global and not (
        address.is_multicast or address.is_reserved or address.is_unspecified or address.is_link_local
    )
