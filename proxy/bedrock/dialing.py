"""From a host's name to a connected socket: resolved names are kept briefly, addresses tried in turn."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from typing import Any

#: NATs and load balancers forget silent connections after 350 s
KEEPALIVE_IDLE_SECONDS = 45
KEEPALIVE_INTERVAL_SECONDS = 15
KEEPALIVE_PROBES = 4
RESOLVED_SECONDS = 10.0
#: a host's next address is tried beside one that has not answered after so long (RFC 8305)
NEXT_ADDRESS_SECONDS = 0.25

#: family, protocol and socket address
Address = tuple[int, int, Any]


class Resolver:
    """Names resolved in the last seconds; each asking begins with another of a name's addresses."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], tuple[float, list[Address]]] = {}

    async def addresses(self, host: str, port: int) -> list[Address]:
        """Raises `OSError` for a name that cannot be resolved."""
        loop = asyncio.get_running_loop()
        until, addresses = self._known.get((host, port), (0.0, []))
        if until <= loop.time():
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses = [(family, protocol, address) for family, _, protocol, _, address in found]
            if not addresses:
                raise OSError("the host has no address")
            self._known[host, port] = loop.time() + RESOLVED_SECONDS, addresses
        turned = addresses[:]
        addresses.append(addresses.pop(0))
        return turned


async def connected(addresses: Sequence[Address]) -> socket.socket:
    """A socket connected to the first address that answers. Raises the last `OSError` when none does."""
    if len(addresses) == 1:
        return await _connect(addresses[0])
    racing: set[asyncio.Task[socket.socket]] = set()
    failure: OSError = OSError("the host has no address")
    waiting = list(addresses)
    try:
        while waiting or racing:
            if waiting:
                racing.add(asyncio.ensure_future(_connect(waiting.pop(0))))
            wait = NEXT_ADDRESS_SECONDS if waiting else None
            done, racing = await asyncio.wait(racing, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            for attempt in done:
                try:
                    return attempt.result()
                except OSError as error:
                    failure = error
        raise failure
    finally:
        for attempt in racing:
            attempt.add_done_callback(_discard)
            attempt.cancel()


def _discard(attempt: asyncio.Task[socket.socket]) -> None:
    """The connection of one that lost the race."""
    with contextlib.suppress(OSError, asyncio.CancelledError):
        attempt.result().close()


async def _connect(address: Address) -> socket.socket:
    family, protocol, where = address
    sock = socket.socket(family, socket.SOCK_STREAM, protocol)
    try:
        _prepare(sock)
        await asyncio.get_running_loop().sock_connect(sock, where)
    except BaseException:
        sock.close()
        raise
    return sock


def _prepare(sock: socket.socket) -> None:
    """A silent connection is probed, so that a cut one is noticed."""
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):  # Linux
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
