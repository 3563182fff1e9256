"""Chat Completions said in Converse: requests.

Source: OpenAI's API reference (fields and their meaning), the `bedrock-runtime` service model (Converse).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from proxy.bedrock.dialects import CONVERSE
from proxy.bedrock.dialects.bounds import list_of, object_of
from proxy.bedrock.translate.chat_answers import ChatOverConverse
from proxy.bedrock.translate.messages import messages_of
from proxy.domain.ledger import Operation
from proxy.errors import Invalid
from proxy.ports import Spoken

#: labels and hints: an answer without them is still the answer to the question
IGNORED = frozenset(
    {
        "user", "metadata", "safety_identifier", "prompt_cache_key", "seed", "verbosity", "reasoning_effort",
        "parallel_tool_calls", "stream_options",
    }
)  # fmt: skip
_SAID = frozenset(
    {
        "model", "messages", "stream", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop",
        "tools", "tool_choice", "response_format", "service_tier",
    }
)  # fmt: skip
#: values that mean nothing; with any other the field changes the answer in a way Converse cannot
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "store": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "modalities": (["text"],),
}
_EMPTY_SCHEMA: dict[str, Any] = {"type": "object", "properties": {}}


def chat_over_converse(body: dict[str, Any], headers: Mapping[str, str]) -> Spoken:
    """The request as Converse or ConverseStream. Raises `Invalid` for what Converse cannot say."""
    said = {name: value for name, value in body.items() if value is not None}
    _check_fields(said)
    system, messages = messages_of(said.get("messages"))
    converse: dict[str, Any] = {"messages": messages}
    if system:
        converse["system"] = system
    inference = _inference(said)
    if inference:
        converse["inferenceConfig"] = inference
    tools = _tools(said, messages)
    if tools:
        converse["toolConfig"] = tools
    output = _output(said.get("response_format"))
    if output:
        converse["outputConfig"] = output
    if said.get("service_tier", "auto") != "auto":
        converse["serviceTier"] = {"type": said["service_tier"]}
    _terms(headers, converse)
    stream = said.get("stream", False)
    options = said.get("stream_options")
    return Spoken(
        operation=Operation.CONVERSE_STREAM if stream else Operation.CONVERSE,
        dialect=ChatOverConverse(
            CONVERSE,
            model=str(body.get("model")),
            stream=stream,
            include_usage=type(options) is dict and options.get("include_usage") is True,
        ),
        body=converse,
        raw=orjson.dumps(converse),
        headers={"accept": "application/vnd.amazon.eventstream" if stream else "application/json"},
    )


def _check_fields(said: Mapping[str, Any]) -> None:
    for name, value in said.items():
        if name in _SAID or name in IGNORED:
            continue
        if name not in _NEUTRAL:
            raise Invalid(f"{name[:64]!r} is not supported for this model, which is served through Converse.")
        if value not in _NEUTRAL[name]:
            raise Invalid(f"{name} is not supported for this model, which is served through Converse.")
    if type(said.get("stream", False)) is not bool:
        raise Invalid("stream must be true or false.")


def _inference(said: Mapping[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    limits = [said[name] for name in ("max_completion_tokens", "max_tokens") if name in said]
    for limit in limits:
        if type(limit) is not int:
            raise Invalid("max_completion_tokens must be a whole number.")
    if limits:
        config["maxTokens"] = max(limits)
    for name, member in (("temperature", "temperature"), ("top_p", "topP")):
        if name in said:
            config[member] = said[name]
    stop = said.get("stop")
    if stop:
        config["stopSequences"] = [stop] if type(stop) is str else list_of(stop, "stop")
    return config


def _tools(said: Mapping[str, Any], messages: list[dict[str, Any]]) -> dict[str, Any]:
    tools = [_tool(object_of(tool, "A tool")) for tool in list_of(said.get("tools", []), "tools")]
    if not tools:
        return {}
    choice = said.get("tool_choice", "auto")
    if choice == "none":
        # Converse has no such choice; it only needs the tools where the conversation used one
        used = any("toolUse" in block or "toolResult" in block for m in messages for block in m["content"])
        return {"tools": tools} if used else {}
    if choice == "auto":
        return {"tools": tools}
    if choice == "required":
        return {"tools": tools, "toolChoice": {"any": {}}}
    named = object_of(choice, "tool_choice")
    function = named.get("function")
    if named.get("type") != "function" or type(function) is not dict or type(function.get("name")) is not str:
        raise Invalid("tool_choice must be auto, none, required, or name a function.")
    return {"tools": tools, "toolChoice": {"tool": {"name": function["name"]}}}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type", "function") != "function":
        raise Invalid(f"Tools of type {str(tool.get('type'))[:64]!r} are not supported for this model.")
    function = object_of(tool.get("function"), "A tool's function")
    spec: dict[str, Any] = {
        "name": function.get("name"),
        "inputSchema": {"json": function.get("parameters") or _EMPTY_SCHEMA},
    }
    if function.get("description"):
        spec["description"] = function["description"]
    if function.get("strict") is True:
        spec["strict"] = True
    return {"toolSpec": spec}


def _output(wanted: Any) -> dict[str, Any]:
    if wanted is None:
        return {}
    kind = object_of(wanted, "response_format").get("type")
    if kind == "text":
        return {}
    if kind != "json_schema":
        raise Invalid(
            "response_format is served as text or json_schema for this model; json_object is not in Converse."
        )
    given = object_of(wanted.get("json_schema"), "response_format.json_schema")
    schema = {
        name: given[name] for name in ("name", "description") if type(given.get(name)) is str and given[name]
    }
    schema["schema"] = orjson.dumps(object_of(given.get("schema"), "json_schema.schema")).decode()
    return {"textFormat": {"type": "json_schema", "structure": {"jsonSchema": schema}}}


_PREFIX = "x-amzn-bedrock-"


def _terms(headers: Mapping[str, str], converse: dict[str, Any]) -> None:
    """What Bedrock's headers ask for on the route, in Converse's own fields."""
    guardrail = headers.get(_PREFIX + "guardrailidentifier")
    if guardrail:
        config = {"guardrailIdentifier": guardrail}
        version = headers.get(_PREFIX + "guardrailversion")
        if version:
            config["guardrailVersion"] = version
        trace = headers.get(_PREFIX + "trace", "").lower()
        if trace:
            config["trace"] = trace
        converse["guardrailConfig"] = config
    tier = headers.get(_PREFIX + "service-tier")
    if tier:
        if converse.get("serviceTier", {}).get("type", tier) != tier:
            raise Invalid("Headers and body of the request contradict each other.")
        converse["serviceTier"] = {"type": tier}
    latency = headers.get(_PREFIX + "performanceconfig-latency")
    if latency:
        converse["performanceConfig"] = {"latency": latency}
    metadata = headers.get(_PREFIX + "request-metadata")
    if metadata:
        try:
            converse["requestMetadata"] = orjson.loads(metadata)
        except orjson.JSONDecodeError:
            raise Invalid("The request metadata header must be a JSON object.") from None
