"""Encoder of ``application/vnd.amazon.eventstream``.

A frame, big-endian: u32 total length, u32 headers length, u32 CRC-32 of those eight bytes, headers,
payload, u32 CRC-32 of everything before it. A header: u8 name length, name, u8 type, value; type 7 is
a string with a u16 length, the only type Bedrock uses.
"""

import binascii
import struct
from base64 import b64encode
from collections.abc import Sequence
from functools import cache

_PRELUDE = struct.Struct(">II")
_U32 = struct.Struct(">I")
OVERHEAD_BYTES = 16
#: The alphabet that the real service cuts its random-length padding member ``p`` from.
PADDING = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def string_headers(headers: Sequence[tuple[str, str]]) -> bytes:
    encoded = bytearray()
    for name, value in headers:
        raw_name, raw_value = name.encode(), value.encode()
        encoded += bytes([len(raw_name)]) + raw_name + b"\x07" + len(raw_value).to_bytes(2, "big") + raw_value
    return bytes(encoded)


@cache
def _prelude(total: int, headers: int) -> tuple[bytes, int]:
    prelude = _PRELUDE.pack(total, headers)
    prelude += _U32.pack(binascii.crc32(prelude))
    return prelude, binascii.crc32(prelude)


def frame(headers: bytes, payload: bytes) -> bytes:
    """One message; ``headers`` come from :func:`string_headers`."""
    prelude, crc = _prelude(OVERHEAD_BYTES + len(headers) + len(payload), len(headers))
    rest = headers + payload
    return prelude + rest + _U32.pack(binascii.crc32(rest, crc))


@cache
def _event_headers(event_type: str) -> bytes:
    return string_headers(
        ((":event-type", event_type), (":content-type", "application/json"), (":message-type", "event"))
    )


def event(event_type: str, payload: bytes) -> bytes:
    return frame(_event_headers(event_type), payload)


def chunk(native: bytes, padding: int) -> bytes:
    """The ``chunk`` event of InvokeModelWithResponseStream around one native JSON chunk."""
    payload = b'{"bytes":"%b","p":"%b"}' % (b64encode(native), PADDING[:padding].encode())
    return frame(_event_headers("chunk"), payload)


def exception(member: str, payload: bytes) -> bytes:
    """A modelled exception; ``member`` is the event-stream member in lowerCamel (``throttlingException``)."""
    headers = (
        (":exception-type", member),
        (":content-type", "application/json"),
        (":message-type", "exception"),
    )
    return frame(string_headers(headers), payload)


def unmodelled_error(code: str, message: str) -> bytes:
    return frame(
        string_headers(((":message-type", "error"), (":error-code", code), (":error-message", message))), b""
    )


def corrupt(encoded: bytes) -> bytes:
    """The same frame with a wrong message checksum."""
    return encoded[:-1] + bytes([encoded[-1] ^ 0xFF])
