"""Sockets, TLS and the process around the application."""

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import ssl
import sys
from typing import Any

import uvloop

from proxy.simulator.app import Simulator, create_app
from proxy.simulator.config import make
from proxy.simulator.http1 import Connection
from proxy.simulator.http2 import Http2

_PR_SET_PDEATHSIG = 1
_BACKLOG = 1_024


class Listener:
    """One port that speaks HTTP/1.1 and HTTP/2, with or without TLS."""

    def __init__(self, app: Simulator) -> None:
        self._app = app
        self._http2 = Http2(app)
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        app.cut = self._http2.cut

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Returns the port that is listened on."""
        await self._http2.start()
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Connection(self._app.handle, self._http2.tunnel, self._connections),
            host,
            port,
            ssl=tls,
            backlog=_BACKLOG,
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.transport.abort()
        await self._http2.stop()


def tls_context(certificate: str, key: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def die_with_parent(parent: int) -> None:
    """SIGTERM when the thread that started this process ends (Linux); exit if it already has."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(0)


def serve(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    speed: float = 0.0,
    tls_certificate: str | None = None,
    tls_key: str | None = None,
    parent: int | None = None,
    **settings: Any,
) -> None:
    """Serves until SIGTERM or SIGINT; prints ``simulator ready <url>`` once it listens.

    ``port`` 0 takes a free one. ``speed`` is the pace in tokens a second, 0 at once. ``parent`` ends the
    process together with that process id. ``settings`` are fields of Config.
    """
    if parent is not None:
        die_with_parent(parent)
    if speed:
        settings["tokens_per_second"] = speed
    app = create_app(make(**settings))
    tls = tls_context(tls_certificate, tls_key or tls_certificate) if tls_certificate else None
    uvloop.run(_serve(app, host, port, tls))


async def _serve(app: Simulator, host: str, port: int, tls: ssl.SSLContext | None) -> None:
    listener = Listener(app)
    try:
        taken = await listener.start(host, port, tls)
    except OSError as error:
        sys.exit(f"simulator: cannot listen on {host}:{port}: {error.strerror}")
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    scheme = "https" if tls else "http"
    shown = f"[{host}]" if _is_ipv6(host) else host
    print(f"simulator ready {scheme}://{shown}:{taken}", flush=True)
    await stopping.wait()
    await listener.stop()


def _is_ipv6(host: str) -> bool:
    with contextlib.suppress(OSError):
        socket.inet_pton(socket.AF_INET6, host)
        return True
    return False
