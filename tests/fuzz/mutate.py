"""Mutations: of bytes, of JSON trees, and of event streams whose checksums are made right again."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any
from zlib import crc32

Mutate = Callable[[random.Random, list[bytes]], bytes]

BYTES_MAX = 4096
WORDS = [
    b"\x00", b"\xff" * 4, b"\n\n", b"\r\n", b"data:", b"event:", b"[DONE]", b'"', b"{", b"}", b"[", b"]", b"null", b"NaN",
    b"1e999", b"-0", b"-1", b"18446744073709551616", b"\\u0000", b"\\ud800", b"\\u003a", b"\xef\xbb\xbf", b"%2F", b"%00", b"../",
    b"amazon-bedrock-invocationMetrics", b'"usage":{', b'"error":', b"th_live_", b"AWS4-HMAC-SHA256 ", b"&a", b"*a", b"!!",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**64, 10**30, -(10**18), 0.5, 1e308, -0.0, "", "x", "\u0000", "\U0001f600",
    "9" * 40, [], {}, [[]], [None], {"": ""}, {"type": "text", "text": "x"}, {"type": None}, ["x"] * 20, "auto", "ephemeral",
]  # fmt: skip


def of_bytes(chance: random.Random, seeds: list[bytes]) -> bytes:
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(1, 4)):
        place = chance.randint(0, len(data))
        kind = chance.randrange(6)
        if kind == 0 and data:
            data[place % len(data)] = chance.randrange(256)
        elif kind == 1 and data:
            data[place % len(data)] ^= 1 << chance.randrange(8)
        elif kind == 2:
            data[place:place] = chance.choice(WORDS)
        elif kind == 3:
            del data[place : place + chance.randint(1, 16)]
        elif kind == 4:
            other = chance.choice(seeds)
            start = chance.randint(0, len(other))
            data[place:] = other[start:]
        else:
            data[place:place] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 8)))
    return bytes(data[:BYTES_MAX])


def of_json(chance: random.Random, seeds: list[bytes]) -> bytes:
    """A JSON text one or a few edits away from a seed; now and then merely bytes."""
    if chance.random() < 0.15:
        return of_bytes(chance, seeds)
    try:
        tree = json.loads(chance.choice(seeds))
    except ValueError:
        return of_bytes(chance, seeds)
    for _ in range(chance.randint(1, 3)):
        tree = _edit(chance, tree)
    text = json.dumps(tree, ensure_ascii=chance.random() < 0.5, indent=chance.choice([None, None, 1]))
    return text.encode("utf-8", "replace")[:BYTES_MAX]


def _edit(chance: random.Random, node: Any) -> Any:
    if isinstance(node, dict) and node and chance.random() < 0.85:
        name = chance.choice(list(node))
        kind = chance.randrange(8)
        if kind == 0:
            return {k: v for k, v in node.items() if k != name}
        if kind == 1:
            return {(k + chance.choice("sX_ ") if k == name else k): v for k, v in node.items()}
        if kind == 2:
            return node | {
                chance.choice(["n", "stream", "type", "x", "user", name.upper()]): chance.choice(VALUES)
            }
        return node | {name: _edit(chance, node[name])}
    if isinstance(node, list) and node and chance.random() < 0.85:
        place = chance.randrange(len(node))
        kind = chance.randrange(5)
        if kind == 0:
            return node[:place] + node[place + 1 :]
        if kind == 1:
            return node + [node[place]] * chance.randint(1, 5)
        return [*node[:place], _edit(chance, node[place]), *node[place + 1 :]]
    return chance.choice(VALUES)


def of_frames(chance: random.Random, seeds: list[bytes]) -> bytes:
    """Mutated frames; half of them with checksums that fit again, so that what lies behind is reached."""
    data = of_bytes(chance, seeds)
    return repaired(data) if chance.random() < 0.7 else data


def repaired(data: bytes) -> bytes:
    """The frames of `data`, each with right lengths and checksums as far as it can be read as one."""
    out, place = bytearray(), 0
    while len(data) - place >= 16:
        total, headers = struct.unpack_from(">II", data, place)
        if not 16 <= total <= len(data) - place or headers > total - 16:
            total, headers = len(data) - place, min(headers, len(data) - place - 16)
        lengths = struct.pack(">II", total, headers)
        frame = lengths + struct.pack(">I", crc32(lengths)) + data[place + 12 : place + total - 4]
        out += frame + struct.pack(">I", crc32(frame))
        place += total
    return bytes(out) + data[place:]
