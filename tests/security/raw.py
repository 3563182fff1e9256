"""Bytes on a socket: requests that no HTTP library would send, and what came back."""

from __future__ import annotations

import json
import re
import socket
import time
from dataclasses import dataclass
from typing import Any

from tests.support.stack import LLAMA

INVOKE = f"/model/{LLAMA}/invoke"
STREAM = f"/model/{LLAMA}/invoke-with-response-stream"
BODY = b'{"prompt": "hello", "max_gen_len": 16}'
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3}) ")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Heard:
    """All bytes of a connection until the server closed it, or fell silent."""

    data: bytes
    closed: bool
    seconds: float

    @property
    def statuses(self) -> list[int]:
        return [int(status) for status in _STATUS.findall(self.data)]

    @property
    def head(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[0].lower()

    @property
    def body(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[2]

    def json(self) -> Any:
        return json.loads(self.body)


def connect(port: int, seconds: float = 5.0, receive_buffer: int | None = None) -> socket.socket:
    opened = socket.socket()
    if receive_buffer is not None:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    opened.settimeout(seconds)
    opened.connect(("127.0.0.1", port))
    return opened


def hear(opened: socket.socket, silence: float, *, first: float = 5.0) -> Heard:
    """Read until the end, or until nothing came for `silence` seconds (`first` before any byte)."""
    began = time.monotonic()
    data = bytearray()
    closed = False
    opened.settimeout(first)
    try:
        while True:
            chunk = opened.recv(1 << 16)
            if not chunk:
                closed = True
                break
            data += chunk
            opened.settimeout(silence)
    except TimeoutError:
        pass
    except ConnectionError:
        closed = True
    return Heard(bytes(data), closed, time.monotonic() - began)


def say(port: int, request: bytes, silence: float = 0.15) -> Heard:
    """Send it all on one connection and hear what there is to hear."""
    with connect(port) as opened:
        try:
            opened.sendall(request)
        except ConnectionError:
            pass
        return hear(opened, silence)


def post(
    token: str,
    framing: bytes = b"",
    *,
    path: str = INVOKE,
    body: bytes = b"",
    host: bytes = b"Host: proxy\r\n",
    line: bytes | None = None,
) -> bytes:
    """A POST with `framing` as its last headers; without any, it says its Content-Length."""
    if not framing:
        framing, body = b"Content-Length: %d\r\n" % len(body or BODY), body or BODY
    line = line or b"POST " + path.encode() + b" HTTP/1.1\r\n"
    identity = b"Authorization: Bearer " + token.encode() + b"\r\nContent-Type: application/json\r\n"
    return line + host + identity + framing + b"\r\n" + body


def chunked(body: bytes = BODY, size: bytes | None = None, end: bytes = b"0\r\n\r\n") -> bytes:
    return (b"%x" % len(body) if size is None else size) + b"\r\n" + body + b"\r\n" + end
