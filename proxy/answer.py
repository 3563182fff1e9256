"""Answers as clients get them: their headers, what they cost, and how a broken one is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from proxy.domain.ledger import Settlement
from proxy.domain.usage import Usage

Headers = list[tuple[bytes, bytes]]

CUT = "The answer broke off before its usage was reported; the call is charged at most its ceiling."
SILENT = "The model did not answer in time; the call is charged at most its ceiling."

_REQUEST_ID = "x-amzn-requestid"


def content_headers(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """The headers of Bedrock's that belong to the answer itself, whoever reads it and when."""
    return [(n, v) for n, v in headers.items() if n == "content-type" or n.startswith("x-amzn-bedrock-")]


def answer_headers(own: Headers, content: Iterable[tuple[str, str]], request_id: str | None) -> Headers:
    """Headers of an answer: the call's `own`, the answer's, and the request id in both spellings."""
    out = list(own)
    out.extend((name.encode("latin-1"), value.encode("latin-1")) for name, value in content)
    if request_id:
        encoded = request_id.encode("latin-1")
        out += [(b"x-amzn-requestid", encoded), (b"x-request-id", encoded)]
    return out


def upstream_headers(own: Headers, headers: Mapping[str, str]) -> Headers:
    """Headers of an answer that comes from Bedrock now."""
    return answer_headers(own, content_headers(headers), headers.get(_REQUEST_ID))


def usd(nano: int) -> bytes:
    """Nano-dollars as a plain decimal string of dollars."""
    return b"%d.%09d" % divmod(nano, 1_000_000_000)


def with_cost(settlement: Settlement, usage: Usage, cost: int, upstream_cost: int, price: int) -> Settlement:
    return replace(settlement, cost=cost, upstream_cost=upstream_cost, usage=usage, price=price)
