"""An honest double of Bedrock for tests: answers by script, keeps every promise of `proxy.ports.Upstream`.

It passes the same contract tests as the real client (`tests/contract/test_upstream.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from proxy.errors import UpstreamFailure
from proxy.ports import UpstreamRequest, UpstreamResponse


@dataclass(frozen=True, slots=True, kw_only=True)
class Scripted:
    """One answer. Times are seconds."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    chunks: Sequence[bytes] = ()
    first_byte_after: float = 0.0
    #: silence before each chunk
    chunk_after: float = 0.0
    #: the body breaks off after the last chunk
    cut: bool = False
    #: the connection closes before an answer
    dropped: bool = False
    #: no connection can be made
    unreachable: bool = False


class ScriptedUpstream:
    """`proxy.ports.Upstream` that answers with what `script` makes of each request."""

    def __init__(self, script: Callable[[UpstreamRequest], Scripted]) -> None:
        self._script = script
        #: every request that was sent, in order
        self.requests: list[UpstreamRequest] = []

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        answer = self._script(request)
        if answer.unreachable:
            raise UpstreamFailure("no connection", sent=False)
        self.requests.append(request)
        await asyncio.sleep(min(answer.first_byte_after, request.first_byte_timeout))
        if answer.dropped or answer.first_byte_after > request.first_byte_timeout:
            raise UpstreamFailure("no answer", sent=True)
        return ScriptedResponse(answer, request.read_timeout)


class ScriptedResponse:
    """`proxy.ports.UpstreamResponse`; its body can be read once."""

    def __init__(self, answer: Scripted, read_timeout: float) -> None:
        self._answer = answer
        self._read_timeout = read_timeout
        self._taken = False
        self.closed = False
        self.status = answer.status
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in answer.headers.items()}

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self.chunks()])

    async def chunks(self) -> AsyncIterator[bytes]:
        if self._taken:
            return
        self._taken = True
        for chunk in self._answer.chunks:
            await asyncio.sleep(min(self._answer.chunk_after, self._read_timeout))
            if self._answer.chunk_after > self._read_timeout:
                raise UpstreamFailure("the answer fell silent", sent=True)
            yield chunk
        if self._answer.cut:
            raise UpstreamFailure("the answer broke off", sent=True)

    def close(self) -> None:
        self.closed = True
