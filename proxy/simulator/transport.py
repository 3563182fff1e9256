"""What the simulator sees of a connection: a request read whole, and a way out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Headers = Sequence[tuple[str, str]]
#: Bedrock accepts bodies of 25,000,000 bytes; more is a client gone wrong.
MAX_BODY_BYTES = 26_000_000


@dataclass(slots=True)
class Request:
    method: str
    #: As it came on the wire, percent-encoding untouched, without the query.
    path: str
    query: str
    #: In the order of the wire, names in lower case.
    raw_headers: list[tuple[str, str]]
    headers: dict[str, str]
    body: bytes


class Out(Protocol):
    """One answer. Writing never waits; after the client has gone it does nothing."""

    @property
    def gone(self) -> bool:
        """True once the client has closed or reset the connection."""

    def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """A complete answer with its exact Content-Length."""

    def start(self, status: int, headers: Headers, length: int | None = None) -> None:
        """Begin an answer of ``length`` bytes, or a stream whose end is told by :meth:`end`."""

    def write(self, data: bytes) -> None:
        """Add to the answer; it may stay buffered until :meth:`drain` or :meth:`end`."""

    def end(self) -> None: ...

    def reset(self) -> None:
        """Abort: RST of the connection, or of the stream over HTTP/2."""

    def close(self) -> None:
        """Close the connection here, in whatever state the answer is."""

    async def drain(self) -> None:
        """Send what is buffered and wait while the client reads too slowly."""

    async def wait_gone(self) -> None: ...
