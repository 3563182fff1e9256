"""Cursors: an opaque place in a list, whose order never changes under the reader."""

from __future__ import annotations

import base64
import binascii
from typing import TypeVar
from uuid import UUID

import msgspec

from proxy.web.admin.problems import invalid

LIMIT_MAX = 200
LIMIT_DEFAULT = 50

Place = TypeVar("Place", str, int)


def encode(place: str | int) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).rstrip(b"=").decode("ascii")


def decode(cursor: str | None, kind: type[Place]) -> Place | None:
    """The place in a cursor of ours, None for none. Raises a 400 `Problem` for any other text."""
    if cursor is None:
        return None
    try:
        if len(cursor) > 512:
            raise ValueError
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        return msgspec.json.decode(base64.b64decode(padded, altchars=b"-_", validate=True), type=kind)
    except (UnicodeEncodeError, binascii.Error, msgspec.DecodeError, ValueError):
        raise invalid("cursor", "this cursor was not given out by this list") from None


def decode_id(cursor: str | None) -> UUID | None:
    """As `decode`, for lists ordered by id."""
    place = decode(cursor, str)
    try:
        return None if place is None else UUID(place)
    except ValueError:
        raise invalid("cursor", "this cursor was not given out by this list") from None
