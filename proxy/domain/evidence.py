"""The terms a call was sent under, told to Bedrock's invocation log as one pair of request metadata.

The log says how many tokens a call used, but not at which service tier or latency it ran, how long what
it wrote to the prompt cache lives, or that a guardrail read it. Calls under Bedrock's usual terms carry
no such pair; every other call does, so that its cost can be computed from its log line alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from proxy.domain.request import Bound

ATTEMPT_TAG = "tollhouse-attempt"
CALL_TAG = "tollhouse-call"
TERMS_TAG = "tollhouse-terms"
#: most pairs Bedrock takes: with so many, a pair of ours may have yielded to one of the client's
_PAIRS_MAX = 16
#: characters of metadata from which on a pair of ours may have yielded, too (Bedrock's limit is 8,500)
_FULL_AT = 7_500


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


def read(metadata: Mapping[str, str]) -> Terms | None:
    """The terms that a log line's metadata tells, None when nothing can be concluded from it."""
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
