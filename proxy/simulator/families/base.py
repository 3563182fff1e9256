"""What every family reads from a request and writes into an answer."""
# ruff: noqa: ARG002 - one signature for every dialect

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, ClassVar, Literal

import orjson

from proxy.simulator import tokens
from proxy.simulator.catalog import Model
from proxy.simulator.errors import Refusal, invalid
from proxy.simulator.prices import Usage

Json = dict[str, Any]
Stop = Literal["end", "length", "tool", "guardrail"]


@dataclass(frozen=True, slots=True)
class Mark:
    """A cache checkpoint: everything before it, by length and by content."""

    tokens: int
    ttl: Literal["5m", "1h"]
    digest: bytes


class Prompt:
    """Collects what a request says, in order, and counts it."""

    __slots__ = ("characters", "images", "marks", "texts", "tokens")

    def __init__(self, overhead_tokens: int = 0) -> None:
        self.tokens = overhead_tokens
        self.texts: list[str] = []
        self.marks: list[Mark] = []
        self.images = 0
        self.characters = 0

    def add(self, text: str) -> None:
        self.texts.append(text)
        self.tokens += tokens.count(text)
        self.characters += len(text)

    def add_tools(self, tools: object) -> None:
        """Tool definitions as compact JSON, and the hidden prompt that comes with them."""
        definition = orjson.dumps(tools)
        self.texts.append(definition.decode())
        self.tokens += tokens.count_bytes(definition) + tokens.TOOL_PROMPT_TOKENS

    def add_image(self, fingerprint: str) -> None:
        self.texts.append(fingerprint)
        self.images += 1
        self.tokens += tokens.IMAGE_TOKENS

    def add_document(self, base64_text: str, context_tokens: int) -> None:
        """A quarter of the document's bytes and a page's worth, never more than half the context."""
        self.texts.append(base64_text[:200])
        self.tokens += min(context_tokens // 2, 1_500 + len(base64_text) * 3 // 16)

    def mark(self, ttl: object) -> None:
        if ttl not in {None, "5m", "1h"}:
            raise invalid("The cache checkpoint's ttl must be 5m or 1h.")
        digest = blake2b("\x00".join(self.texts).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        self.marks.append(Mark(self.tokens, "1h" if ttl == "1h" else "5m", digest))

    @property
    def text(self) -> str:
        return "\n".join(self.texts)


@dataclass(slots=True)
class Ask:
    """A request, understood."""

    prompt: Prompt
    #: Most output tokens of one choice.
    limit: int
    #: Choices asked for; each is generated, and billed, in full.
    choices: int = 1
    #: Name and argument schema of the tool that the request forces the model to use.
    tool: tuple[str, Any] | None = None
    #: None unless the request is for pictures: width, height, quality and number.
    image: tuple[int, int, str, int] | None = None
    #: True when no text is generated (embeddings, reranking, pictures).
    silent: bool = False
    queries: int = 0
    #: Whatever the family needs again to write the answer.
    extra: Json = field(default_factory=dict)


@dataclass(slots=True)
class Choice:
    words: Sequence[str]
    stop: Stop
    tool_name: str = ""
    tool_input: Json | None = None

    @property
    def text(self) -> str:
        return "".join(self.words)

    @property
    def tool_json(self) -> str:
        return orjson.dumps(self.tool_input).decode()


@dataclass(slots=True)
class Reply:
    """What the model says; families only dress it."""

    call_id: str
    seed: int
    model: Model
    choices: list[Choice]
    #: Tokens in one event of a stream.
    step: int = 1
    #: Unix seconds.
    created: int = 0

    @property
    def first(self) -> Choice:
        return self.choices[0]

    def pieces(self, choice: Choice) -> list[tuple[str, int]]:
        """Text of each event and the output tokens said by its end."""
        words, step = choice.words, self.step
        if step == 1:
            return [(word, place) for place, word in enumerate(words, 1)]
        return [
            ("".join(words[start : start + step]), min(start + step, len(words)))
            for start in range(0, len(words), step)
        ]

    def vector(self, size: int, place: int = 0) -> list[float]:
        """A made-up embedding."""
        return [((self.seed + place * 7919 + axis * 104_729) % 2001 - 1000) / 1000 for axis in range(size)]


class Family:
    """One native dialect. ``usage`` is what to report, or None when usage is to be left out."""

    #: Which of the token-count headers InvokeModel carries.
    count_headers: ClassVar[Literal["both", "input", "none"]] = "both"
    chats: ClassVar[bool] = True
    counts_tokens: ClassVar[bool] = False

    def read(self, body: Json, model: Model) -> Ask:
        """Raises Refusal for a body that the model would not accept."""
        raise NotImplementedError

    def whole(self, ask: Ask, reply: Reply, usage: Usage | None) -> Json:
        raise NotImplementedError

    def events(self, ask: Ask, reply: Reply, usage: Usage | None) -> list[Json]:
        """Native chunks of a stream, in order; the invocation metrics are added to the last."""
        raise invalid("The model is unsupported for streaming.")


def malformed(where: str, problem: str) -> Refusal:
    return invalid(f"Malformed input request: #{where}: {problem}, please reformat your input and try again.")


def _type_name(value: object) -> str:
    names = {
        bool: "Boolean",
        int: "Integer",
        float: "Number",
        str: "String",
        list: "JSONArray",
        dict: "JSONObject",
    }
    return names.get(type(value), "Null")


def integer(body: Json, key: str, low: int = 1, high: int | None = None) -> int | None:
    """An optional integer member; None when absent or null. Raises Refusal on a wrong type or range."""
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise malformed(f"/{key}", f"expected type: Integer, found: {_type_name(value)}")
    if value < low:
        raise malformed(f"/{key}", f"{value} is not greater or equal to {low}")
    if high is not None and value > high:
        raise malformed(f"/{key}", f"{value} is not less or equal to {high}")
    return value


def number(body: Json, key: str, low: float = 0.0, high: float = 1.0) -> None:
    value = body.get(key)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise malformed(f"/{key}", f"expected type: Number, found: {_type_name(value)}")
    if not low <= value <= high:
        raise malformed(f"/{key}", f"{value} is not between {low} and {high}")


def string(body: Json, key: str) -> str:
    if key not in body:
        raise malformed("", f"required key [{key}] not found")
    value = body[key]
    if not isinstance(value, str):
        raise malformed(f"/{key}", f"expected type: String, found: {_type_name(value)}")
    return value


def array(body: Json, key: str) -> list[Any]:
    if key not in body:
        raise malformed("", f"required key [{key}] not found")
    value = body[key]
    if not isinstance(value, list) or not value:
        raise malformed(f"/{key}", "expected minimum item count: 1")
    return value


def sample_input(schema: object, seed: int) -> Json:
    """An object that satisfies the required properties of a JSON schema, as far as types go."""
    if not isinstance(schema, dict):
        return {}
    properties = schema.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    names = schema.get("required", list(properties))
    return {name: _sample(properties.get(name), seed) for name in names if isinstance(name, str)}


def _sample(schema: object, seed: int) -> Any:
    if not isinstance(schema, dict):
        return "value"
    if schema.get("enum"):
        return schema["enum"][0]
    match schema.get("type"):
        case "integer" | "number":
            return seed % 100
        case "boolean":
            return True
        case "array":
            return [_sample(schema.get("items"), seed)]
        case "object":
            return sample_input(schema, seed)
    return tokens.words(seed, 1)[0]
