"""What Bedrock's invocation log proves about a call whose answer was never read to its end.

An attempt that may have been billed without our seeing how much is charged its ceiling. Its line in the
log says how many tokens it used; the price book makes a cost of them. A line that is missing, or that does
not say enough, proves nothing, and then the ceiling stays.

The log does not say at which service tier or latency a call ran, how long what it wrote to the prompt cache
lives, or that a guardrail read it. So a call that is sent under other than the usual terms says so in a pair
of request metadata of its own, next to the pair that names the attempt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from proxy.domain.pricing import Priced
from proxy.domain.request import Bound
from proxy.domain.usage import Usage

ATTEMPT_TAG = "tollhouse-attempt"
CALL_TAG = "tollhouse-call"
TERMS_TAG = "tollhouse-terms"
#: most pairs Bedrock takes: with so many, a pair of ours may have yielded to one of the client's
_PAIRS_MAX = 16
#: characters of metadata from which on a pair of ours may have yielded, too (Bedrock's limit is 8,500)
_FULL_AT = 7_500
#: everything a call may have run at, where nothing tells
_TIERS = ("default", "priority", "flex", "reserved")
_LATENCIES = ("standard", "optimized")
#: families without prompt caching, whose lines need not show how much of it was used
_NEVER_CACHE = frozenset({"llama", "mistral", "cohere", "ai21", "deepseek", "titan"})


class EvidenceAwayError(Exception):
    """The log or the metrics could not be read, or not all of it. Nothing may be concluded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    tier: str = "default"
    latency: str = "standard"
    #: longest life of what the call may have written to the prompt cache
    cache_ttl: str = "5m"
    #: it costs something that no token count shows: guardrail units, images
    more: bool = False


USUAL = Terms()


def terms_of(bound: Bound) -> Terms:
    return Terms(
        tier=bound.tier,
        latency=bound.latency,
        cache_ttl=bound.cache_ttl or "5m",
        more=bound.guardrail or bound.images > 0,
    )


def spell(terms: Terms) -> str | None:
    """The value of the pair, None for the usual terms, which need none."""
    if terms == USUAL:
        return None
    return f"{terms.tier}/{terms.latency}/{terms.cache_ttl}" + ("/more" if terms.more else "")


def spelled(bound: Bound) -> str | None:
    """`spell(terms_of(bound))`."""
    if (
        bound.tier == USUAL.tier
        and bound.latency == USUAL.latency
        and bound.cache_ttl in (None, USUAL.cache_ttl)
        and not bound.guardrail
        and bound.images <= 0
    ):
        return None
    return spell(terms_of(bound))


def told(metadata: Mapping[str, str]) -> Terms | None:
    """The terms that a line's metadata tells, None when nothing can be concluded from it."""
    said = metadata.get(TERMS_TAG)
    if said is not None:
        parts = said.split("/")
        if len(parts) not in {3, 4}:
            return None
        return Terms(tier=parts[0], latency=parts[1], cache_ttl=parts[2], more=len(parts) == 4)
    if ATTEMPT_TAG not in metadata or len(metadata) >= _PAIRS_MAX:
        return None
    size = sum(len(key) + len(value) + 6 for key, value in metadata.items())
    return USUAL if size < _FULL_AT else None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One invocation that Bedrock logged. Counts are tokens; `None`: the line does not say."""

    request_id: str
    attempt: UUID | None
    terms: Terms | None
    input_tokens: int | None
    output_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    #: the invocation failed, and the log says with what
    error: str | None
    #: where it was read
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unproven:
    """An attempt that is charged its ceiling without anybody knowing better."""

    attempt: UUID
    tenant: UUID
    #: base model, and where it was sent as `region/model id`
    model: str
    target: str
    ceiling: int
    upstream_request_id: str | None
    #: unix seconds
    admitted_at: float
    finished_at: float
    #: what we saw of the answer
    status: int
    latency_ms: int
    first_byte_ms: int

    @property
    def region(self) -> str:
        return self.target.partition("/")[0]

    @property
    def model_id(self) -> str:
        return self.target.partition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What an attempt cost, by its lines. Nano-dollars."""

    cost: int
    usage: Usage
    price_version: str
    lines: tuple[LogLine, ...]


def joined(question: Unproven, lines: Sequence[LogLine]) -> tuple[LogLine, ...]:
    """The attempt's own lines, one per request that Bedrock served. A line belongs to it by the attempt id
    it carries, or, where it carries none, by the request id that its answer showed us.
    """
    own = {
        line.request_id: line
        for line in lines
        if line.attempt == question.attempt
        or (line.attempt is None and line.request_id == question.upstream_request_id)
    }
    return tuple(own.values())


def prove(lines: Sequence[LogLine], family: str, priced: Priced, at: float) -> Proof | None:
    """The cost of what `lines` of one attempt tell, at the prices in force when it was sent. None when they
    do not tell all of it: no line, a count that is missing, an error (whose bill the log does not say), or
    something that is not paid by the token.
    """
    rates = priced.rates(at).rates
    if not lines or rates.image or not (rates.input or rates.output):
        return None
    usages, cost, version = [], 0, ""
    for line in lines:
        usage = _usage(line, family)
        if usage is None:
            return None
        own, version = _dearest(usage, line.terms, priced, at)
        usages.append(usage)
        cost += own
    return Proof(cost=cost, usage=_sum(usages), price_version=version, lines=tuple(lines))


def _usage(line: LogLine, family: str) -> Usage | None:
    read, written = line.cache_read_tokens, line.cache_write_tokens
    if family in _NEVER_CACHE:
        read, written = read or 0, written or 0
    if line.error is not None or line.input_tokens is None or line.output_tokens is None:
        return None
    if read is None or written is None or (line.terms is not None and line.terms.more):
        return None
    short = line.terms is not None and line.terms.cache_ttl == "5m"
    return Usage(
        input_tokens=line.input_tokens,
        output_tokens=line.output_tokens,
        cache_read_tokens=read,
        cache_write_5m_tokens=written if short else 0,
        cache_write_1h_tokens=0 if short else written,
    )


def _dearest(usage: Usage, terms: Terms | None, priced: Priced, at: float) -> tuple[int, str]:
    """The cost at the dearer of the terms asked for and the usual ones, because the line does not say which
    were served; at the dearest there are, where nothing tells what was asked for.
    """
    tiers = _TIERS if terms is None or terms.tier == "auto" else ("default", terms.tier)
    latencies = _LATENCIES if terms is None else ("standard", terms.latency)
    return max(priced.cost(usage, tier, latency, at) for tier in tiers for latency in latencies)


def _sum(usages: Sequence[Usage]) -> Usage:
    return Usage(
        input_tokens=sum(u.input_tokens for u in usages),
        output_tokens=sum(u.output_tokens for u in usages),
        cache_read_tokens=sum(u.cache_read_tokens for u in usages),
        cache_write_5m_tokens=sum(u.cache_write_5m_tokens for u in usages),
        cache_write_1h_tokens=sum(u.cache_write_1h_tokens for u in usages),
    )
