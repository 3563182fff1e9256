"""A small HTTP/1.1 client that knows exactly how much of an answer it saw, and can leave at any byte."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from dataclasses import dataclass, field
from typing import Any

LLAMA = "meta.llama3-1-405b-instruct-v1:0"
HAIKU = "anthropic.claude-3-haiku-20240307-v1:0"
#: operation -> (model, last segment of the path, streams)
OPERATIONS = {
    "InvokeModel": (LLAMA, "invoke", False),
    "InvokeModelWithResponseStream": (LLAMA, "invoke-with-response-stream", True),
    "Converse": (HAIKU, "converse", False),
    "ConverseStream": (HAIKU, "converse-stream", True),
}


@dataclass(slots=True)
class Shot:
    """One request and what its client saw of the answer."""

    operation: str
    #: the simulator was told to spoil this call
    spoilt: bool = False
    #: the client leaves after so many bytes of the answer, 0 before any
    leave_at: int | None = None
    call: str = ""
    status: int = 0
    #: whole: every byte, in order, to a regular end
    complete: bool = False
    seen: int = 0
    error: str = ""
    body: bytes = b""
    #: when it began, by the loop's clock, and how long it took
    at: float = 0.0
    seconds: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        """What a refusal says."""
        try:
            told = json.loads(self.body)
        except ValueError:
            return self.body[:200].decode(errors="replace")
        return str(told.get("message") or told)[:300]


def request_of(host: str, operation: str, token: str, prompt: str, limit: int, **headers: str) -> bytes:
    """The bytes of a request; `limit` is its output limit in tokens."""
    model, last, _ = OPERATIONS[operation]
    body: dict[str, Any]
    if model == LLAMA:
        body = {"prompt": prompt, "max_gen_len": limit, "temperature": 0.5}
    else:
        body = {
            "messages": [{"role": "user", "content": [{"text": prompt}]}],
            "inferenceConfig": {"maxTokens": limit},
        }
    data = json.dumps(body).encode()
    lines = [
        f"POST /model/{model}/{last} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {token}",
        "Content-Type: application/json", f"Content-Length: {len(data)}", "Connection: close",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]  # fmt: skip
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


async def shoot(shot: Shot, address: tuple[str, int], request: bytes, seconds: float = 60.0) -> Shot:
    """Sends it and reads the answer. Never raises: what went wrong is in `error`."""
    loop = asyncio.get_running_loop()
    shot.at = began = loop.time()
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(request)
            await writer.drain()
            if shot.leave_at == 0:
                shot.error = "left"
                return shot
            await _read(shot, reader)
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
        shot.error = shot.error or type(error).__name__
    finally:
        shot.seconds = loop.time() - began
        if writer is not None:
            if shot.error == "left":
                _reset_on_close(writer)
            writer.close()
    return shot


def _reset_on_close(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def _read(shot: Shot, reader: asyncio.StreamReader) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    shot.status = int(head[0].split(" ")[1])
    shot.headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in head[1:] if line)}
    shot.call = shot.headers.get("x-tollhouse-call-id", "")
    parts: list[bytes] = []
    if "chunked" in shot.headers.get("transfer-encoding", ""):
        while size := int(await reader.readuntil(b"\r\n"), 16):
            if await _take(shot, reader, parts, size):
                return
            await reader.readexactly(2)
        await reader.readexactly(2)
    elif await _take(shot, reader, parts, int(shot.headers.get("content-length", "0"))):
        return
    shot.body = b"".join(parts)
    streams = OPERATIONS[shot.operation][2]
    shot.complete = shot.status == 200 and (not streams or b":exception-type" not in shot.body)


async def _take(shot: Shot, reader: asyncio.StreamReader, parts: list[bytes], size: int) -> bool:
    """Reads so many bytes of the body; True when the client leaves in the middle of them."""
    if shot.leave_at is not None and shot.status == 200 and shot.seen + size >= shot.leave_at:
        await reader.readexactly(max(0, shot.leave_at - shot.seen))
        shot.seen, shot.error = shot.leave_at, "left"
        return True
    parts.append(await reader.readexactly(size))
    shot.seen += size
    return False
