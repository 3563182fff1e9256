"""The inference routes: raw path in, endpoint out. Everything that is not here is refused.

Paths are matched as received, before any percent-decoding: an ARN's `%2F` must stay inside its
segment, and an odd spelling of a path is no path of ours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal
from urllib.parse import unquote

from proxy.domain.ledger import Operation
from proxy.errors import Forbidden, Invalid, NotServed

Wire = Literal["bedrock", "openai", "anthropic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One governed route. `stream` None means that the body decides."""

    operation: Operation
    wire: Wire
    stream: bool | None
    #: decoded model id or ARN, None when the body names it
    model: str | None = None
    #: for ApplyGuardrail: identifier and version
    guardrail: tuple[str, str] | None = None


_NATIVE = {
    b"invoke": (Operation.INVOKE_MODEL, False),
    b"invoke-with-response-stream": (Operation.INVOKE_MODEL_WITH_RESPONSE_STREAM, True),
    b"converse": (Operation.CONVERSE, False),
    b"converse-stream": (Operation.CONVERSE_STREAM, True),
    b"count-tokens": (Operation.COUNT_TOKENS, False),
}

_CHAT = Endpoint(operation=Operation.CHAT_COMPLETIONS, wire="openai", stream=None)
_RESPONSES = Endpoint(operation=Operation.RESPONSES, wire="openai", stream=None)
_MESSAGES = Endpoint(operation=Operation.MESSAGES, wire="anthropic", stream=None)
_COUNT = Endpoint(operation=Operation.MESSAGES_COUNT_TOKENS, wire="anthropic", stream=False)

#: fixed POST paths; `/v1/...` are the spellings that SDKs use with the proxy's root as base URL
FIXED: dict[bytes, Endpoint] = {
    b"/openai/v1/chat/completions": _CHAT,
    b"/v1/chat/completions": _CHAT,
    b"/openai/v1/responses": _RESPONSES,
    b"/v1/responses": _RESPONSES,
    b"/anthropic/v1/messages": _MESSAGES,
    b"/v1/messages": _MESSAGES,
    b"/anthropic/v1/messages/count_tokens": _COUNT,
    b"/v1/messages/count_tokens": _COUNT,
}
MODEL_LISTS = (b"/openai/v1/models", b"/v1/models")

_GUARDRAIL_VERSION = re.compile(r"[1-9][0-9]{0,7}|DRAFT")

_DOCS = "https://docs.aws.amazon.com/bedrock/latest/userguide/"
#: operations that Bedrock has and a hard budget cannot hold, with the reason a client reads
_UNGOVERNED = (
    (b"/async-invoke", f"asynchronous invocation writes its result to S3 after the call has ended, so its cost cannot be settled here ({_DOCS}inference-invoke.html)"),
    (b"/model-invocation-job", f"batch inference is billed outside of the runtime endpoint ({_DOCS}batch-inference.html)"),
    (b"/agents", f"agents call models on their own, so their cost has no bound ({_DOCS}agents.html)"),
    (b"/knowledgebases", f"knowledge bases call models on their own, so their cost has no bound ({_DOCS}knowledge-base.html)"),
    (b"/retrieveAndGenerate", f"knowledge bases call models on their own, so their cost has no bound ({_DOCS}knowledge-base.html)"),
    (b"/flows", f"flows call models on their own, so their cost has no bound ({_DOCS}flows.html)"),
    (b"/guardrail-checks", "InvokeGuardrailChecks has no published price"),
)  # fmt: skip


def match(method: str, raw_path: bytes) -> Endpoint:
    """The endpoint of a request line. Raises `NotServed`, `Forbidden` or `Invalid`."""
    fixed = FIXED.get(raw_path)
    if fixed is None:
        fixed = _match_native(raw_path)
    if method != "POST":
        raise NotServed(f"this path takes POST, not {method}")
    return fixed


def listed(raw_path: bytes) -> str | None:
    """The model that a `GET .../models/{id}` asks about, "" for the whole list, None for other paths.
    An id may be written with or without percent-encoding, an ARN's slash included.
    """
    for root in MODEL_LISTS:
        if raw_path == root:
            return ""
        if raw_path.startswith(root + b"/") and len(raw_path) > len(root) + 1:
            return _decode(raw_path[len(root) + 1 :])
    return None


@lru_cache(maxsize=1024)
def _match_native(raw_path: bytes) -> Endpoint:
    """Remembered: clients name few models. What is refused is not."""
    parts = raw_path.split(b"/")
    if len(parts) == 4 and parts[1] == b"model" and parts[2]:
        known = _NATIVE.get(parts[3])
        if known is not None:
            operation, stream = known
            return Endpoint(operation=operation, wire="bedrock", stream=stream, model=_decode(parts[2]))
        if parts[3] == b"invoke-with-bidirectional-stream":
            raise Forbidden(
                "bidirectional streams are not served: their cost has no bound before they end "
                f"({_DOCS}bedrock-runtime_example_bedrock-runtime_InvokeModelWithBidirectionalStream_AmazonNovaSonic_section.html)",
                reason="not_governed",
            )
    if len(parts) == 6 and parts[1] == b"guardrail" and parts[3] == b"version" and parts[5] == b"apply":
        identifier, version = _decode(parts[2]), _decode(parts[4])
        if not (identifier and _GUARDRAIL_VERSION.fullmatch(version)):
            raise Invalid("The provided guardrail identifier or version is invalid.")
        return Endpoint(
            operation=Operation.APPLY_GUARDRAIL, wire="bedrock", stream=False, guardrail=(identifier, version)
        )
    for prefix, why in _UNGOVERNED:
        if raw_path == prefix or raw_path.startswith(prefix + b"/"):
            raise Forbidden(f"not served by this proxy: {why}", reason="not_governed")
    raise NotServed("no such route")


def _decode(segment: bytes) -> str:
    try:
        text = unquote(segment.decode("ascii"), errors="strict")
    except UnicodeDecodeError:
        raise Invalid("the path is not valid UTF-8") from None
    if len(text) > 2048 or not text.isprintable() or ".." in text:
        raise Invalid("The provided model identifier is invalid.")
    return text


def wire_of(raw_path: bytes) -> Wire:
    """The dialect in which a path's errors are told, also for paths that are not served."""
    if raw_path.startswith((b"/openai/", b"/v1/chat", b"/v1/responses", b"/v1/models")):
        return "openai"
    if raw_path.startswith((b"/anthropic/", b"/v1/messages")):
        return "anthropic"
    return "bedrock"
