"""Answers as clients get them: their headers, what they cost, and how a broken one is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

Headers = list[tuple[bytes, bytes]]

CUT = "The answer broke off before its usage was reported; the call is charged at most its ceiling."
SILENT = "The model did not answer in time; the call is charged at most its ceiling."

_REQUEST_ID = "x-amzn-requestid"


def answer_headers(own: Headers, content: Iterable[tuple[str, str]], request_id: str | None) -> Headers:
    """Headers of an answer: the call's `own`, the answer's, and the request id in both spellings."""
    told = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in content]
    return _identified([*own, *told], request_id)


def upstream_headers(own: Headers, headers: Mapping[str, str]) -> Headers:
    """Headers of an answer that comes from Bedrock now."""
    told = [(known, value.encode("latin-1")) for name, value in headers.items() if (known := _passed(name))]
    return _identified([*own, *told], headers.get(_REQUEST_ID))


def _identified(headers: Headers, request_id: str | None) -> Headers:
    if request_id:
        encoded = request_id.encode("latin-1")
        headers += ((b"x-amzn-requestid", encoded), (b"x-request-id", encoded))
    return headers


@lru_cache(maxsize=128)
def _passed(name: str) -> bytes:
    """A header of Bedrock's that belongs to the answer itself, whoever reads it and when; else empty."""
    return name.encode("latin-1") if name == "content-type" or name.startswith("x-amzn-bedrock-") else b""


@lru_cache(maxsize=128)
def named(model: str) -> tuple[bytes, bytes]:
    """The header that says which model answered."""
    return b"x-tollhouse-model", model.encode()


def usd(nano: int) -> bytes:
    """Nano-dollars as a plain decimal string of dollars."""
    return b"%d.%09d" % divmod(nano, 1_000_000_000)
