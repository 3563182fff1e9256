"""One multiplexed Redis connection per worker.

Commands of concurrent requests are written together, once per turn of the event loop, and replies
are matched to them in order. The handshake (TLS, AUTH, SELECT, unix sockets) is redis-py's, the parser
hiredis; redis-py's retries are not used, since they wait for seconds and can run a script twice.

Promises: every command has a deadline, counted from when it was submitted and including connecting;
when the oldest command passes its deadline the connection is given up and all that wait on it fail
with `RedisAway`; the next command connects anew. Nothing is sent twice, except a script whose body
the server did not know (NOSCRIPT: it did not run).

`redis://`, `rediss://` and `unix://` name one server. `redis+cluster://` and `rediss+cluster://`
name any node of a cluster, through redis-py's own cluster client.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, cast

import hiredis
from redis.asyncio import RedisCluster
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import InvalidResponse, NoScriptError, RedisError, ResponseError

from proxy.errors import ConfigurationError, TollhouseError

Argument = str | bytes | int

DEFAULT_TIMEOUT_S = 0.2
_READ_BYTES = 65_536
_NO_MORE = object()
_ASYNC_CLUSTER = {"redis+cluster://": "redis://", "rediss+cluster://": "rediss://"}


class RedisAway(TollhouseError):  # noqa: N818 a state, like BankAway
    """Redis did not do it, or did and we cannot know.

    `lost` is True when the connection broke while the command waited for its reply: a command
    with an idempotency id may be submitted again.
    """

    def __init__(self, message: str, *, lost: bool = False) -> None:
        super().__init__(message)
        self.lost = lost


class Script:
    """A Lua program and the name under which a server that has seen it knows it."""

    __slots__ = ("sha", "source")

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


class RedisClient(Protocol):
    """What limiter, cache and signals use. All futures fail with `RedisAway` only, but a reply that
    is an error (`redis.exceptions.ResponseError`) is raised as it is.
    """

    timeout_s: float

    def submit(self, *command: Argument) -> asyncio.Future[Any]:
        """Send a command; the reply is bytes, int, None or a list of them. Must be called with the
        event loop running. A cancelled future does not take the command back.
        """
        ...

    def run(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> asyncio.Future[Any]:
        """Run a script by its hash, or by its body where the server does not know the hash."""
        ...

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Call back whenever a connection ended that nobody had closed."""
        ...

    async def aclose(self) -> None:
        """Close; what still waits fails with `RedisAway`."""
        ...


def connect(
    url: str,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    max_waiting: int = 10_000,
    client_name: str | None = None,
) -> RedisClient:
    """A client of the server at `url`; no I/O happens before the first command.

    `timeout_s`: of every command. `max_waiting`: commands beyond it fail at once.
    Raises `ConfigurationError` for an address that cannot be read.
    """
    for scheme, plain in _ASYNC_CLUSTER.items():
        if url.startswith(scheme):
            return ClusterClient(
                plain + url.removeprefix(scheme), timeout_s=timeout_s, max_waiting=max_waiting
            )
    return Multiplexer(url, timeout_s=timeout_s, max_waiting=max_waiting, client_name=client_name)


class _Call:
    __slots__ = ("body", "deadline", "future")

    def __init__(
        self, future: asyncio.Future[Any], deadline: float, body: tuple[Script, Sequence[Argument]] | None
    ) -> None:
        self.future = future
        self.deadline = deadline
        #: the script and what follows it, sent as EVAL when the server answers NOSCRIPT
        self.body = body


class _Link:
    """One connection, from connecting to its end, and the commands that wait on it.

    A link that ended is never used again, so a reply that comes too late finds nobody.
    """

    def __init__(
        self, connection: AbstractConnection, timeout_s: float, ended: Callable[[_Link], None]
    ) -> None:
        self.waiting: deque[_Call] = deque()
        self._connection = connection
        self._timeout_s = timeout_s
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._unsent: list[bytes] = []
        #: None until connected; what is submitted before then waits
        self._writer: asyncio.StreamWriter | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.task = self._loop.create_task(self._live(), name="redis")

    def enqueue(self, call: _Call, command: tuple[Argument, ...]) -> None:
        if not self._unsent and self._writer is not None:
            self._loop.call_soon(self._flush)
        self._unsent.append(hiredis.pack_command(cast(Any, command)))
        self.waiting.append(call)
        if self._timer is None:
            self._timer = self._loop.call_at(call.deadline, self._check_deadline)

    def end(self, why: str, *, lost: bool = False) -> None:
        """Fail what waits and close the connection."""
        waiting, self.waiting = self.waiting, deque()
        self._unsent = []
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.task.cancel()
        self._ended(self)
        for call in waiting:
            if not call.future.done():
                call.future.set_exception(RedisAway(why, lost=lost))

    def _check_deadline(self) -> None:
        """Replies come in order, so one overdue reply holds up all that follow: give up on all."""
        self._timer = None
        if not self.waiting:
            return
        first = self.waiting[0].deadline
        if first > self._loop.time():
            self._timer = self._loop.call_at(first, self._check_deadline)
        else:
            self.end("no answer in time")

    async def _live(self) -> None:
        connected = False
        try:
            async with asyncio.timeout(self._timeout_s):
                await _connect(self._connection)
            connected = True
            # The handshake was redis-py's; its reader and writer cost a third of a call each, so from
            # here on its streams are used without them.
            streams = cast(Any, self._connection)
            self._writer = streams._writer
            self._flush()
            await self._read(streams._reader, streams._parser.parse_error)
        except (RedisError, OSError, TimeoutError) as error:
            self._loop.call_soon(partial(self.end, f"{type(error).__name__}: {error}", lost=connected))
        finally:
            self._writer = None
            with suppress(RedisError, OSError, TimeoutError):
                await self._connection.disconnect(nowait=True)

    def _flush(self) -> None:
        """Everything submitted during one turn of the loop leaves in one write. What the server does not
        take is bounded by the number of commands that may wait, and by their deadlines.
        """
        if self._unsent and self._writer is not None:
            batch, self._unsent = self._unsent, []
            self._writer.write(b"".join(batch))

    async def _read(self, stream: asyncio.StreamReader, error_of: Callable[[str], Exception]) -> None:
        parser = hiredis.Reader(protocolError=InvalidResponse, replyError=error_of, notEnoughData=_NO_MORE)
        while data := await stream.read(_READ_BYTES):
            parser.feed(data)
            while (reply := parser.gets()) is not _NO_MORE:
                if isinstance(reply, ResponseError):
                    self._answer_error(reply)
                elif isinstance(reply, Exception):
                    raise reply
                else:
                    future = self._next().future
                    if not future.done():
                        future.set_result(reply)
        raise ConnectionResetError("the server closed the connection")

    def _next(self) -> _Call:
        if not self.waiting:
            raise InvalidResponse("a reply that nobody waits for")
        return self.waiting.popleft()

    def _answer_error(self, error: ResponseError) -> None:
        call = self._next()
        if isinstance(error, NoScriptError) and call.body is not None:
            (script, rest), call.body = call.body, None
            call.deadline = max(call.deadline, self.waiting[-1].deadline if self.waiting else 0.0)
            self.enqueue(call, ("EVAL", script.source, *rest))
        elif not call.future.done():
            call.future.set_exception(error)


async def _connect(connection: AbstractConnection) -> None:
    await cast(Any, connection).connect()


class Multiplexer:
    """A `RedisClient` of one server."""

    def __init__(
        self, url: str, *, timeout_s: float, max_waiting: int = 10_000, client_name: str | None = None
    ) -> None:
        self.timeout_s = timeout_s
        self._max_waiting = max_waiting
        self._callbacks: list[Callable[[], None]] = []
        self._link: _Link | None = None
        self._dying: set[asyncio.Task[None]] = set()
        self._closed = False
        try:
            self._pool = ConnectionPool.from_url(
                url,
                retry=Retry(NoBackoff(), 0),
                # Deadlines are kept here: redis-py would wrap each write in a task of its own.
                socket_timeout=None,
                socket_connect_timeout=timeout_s,
                health_check_interval=0,
                protocol=2,
                client_name=client_name,
                decode_responses=False,
            )
        except ValueError as error:
            raise ConfigurationError(f"Redis URL: {error}") from error

    def on_lost(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def submit(self, *command: Argument) -> asyncio.Future[Any]:
        return self._submit(command, None)

    def run(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> asyncio.Future[Any]:
        rest = (len(keys), *keys, *args)
        return self._submit(("EVALSHA", script.sha, *rest), (script, rest))

    async def aclose(self) -> None:
        self._closed = True
        if self._link is not None:
            self._link.end("closed")
        await asyncio.gather(*self._dying, return_exceptions=True)

    def _submit(
        self, command: tuple[Argument, ...], body: tuple[Script, Sequence[Argument]] | None
    ) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        link = self._link
        if self._closed or (link is not None and len(link.waiting) >= self._max_waiting):
            future.set_exception(RedisAway("closed" if self._closed else "too many commands wait"))
            return future
        if link is None:
            connection = cast(AbstractConnection, cast(Any, self._pool).make_connection())
            link = self._link = _Link(connection, self.timeout_s, self._ended)
        link.enqueue(_Call(future, loop.time() + self.timeout_s, body), command)
        return future

    def _ended(self, link: _Link) -> None:
        if self._link is not link:
            return
        self._link = None
        self._dying.add(link.task)
        link.task.add_done_callback(self._dying.discard)
        if not self._closed:
            for callback in self._callbacks:
                callback()


class ClusterClient:
    """A `RedisClient` of a cluster: each command is routed by its hash tag, one task per command."""

    def __init__(self, url: str, *, timeout_s: float, max_waiting: int = 10_000) -> None:
        self.timeout_s = timeout_s
        self._max_waiting = max_waiting
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        try:
            self._cluster = RedisCluster.from_url(
                url,
                retry=Retry(NoBackoff(), 0),
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                protocol=2,
            )
        except ValueError as error:
            raise ConfigurationError(f"Redis URL: {error}") from error

    def on_lost(self, callback: Callable[[], None]) -> None:
        """A cluster has no single connection to lose; failures show in the commands."""

    def submit(self, *command: Argument) -> asyncio.Future[Any]:
        return self._spawn(lambda: self._execute(command))

    def run(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> asyncio.Future[Any]:
        rest = (len(keys), *keys, *args)

        async def attempt() -> Any:
            try:
                return await self._execute(("EVALSHA", script.sha, *rest))
            except NoScriptError:
                return await self._execute(("EVAL", script.source, *rest))

        return self._spawn(attempt)

    async def aclose(self) -> None:
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(RedisError, OSError):
            await self._cluster.aclose()
            # aclose does nothing when the last look at the cluster failed
            await self._cluster.nodes_manager.aclose()

    async def _execute(self, command: tuple[Argument, ...]) -> Any:
        return await self._cluster.execute_command(*command)

    def _spawn(self, act: Callable[[], Awaitable[Any]]) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._closed or len(self._tasks) >= self._max_waiting:
            future.set_exception(RedisAway("closed" if self._closed else "too many commands wait"))
            return future
        task = asyncio.create_task(self._finish(act, future))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return future

    async def _finish(self, act: Callable[[], Awaitable[Any]], future: asyncio.Future[Any]) -> None:
        try:
            async with asyncio.timeout(self.timeout_s):
                reply = await act()
        except ResponseError as error:
            _settle(future, error)
        except (Exception, asyncio.CancelledError) as error:  # its exceptions have no common root
            _settle(future, RedisAway(f"{type(error).__name__}: {error}"))
        else:
            if not future.done():
                future.set_result(reply)


def _settle(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
