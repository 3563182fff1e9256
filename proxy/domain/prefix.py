"""How much of the prompts of one tenant and model repeats from the start, and what that is worth.

Bedrock sells what a prompt has in common with an earlier one at a fraction of the price, if the request
says where the common part ends (a cache point). Whether that pays depends on how often, how soon and how
long prompts repeat: writing costs more than reading without a cache, what is not read again in time is
lost, and prefixes below a minimum are not cached at all.

Only keyed hashes of prefixes are remembered, never text, and only a bounded number of them. A prompt is
taken apart in the order in which Bedrock caches it: tools, system, messages. For every prompt that was
really sent three ways of placing cache points are played through:

    tools      one point after the tools
    system     one point after the system prompt (and the tools before it)
    messages   one point after the last message, which the next turn of the conversation reads

and besides, how much of it repeats in blocks of a fixed size, wherever points could stand.

Sources: Bedrock user guide, "Prompt caching" (order, minimum, lifetimes of 5 minutes and 1 hour from the
last use). Pure: time comes in as seconds.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any
from uuid import UUID

import orjson

from proxy.domain.rates import MILLION, Rates
from proxy.domain.usage import Usage

#: about 256 tokens of English
BLOCK_BYTES = 1024
_BLOCKS_MAX = 64
#: what comes after is not looked at, and not at all at bodies above the second figure
_PROMPT_BYTES_MAX = 256 << 10
_BODY_BYTES_MAX = 4 << 20
_TTL_5M, _TTL_1H = 300.0, 3600.0
PLACES = ("tools", "system", "messages")

#: fewest tokens before a cache point, by the beginning of the model id; the first that fits holds.
#: Models that place points for themselves, or have no prompt cache, are missing.
_MINIMUM: tuple[tuple[str, int | None], ...] = (
    ("anthropic.claude-3-5-haiku", 2048),
    ("anthropic.claude-3-7-sonnet", 1024),
    ("anthropic.claude-3-5-sonnet-20241022", 1024),
    ("anthropic.claude-opus-4-2025", 1024),
    ("anthropic.claude-opus-4-1-", 1024),
    ("anthropic.claude-sonnet-4-2025", 1024),
    ("anthropic.claude-sonnet-4-5", 1024),
    ("anthropic.claude-sonnet-4-6", 2048),
    ("anthropic.claude-3-", None),
    ("anthropic.claude-", 4096),
    ("amazon.nova-", 1000),
)


def minimum_tokens(model: str) -> int | None:
    """Fewest tokens a cached prefix of a base model may have; None where no cache point can be placed."""
    for beginning, tokens in _MINIMUM:
        if model.startswith(beginning):
            return tokens
    return None


@dataclass(slots=True)
class Tally:
    """Tokens and calls of one tenant and model over some time. `*_5m` and `*_1h`: by the lifetime that
    cache entries would have had.
    """

    calls: int = 0
    #: input of all kinds
    tokens: int = 0
    #: input that was read from Bedrock's prompt cache as it is
    cached: int = 0
    #: input in whole blocks that an earlier prompt began with
    repeated_5m: int = 0
    repeated_1h: int = 0
    tools_read_5m: int = 0
    tools_read_1h: int = 0
    tools_write_5m: int = 0
    tools_write_1h: int = 0
    system_read_5m: int = 0
    system_read_1h: int = 0
    system_write_5m: int = 0
    system_write_1h: int = 0
    messages_read_5m: int = 0
    messages_read_1h: int = 0
    messages_write_5m: int = 0
    messages_write_1h: int = 0

    def add(self, name: str, amount: int) -> None:
        setattr(self, name, getattr(self, name) + amount)

    def counts(self) -> dict[str, int]:
        """What is not 0, by name."""
        return {f.name: n for f in fields(self) if (n := getattr(self, f.name))}


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a prompt. `place`: where a cache point after it would stand, "" for nowhere."""

    place: str
    data: bytes


def parts_of(body: Mapping[str, Any]) -> Iterator[Part]:
    """A request body as its prompt's pieces, in the order in which Bedrock caches them."""
    tools = body.get("toolConfig") or body.get("tools")
    if tools:
        yield Part("tools", _bytes(tools))
    system = body.get("system") or body.get("instructions")
    if system:
        yield Part("system", _bytes(system))
    messages = body.get("messages") or body.get("input")
    if isinstance(messages, list):
        for message in messages:
            yield Part("messages", _bytes(message))
    elif messages:
        yield Part("", _bytes(messages))
    for name in ("prompt", "inputText"):
        if isinstance(body.get(name), str):
            yield Part("", body[name].encode("utf-8", "surrogatepass"))


def _bytes(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


Pair = tuple[UUID, str]


class PrefixMeter:
    """What one process has seen. `key` is 16 to 64 secret bytes: without it a remembered hash says
    nothing about a text that somebody guesses.

    When there are more prefixes than it may remember, it looks at fewer prompts: at those whose first
    block falls into its sample, so that prompts that begin alike are all seen or all left out.
    """

    def __init__(self, key: bytes, *, prefixes_max: int = 100_000, pairs_max: int = 1_000) -> None:
        self._key = key
        self._prefixes_max = prefixes_max
        self._pairs_max = pairs_max
        self._seen: OrderedDict[bytes, float] = OrderedDict()
        self._tallies: OrderedDict[Pair, Tally] = OrderedDict()
        #: one prompt in 2**sampling is looked at; tallies are scaled up by it
        self.sampling = 0

    def observe(
        self, tenant: UUID, model: str, body: Mapping[str, Any], size: int, usage: Usage, now: float
    ) -> None:
        """One prompt that Bedrock answered. `size` is the body's in bytes, `now` is in seconds and never
        goes back.
        """
        tokens = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
        if not tokens or not 0 < size <= _BODY_BYTES_MAX:
            return
        short = size < BLOCK_BYTES  # nothing in it is long enough to be shared
        parts = [] if short else _within(parts_of(body))
        if not short and not self._sampled(tenant, model, parts):
            return
        tally = self._tally((tenant, model))
        weight = 1 if short else 1 << self.sampling
        tally.calls += weight
        tally.tokens += tokens * weight
        tally.cached += usage.cache_read_tokens * weight
        if short:
            return
        chain = hashlib.blake2b(tenant.bytes + model.encode(), key=self._key, digest_size=12)
        boundaries = self._walk(tally, parts, chain, weight, tokens / size, now)
        self._play(tally, boundaries, minimum_tokens(model), weight, now)

    def take(self) -> dict[Pair, Tally]:
        """The tallies since the last time."""
        taken, self._tallies = dict(self._tallies), OrderedDict()
        return taken

    # ---- inside ------------------------------------------------------------------------------

    def _walk(
        self, tally: Tally, parts: list[Part], chain: Any, weight: int, per_byte: float, now: float
    ) -> list[tuple[str, bytes, int]]:
        """Counts repeated blocks; returns the boundaries: place, hash of all before, tokens before."""
        boundaries: list[tuple[str, bytes, int]] = []
        done, blocks, again = 0, 0, [True, True]
        for part in parts:
            rest = memoryview(part.data)
            while rest and blocks < _BLOCKS_MAX and len(rest) >= (room := BLOCK_BYTES - done % BLOCK_BYTES):
                chain.update(rest[:room])
                rest, done, blocks = rest[room:], done + room, blocks + 1
                age = self._age(b"b" + chain.digest(), now)
                again = [again[0] and age < _TTL_5M, again[1] and age < _TTL_1H]
                whole = int(BLOCK_BYTES * per_byte) * weight
                tally.repeated_5m += whole if again[0] else 0
                tally.repeated_1h += whole if again[1] else 0
            chain.update(rest)
            done += len(rest)
            if part.place:
                boundaries.append((part.place, chain.digest(), int(done * per_byte)))
        return boundaries

    def _play(
        self,
        tally: Tally,
        boundaries: list[tuple[str, bytes, int]],
        minimum: int | None,
        weight: int,
        now: float,
    ) -> None:
        """What a cache point at each place would have read and written."""
        if minimum is None:
            return
        for place in PLACES:
            points = [
                (digest, tokens) for at, digest, tokens in boundaries if at == place and tokens >= minimum
            ]
            if not points:
                continue
            end = points[-1][1]
            read = {"5m": 0, "1h": 0}
            for digest, tokens in points:
                age = self._peek(place[:1].encode() + digest, now)
                read["5m"] = tokens if age < _TTL_5M else read["5m"]
                read["1h"] = tokens if age < _TTL_1H else read["1h"]
            self._age(place[:1].encode() + points[-1][0], now)
            for ttl, tokens in read.items():
                tally.add(f"{place}_read_{ttl}", tokens * weight)
                tally.add(f"{place}_write_{ttl}", (end - tokens) * weight)

    def _peek(self, prefix: bytes, now: float) -> float:
        return now - self._seen.get(prefix, float("-inf"))

    def _age(self, prefix: bytes, now: float) -> float:
        """Seconds since the prefix was last used; it is used now."""
        last = self._seen.pop(prefix, float("-inf"))
        self._seen[prefix] = now
        if len(self._seen) > self._prefixes_max:
            _, oldest = self._seen.popitem(last=False)
            if now - oldest < _TTL_1H and self.sampling < 20:
                self.sampling += 1
                self._seen.clear()
        return now - last

    def _sampled(self, tenant: UUID, model: str, parts: list[Part]) -> bool:
        if not self.sampling:
            return True
        first = hashlib.blake2b(tenant.bytes + model.encode(), key=self._key, digest_size=8)
        first.update(b"".join(part.data for part in parts)[:BLOCK_BYTES])
        return int.from_bytes(first.digest()) % (1 << self.sampling) == 0

    def _tally(self, pair: Pair) -> Tally:
        tally = self._tallies.get(pair)
        if tally is None:
            tally = self._tallies[pair] = Tally()
            if len(self._tallies) > self._pairs_max:
                self._tallies.popitem(last=False)
        return tally


def _within(parts: Iterator[Part]) -> list[Part]:
    """The pieces up to the bound; the one that crosses it ends without a place."""
    taken, size = [], 0
    for part in parts:
        if size + len(part.data) > _PROMPT_BYTES_MAX:
            taken.append(Part("", part.data[: _PROMPT_BYTES_MAX - size]))
            break
        taken.append(part)
        size += len(part.data)
    return taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What one way of placing cache points would have done. Nano-dollars; negative is a loss."""

    place: str
    ttl: str
    read_tokens: int
    write_tokens: int
    saved: int


def advice(tally: Tally, rates: Rates) -> list[Advice]:
    """Every way with a price, the best first. Empty where the model has no prompt cache.

    Compared with sending everything at the plain input rate, so prompts that place points already
    show what those are worth.
    """
    if rates.input is None or rates.cache_read is None or rates.cache_read >= rates.input:
        return []
    found = []
    for ttl, write_rate in (("5m", rates.cache_write_5m), ("1h", rates.cache_write_1h)):
        if ttl == "1h" and write_rate in {None, rates.cache_write_5m}:
            continue  # not sold: a longer life always costs more
        premium = (rates.input if write_rate is None else write_rate) - rates.input
        for place in PLACES:
            read: int = getattr(tally, f"{place}_read_{ttl}")
            write: int = getattr(tally, f"{place}_write_{ttl}")
            if read or write:
                saved = (read * (rates.input - rates.cache_read) - write * premium) // MILLION
                found.append(Advice(place=place, ttl=ttl, read_tokens=read, write_tokens=write, saved=saved))
    return sorted(found, key=lambda a: a.saved, reverse=True)
