"""What is fuzzed: for each name a function of bytes that returns, or raises because a promise is broken.

Refusals are no findings. A target that streams feeds the same bytes in one piece and in many, and both
must come to the same.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Self
from zlib import crc32

from proxy.bedrock import dialects
from proxy.bedrock.dialects import counts, meters, ssemeters
from proxy.bedrock.dialects.anthropic import Anthropic, reported_usage
from proxy.bedrock.eventstream import BrokenStream
from proxy.bedrock.inbound import InboundSignatures
from proxy.bedrock.wires import BedrockWires, classify
from proxy.domain.fingerprint import canonical
from proxy.domain.ledger import Operation
from proxy.domain.usage import Usage
from proxy.errors import ConfigurationError, Refusal
from proxy.keys import Keyring, checksum, is_access_key_id, parse_master_key, redacted
from proxy.policyfile import load, strict
from proxy.policyfile.plans import read_plan
from proxy.policyfile.rules import read_rules
from proxy.policyfile.schema import Reader
from proxy.web.auth import RawHeaders
from proxy.web.routes import listed, match, wire_of
from tests.fuzz import mutate

CORPUS = Path(__file__).parent / "corpus"
POLICIES = load()
NOW = 1_800_000_000.0


class Finding(AssertionError):
    """A promise that does not hold."""


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    run: Callable[[bytes], object]
    mutate: mutate.Mutate

    def seeds(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted((CORPUS / self.name).iterdir())]


# ---- streams ---------------------------------------------------------------------------------------


def _pieces(data: bytes, seed: int) -> list[bytes]:
    chance = random.Random(seed)
    pieces, place = [], 0
    while place < len(data):
        size = chance.choice((1, 2, 3, 7, 50, 1000))
        pieces.append(data[place : place + size])
        place += size
    return pieces


def _metered(meter: Any, pieces: list[bytes], *, blank: bool) -> tuple[Any, ...]:
    """How a meter ends: what it passes on and what it read; or that it called the stream broken."""
    out = bytearray()
    try:
        for piece in pieces:
            out += meter.feed(piece)
        meter.finish()
    except BrokenStream:
        return ("broken",)
    # an empty line more or less between events is none: a dropped event may leave one
    said = (
        bytes(out + meter.held()).replace(b"\r", b"").replace(b"\n", b"")
        if blank
        else bytes(out + meter.held())
    )
    return said, meter.usage, meter.ended, meter.failure, meter.failure_message, meter.served


def _same(make: Callable[[], Any], data: bytes, *, blank: bool = False) -> None:
    whole = _metered(make(), [data], blank=blank)
    parts = _metered(make(), _pieces(data, crc32(data)), blank=blank)
    if parts != whole:
        raise Finding(f"in pieces: {parts!r}\nwhole: {whole!r}")
    if whole[0] == "broken":
        return
    said, usage, _, failure, *_ = whole
    if failure is None and not blank and not data.startswith(said):
        raise Finding("bytes were made up")
    _sane(usage)


def _sane(usage: Usage | None) -> None:
    if usage is None:
        return
    for value in (usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, usage.cache_write_tokens,
                  usage.images, usage.guardrail_units):  # fmt: skip
        if type(value) is not int or not 0 <= value <= 100 * counts.COUNT_MAX:
            raise Finding(f"a usage of {value!r}")


_FRAMED: tuple[Callable[[], Any], ...] = (meters.ConverseMeter, meters.ChunkMeter, Anthropic().meter)
_EVENTS: tuple[Callable[[], Any], ...] = (
    lambda: ssemeters.ChatMeter(hide_usage=True), lambda: ssemeters.ChatMeter(hide_usage=False),
    ssemeters.ResponsesMeter, ssemeters.MessagesMeter,
)  # fmt: skip


def eventstream(data: bytes) -> None:
    """One meter an execution, chosen by the data."""
    _same(_FRAMED[crc32(data) % len(_FRAMED)], data)


def sse(data: bytes) -> None:
    _same(_EVENTS[crc32(data) % len(_EVENTS)], data, blank=True)


# ---- answers ---------------------------------------------------------------------------------------


def usage(data: bytes) -> None:
    answer = counts.answer_of(data)
    classify(500, {"x-amzn-errortype": "X:y"}, data)
    if answer is None:
        return
    report = answer.get("usage")
    for found in (
        counts.converse_usage(answer), counts.metrics_usage(answer.get(meters.METRICS)), counts.openai_usage(report),
        counts.openai_usage(answer), reported_usage(report), counts.with_guardrail(Usage(), answer),
        counts.from_headers({str(k): str(v) for k, v in answer.items()}, output=True),
    ):  # fmt: skip
        _sane(found)
    counts.converse_served(answer)
    for dialect in dialects.FAMILIES.values():
        _sane(dialect.body_usage(answer))


def prices(data: bytes) -> None:
    """Cost equals decimal arithmetic and is never below 0 or above what the same units cost at most."""
    chance = random.Random(data)
    name = chance.choice(POLICIES.ids)
    route = POLICIES.resolve(name)
    numbers = [int.from_bytes(data[i : i + 4], "big") for i in range(0, 12, 4)]
    given, read, out = (number % 10 ** chance.randint(1, 9) for number in numbers)
    priced = POLICIES.priced(route.model, route.targets[0])
    cost, _ = priced.cost(
        Usage(input_tokens=given, cache_read_tokens=read, output_tokens=out), "default", "standard", NOW
    )
    listed_rates = priced.rates(NOW)
    over = [step for step in listed_rates.long_context if given + read > step.over]
    used = over[-1].rates.over(listed_rates.rates) if over else listed_rates.rates
    cached = used.input if used.cache_read is None else used.cache_read
    exact = sum(
        Decimal(n) * Decimal(rate or 0)
        for n, rate in ((given, used.input), (read, cached), (out, used.output))
    )
    wanted = math.ceil(exact / 10**6)
    if type(cost) is not int or cost != wanted:
        raise Finding(f"{name}: {given}, {read}, {out} cost {cost}, not {wanted}")


# ---- requests --------------------------------------------------------------------------------------

_WIRES = BedrockWires(first_byte=1, idle=1)
_ASKED = [
    (Operation.INVOKE_MODEL, "meta.llama3-1-405b-instruct-v1:0"),
    (Operation.INVOKE_MODEL_WITH_RESPONSE_STREAM, "anthropic.claude-3-haiku-20240307-v1:0"),
    (Operation.CONVERSE, "anthropic.claude-3-haiku-20240307-v1:0"),
    (Operation.CONVERSE_STREAM, "amazon.nova-pro-v1:0"),
    (Operation.CHAT_COMPLETIONS, "openai.gpt-oss-20b-1:0"),
    (Operation.CHAT_COMPLETIONS, "anthropic.claude-3-haiku-20240307-v1:0"),
    (Operation.RESPONSES, "openai.gpt-oss-20b-1:0"),
    (Operation.MESSAGES, "anthropic.claude-sonnet-4-5-20250929-v1:0"),
    (Operation.COUNT_TOKENS, "anthropic.claude-3-5-sonnet-20241022-v2:0"),
    (Operation.MESSAGES_COUNT_TOKENS, "anthropic.claude-sonnet-4-5-20250929-v1:0"),
    (Operation.INVOKE_MODEL, "cohere.command-r-v1:0"),
    (Operation.INVOKE_MODEL, "mistral.mistral-large-2402-v1:0"),
    (Operation.INVOKE_MODEL, "amazon.titan-embed-text-v2:0"),
]


def requests(data: bytes) -> None:
    """Any body on any route is bounded and priced, or refused; nothing else."""
    try:
        body = dialects.parse(data)
    except Refusal:
        return
    for operation, name in _ASKED:
        try:
            route = POLICIES.resolve(name)
            spoken = _WIRES.speak(operation, route, json.loads(json.dumps(body)), data, {})
            bound = spoken.dialect.bound(spoken.body, spoken.raw, route.model, spoken.headers)
            limit = bound.output_limit if bound.output_limit is not None else 512
            ceiling = POLICIES.priced(route.model, route.targets[0]).ceiling(bound, limit, NOW, 3600)
        except Refusal:
            continue
        if ceiling < 0 or bound.input_tokens < 0 or bound.choices < 1 or limit < 0:
            raise Finding(f"{operation}: {bound}")


def jsonbody(data: bytes) -> None:
    """What is accepted is read alike by another parser, and no object in it has a key twice."""
    try:
        body = dialects.parse(data)
    except Refusal:
        return

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) != len(pairs):
            raise Finding("a key twice")
        return dict(pairs)

    other = json.loads(data, object_pairs_hook=once, parse_constant=_no_constant, parse_int=_whole)
    if other != body:
        raise Finding(f"{body!r} is {other!r} to another parser")


def _whole(text: str) -> int | float:
    """As orjson reads it: what is beyond 64 bits is a float, which no limit may be."""
    number = int(text)
    return number if -(2**63) <= number < 2**64 else float(text)


def _no_constant(text: str) -> Any:
    raise Finding(f"the constant {text}")


def fingerprints(data: bytes) -> None:
    """Equal values under any spelling are one; a number that differs is another."""
    try:
        body = dialects.parse(data)
    except Refusal:
        return
    form = canonical(body, data)
    for spelled in (
        json.dumps(_backwards(json.loads(data, parse_float=Exact, parse_int=Exact)), default=str, indent=2),
        json.dumps(
            _backwards(json.loads(data, parse_float=Exact, parse_int=Exact)), default=str, ensure_ascii=False
        ),
    ):
        again = Exact.raw(spelled).encode("utf-8", "surrogatepass")
        if canonical(dialects.parse(again), again) != form:
            raise Finding(f"another spelling is another request: {again!r}")
    if (
        canonical(body | {"one more": 1}, data[:-1] + b', "one more": 1}') == form
        and len(body) > 0
        and data.endswith(b"}")
    ):
        raise Finding("one more field changes nothing")


class Exact(str):
    """A number as it was written; goes through `json.dumps` between marks that `raw` takes away."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        return super().__new__(cls, f"\u0001{text}\u0002")

    @staticmethod
    def raw(text: str) -> str:
        for one, other in (('"\\u0001', ""), ('\\u0002"', "")):
            text = text.replace(one, other)
        return text


def _backwards(node: Any) -> Any:
    if isinstance(node, dict):
        return {name: _backwards(node[name]) for name in reversed(node)}
    return [_backwards(one) for one in node] if isinstance(node, list) else node


# ---- who and where ---------------------------------------------------------------------------------

_SIGNATURES = InboundSignatures(lambda: 1_763_000_000.0)
_KEYRING = Keyring(b"k" * 32, previous=b"o" * 32)


def sigv4(data: bytes) -> None:
    """A head of any kind is refused, or claims something that a secret nobody has does not prove."""
    headers: RawHeaders = []
    for line in data.split(b"\n")[1:]:
        name, _, value = line.partition(b":")
        headers.append((name.strip().lower(), value.strip()))
    path, _, query = data.split(b"\n")[0].partition(b"?")
    given = dict(headers).get(b"authorization", data)
    try:
        claim = _SIGNATURES.claim("POST", path, query, headers, given)
    except Refusal:
        return
    if claim.proven("secret-that-nobody-has", data):
        raise Finding("a signature out of nothing")


def keys(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    for word in (text, data.decode("latin-1")):
        good = _KEYRING.is_bearer(word) or _KEYRING.is_admin(word)
        if good and (not word.isascii() or word[-6:] != checksum(word[:-6])):
            raise Finding(f"{word!r} is a key")
        if bool(_KEYRING.bearer_digests(word)) != _KEYRING.is_bearer(word):
            raise Finding("digests of no key")
        _KEYRING.admin_digests(word)
        if is_access_key_id(word) and not (word.isascii() and word.isalnum() and len(word) == 20):
            raise Finding(f"{word!r} is an access key id")
        if _KEYRING.is_bearer(word) and word in redacted(f"a {word} b"):
            raise Finding("a key that redaction does not see")
        try:
            parse_master_key(word)
        except ConfigurationError as error:
            if len(word) > 12 and word in str(error):
                raise Finding("the message repeats the master key") from None


def routes(data: bytes) -> None:
    wire_of(data)
    for look in (lambda: match("POST", data), lambda: match("GET", data), lambda: listed(data)):
        try:
            found = look()
        except Refusal:
            continue
        name = getattr(found, "model", found)
        if isinstance(name, str) and (".." in name or not name.isprintable()):
            raise Finding(f"the model {name!r}")


def policies(data: bytes) -> None:
    try:
        node = strict.parse(data)
    except strict.BrokenFileError as broken:
        if broken.line < 1 or len(str(broken)) > 2000:
            raise Finding(f"line {broken.line}: {broken}") from None
        return
    if node is None:
        return
    problems: list[strict.Problem] = []
    read_plan(node, Reader("plans/x.yaml", problems), "x", POLICIES.models)
    read_rules(node, Reader("rules/x.yaml", problems), [], [])
    for problem in problems:
        if not str(problem).isprintable() or problem.line < 1:
            raise Finding(f"a problem that cannot be shown: {problem!r}")


TARGETS = {
    target.name: target
    for target in (
        Target("eventstream", eventstream, mutate.of_frames),
        Target("sse", sse, mutate.of_bytes),
        Target("usage", usage, mutate.of_json),
        Target("prices", prices, mutate.of_bytes),
        Target("requests", requests, mutate.of_json),
        Target("jsonbody", jsonbody, mutate.of_json),
        Target("fingerprints", fingerprints, mutate.of_json),
        Target("sigv4", sigv4, mutate.of_bytes),
        Target("keys", keys, mutate.of_bytes),
        Target("routes", routes, mutate.of_bytes),
        Target("policies", policies, mutate.of_bytes),
    )
}
