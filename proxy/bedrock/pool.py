"""Connections to Bedrock: opened when needed, kept while they are young, used again last in, first out.

A connection is lent to one exchange at a time and comes back by `give`, whatever became of it. The
last in is the first out because it is the likeliest to be open still, and lets the others grow old.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque

from proxy.bedrock.connection import Connection
from proxy.bedrock.dialing import Resolver, connected
from proxy.bedrock.places import Place

#: idle connections are closed before the other side does, which would cost a sent request
IDLE_CONNECTION_SECONDS = 20.0
SWEEP_SECONDS = 5.0


class Pool:
    """Belongs to one loop. `connections_max` bounds the connections that are lent, 0 for no bound.

    `tls` is for https places; None makes no such connection.
    """

    def __init__(self, *, tls: ssl.SSLContext | None, connections_max: int, connect_timeout: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._tls = tls
        self._connections_max = connections_max
        self._connect_timeout = connect_timeout
        self._resolver = Resolver()
        self._lent: set[Connection] = set()
        #: connections that are being made
        self._opening = 0
        #: by origin, the longest idle first
        self._idle: dict[str, list[Connection]] = {}
        #: who waits for a lent connection to come back, the longest first
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    def reuse(self, place: Place) -> Connection | None:
        """An open connection, if there is one and another one may be lent."""
        idle = self._idle.get(place.origin)
        if not idle or (self._connections_max and self._full()):
            return None
        now = self._loop.time()
        while idle:
            connection = idle.pop()
            if now - connection.idle_since < IDLE_CONNECTION_SECONDS and connection.usable(now):
                self._lent.add(connection)
                return connection
            connection.abort()
        return None

    async def open(self, place: Place) -> Connection:
        """A connection, a new one if need be. Raises `OSError` (`TimeoutError` after `connect_timeout`
        seconds, TLS and waiting for one to come back included) or `ValueError`.
        """
        async with asyncio.timeout(self._connect_timeout):
            while self._connections_max and self._full():
                await self._turn()
            connection = self.reuse(place)
            if connection is None:
                self._opening += 1
                try:
                    connection = await self._dial(place)
                finally:
                    self._opening -= 1
                    if connection is None:
                        self._next()
                self._lent.add(connection)
        if self._closed:
            self.give(connection)
            raise ConnectionAbortedError("the client was closed")
        return connection

    def give(self, connection: Connection) -> None:
        """What was lent comes back; it is kept only if its exchange ended cleanly."""
        self._lent.discard(connection)
        if connection.free() and not self._closed:
            self._idle.setdefault(connection.origin, []).append(connection)
            if self._sweeper is None:
                self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)
        else:
            connection.abort()
        self._next()

    def close(self) -> None:
        """Drop every connection, lent ones too."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in [*self._lent, *(one for idle in self._idle.values() for one in idle)]:
            connection.abort()
        self._lent.clear()
        self._idle.clear()

    # ---- inside --------------------------------------------------------------------------------

    def _full(self) -> bool:
        return len(self._lent) + self._opening >= self._connections_max

    async def _turn(self) -> None:
        turn = self._loop.create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._next()  # the turn is another's
            raise

    def _next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    async def _dial(self, place: Place) -> Connection:
        if place.secure and self._tls is None:
            raise ValueError("no TLS was set up")
        sock = await connected(await self._resolver.addresses(place.name, place.port))
        try:
            _, connection = await self._loop.create_connection(
                lambda: Connection(self._loop, place.origin),
                sock=sock,
                ssl=self._tls if place.secure else None,
                server_hostname=place.name if place.secure else None,
            )
        except BaseException:
            sock.close()
            raise
        return connection

    def _sweep(self) -> None:
        """Close what is idle for too long, and forget what the peer closed."""
        oldest = self._loop.time() - IDLE_CONNECTION_SECONDS
        for origin, idle in list(self._idle.items()):
            kept = [one for one in idle if one.idle_since > oldest and not one.lost]
            for connection in set(idle).difference(kept):
                connection.abort()
            idle[:] = kept
            if not kept:
                del self._idle[origin]
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep) if self._idle else None
