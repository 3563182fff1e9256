"""What the tests of the wire share: models, captured requests, frames as Bedrock sends them."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from proxy.bedrock.dialects import parse
from proxy.bedrock.eventstream import event_frame
from proxy.domain.catalogue import Model

CORPUS = Path(__file__).parent / "corpus"


def model(family: str, **changes: Any) -> Model:
    facts: dict[str, Any] = {
        "id": f"vendor.{family}-v1:0",
        "provider": "Vendor",
        "name": family,
        "family": family,
        "context_tokens": 100_000,
        "max_output_tokens": 4096,
    }
    return Model(**(facts | changes))


LLAMA_405B = model(
    "llama",
    id="meta.llama3-1-405b-instruct-v1:0",
    context_tokens=128_000,
    default_output_tokens=512,
    native_max_output_tokens=2048,
)


def captured() -> list[dict[str, Any]]:
    """Requests of stock clients as they came over the wire: client, path, headers in order, body."""
    return [json.loads(line) for line in (CORPUS / "requests.jsonl").read_text().splitlines()]


def chunk(native: Mapping[str, Any], padding: str = "abcdefghijk") -> bytes:
    encoded = base64.b64encode(orjson.dumps(native)).decode()
    return event_frame("chunk", orjson.dumps({"bytes": encoded, "p": padding}))


def metrics(given: int, written: int, **more: int) -> dict[str, Any]:
    return {
        "amazon-bedrock-invocationMetrics": {
            "inputTokenCount": given,
            "outputTokenCount": written,
            "invocationLatency": 900,
            "firstByteLatency": 100,
            **more,
        }
    }


def llama_stream(tokens: int = 5) -> list[bytes]:
    frames = [
        chunk(
            {
                "generation": f" word{number}",
                "prompt_token_count": 9 if number == 0 else None,
                "generation_token_count": number + 1,
                "stop_reason": None,
            }
        )
        for number in range(tokens)
    ]
    last = {
        "generation": "",
        "prompt_token_count": None,
        "generation_token_count": tokens,
        "stop_reason": "stop",
    }
    return [*frames, chunk(last | metrics(9, tokens))]


def sse(*events: tuple[str, Any]) -> bytes:
    """Server-sent events; a name of "" leaves the `event:` line out."""
    out = b""
    for name, data in events:
        text = data if isinstance(data, bytes) else orjson.dumps(data)
        out += (f"event: {name}\n".encode() if name else b"") + b"data: " + text + b"\n\n"
    return out


USER = [{"role": "user", "content": "Hi"}]


BLOCKS = [{"role": "user", "content": [{"text": "Hi"}]}]


CLAUDE = model("anthropic", context_tokens=200_000, max_output_tokens=64_000)


CLAUDE_1M = model("anthropic", context_tokens=1_000_000, max_output_tokens=64_000)


def bound(dialect, body, served_by=None, headers=None):
    raw = json.dumps(body).encode()
    return dialect.bound(parse(raw), raw, served_by or model(dialect.name), headers or {})


def limited(dialect, body, limit):
    raw = json.dumps(body).encode()
    return json.loads(dialect.with_output_limit(parse(raw), raw, limit))


#: family -> (body without a limit, the same with a limit of 64)
SMALLEST: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": ({"prompt": "Hi"}, {"max_gen_len": 64}),
    "anthropic": ({"anthropic_version": "2026-10-21", "messages": USER}, {"max_tokens": 64}),
    "anthropic-text": ({"prompt": "\n\nHuman: Hi\n\nAssistant:"}, {"max_tokens_to_sample": 64}),
    "nova": ({"messages": BLOCKS}, {"inferenceConfig": {"maxTokens": 64}}),
    "titan-text": ({"inputText": "Hi"}, {"textGenerationConfig": {"maxTokenCount": 64}}),
    "mistral": ({"messages": USER}, {"max_tokens": 64}),
    "mistral-text": ({"prompt": "<s>[INST] Hi [/INST]"}, {"max_tokens": 64}),
    "cohere-command": ({"message": "Hi"}, {"max_tokens": 64}),
    "cohere-command-text": ({"prompt": "Hi"}, {"max_tokens": 64}),
    "jamba": ({"messages": USER}, {"max_tokens": 64}),
    "ai21-j2": ({"prompt": "Hi"}, {"maxTokens": 64}),
    "deepseek": ({"prompt": "Hi"}, {"max_tokens": 64}),
    "openai": ({"messages": USER}, {"max_completion_tokens": 64}),
    "openai-compatible": ({"messages": USER}, {"max_tokens": 64}),
}


NO_OUTPUT: dict[str, dict[str, Any]] = {
    "titan-embed": {"inputText": "Hi", "dimensions": 256},
    "nova-embed": {"taskType": "SINGLE_EMBEDDING", "singleEmbeddingParams": {"text": {"value": "Hi"}}},
    "cohere-embed": {"texts": ["Hi", "Ho"], "input_type": "search_query"},
    "nova-canvas": {"taskType": "TEXT_IMAGE", "textToImageParams": {"text": "a cat"}},
    "titan-image": {"taskType": "TEXT_IMAGE", "textToImageParams": {"text": "a cat"}},
    "stability": {"prompt": "a cat"},
}
