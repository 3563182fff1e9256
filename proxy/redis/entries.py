"""Kept answers as bytes: compressed, and sealed under a key of their tenant.

    format (1) | nonce (12) and AES-256-GCM box, when sealed | head length (4) | head | body

The head is JSON; head and body are compressed together. A sealed entry is bound to its tenant and to
the key it is stored under: one that was copied to another place, was cut, or comes from another master
key does not open, which is a miss.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from struct import Struct
from uuid import UUID

import orjson
import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from proxy.domain.usage import Usage
from proxy.ports import Answer

#: bits of the format byte
_PLAIN, _SEALED = 0x20, 0x21
_NONCE_BYTES = 12
_LENGTH = Struct(">I")
#: an entry never grows beyond this when it is opened; plans allow entries of 64 MiB
_OPENED_BYTES_MAX = 96 << 20
_TENANTS = 4096

#: gives the 32 bytes of a tenant's key
TenantKey = Callable[[UUID], bytes]


class UnreadableError(ValueError):
    """The bytes are no entry of this place; nothing is lost, the answer is made again."""


class Entries:
    """Packs and unpacks. `key_of` None stores entries as they are."""

    def __init__(self, key_of: TenantKey | None) -> None:
        self._key_of = key_of
        self._ciphers: OrderedDict[UUID, AESGCM] = OrderedDict()

    def pack(self, tenant: UUID, key: bytes, answer: Answer) -> bytes:
        packed = compress(_written(answer))
        cipher = self._cipher(tenant)
        if cipher is None:
            return bytes((_PLAIN,)) + packed
        nonce = os.urandom(_NONCE_BYTES)
        return bytes((_SEALED,)) + nonce + cipher.encrypt(nonce, packed, tenant.bytes + key)

    def unpack(self, tenant: UUID, key: bytes, data: bytes) -> Answer:
        """Raises `UnreadableError`."""
        cipher = self._cipher(tenant)
        if not data or data[0] != (_PLAIN if cipher is None else _SEALED):
            raise UnreadableError("another format")
        packed = data[1:]
        if cipher is not None:
            try:
                nonce, box = packed[:_NONCE_BYTES], packed[_NONCE_BYTES:]
                packed = cipher.decrypt(nonce, box, tenant.bytes + key)
            except (InvalidTag, ValueError):
                raise UnreadableError("sealed for another place, or changed") from None
        return _read(decompress(packed))

    def _cipher(self, tenant: UUID) -> AESGCM | None:
        if self._key_of is None:
            return None
        cipher = self._ciphers.get(tenant)
        if cipher is None:
            cipher = self._ciphers[tenant] = AESGCM(self._key_of(tenant))
            if len(self._ciphers) > _TENANTS:
                self._ciphers.popitem(last=False)
        return cipher


def compress(data: bytes) -> bytes:
    """The fastest ordinary level: event streams shrink to a fifth by it."""
    return zstandard.ZstdCompressor(level=1).compress(data)


def decompress(data: bytes) -> bytes:
    """Raises `UnreadableError`; refuses before it unpacks more than a bound."""
    try:
        if not 0 <= zstandard.get_frame_parameters(data).content_size <= _OPENED_BYTES_MAX:
            raise UnreadableError("larger than any entry")
        return zstandard.ZstdDecompressor().decompress(data)
    except zstandard.ZstdError:
        raise UnreadableError("not compressed by us, or cut") from None


def _written(answer: Answer) -> bytes:
    usage = answer.usage
    units = [
        usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, usage.cache_write_5m_tokens,
        usage.cache_write_1h_tokens, usage.images, usage.guardrail_units, usage.exact,
    ]  # fmt: skip
    head = orjson.dumps(
        [answer.status, answer.headers, answer.stream, units, answer.cost, answer.model, answer.made_at]
    )
    return _LENGTH.pack(len(head)) + head + answer.body


def _read(data: bytes) -> Answer:
    try:
        end = _LENGTH.size + _LENGTH.unpack_from(data)[0]
        status, headers, stream, units, cost, model, made_at = orjson.loads(data[_LENGTH.size : end])
        i, o, read, w5, w1, images, guardrail, exact = units
        return Answer(
            status=status, headers=tuple((n, v) for n, v in headers), body=data[end:], stream=stream, cost=cost,
            model=model, made_at=made_at,
            usage=Usage(
                input_tokens=i, output_tokens=o, cache_read_tokens=read, cache_write_5m_tokens=w5,
                cache_write_1h_tokens=w1, images=images, guardrail_units=guardrail, exact=exact,
            ),
        )  # fmt: skip
    except Exception as error:  # whatever is wrong with it, it is no answer
        raise UnreadableError(f"{type(error).__name__}: {error}") from None
