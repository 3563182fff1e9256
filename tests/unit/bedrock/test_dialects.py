import json

import pytest

from proxy.bedrock.dialects import (
    CONVERSE,
    FAMILIES,
    native,
    parse,
)
from proxy.errors import Invalid, UnboundedCost, UnknownModel
from tests.unit.bedrock.support import (
    BLOCKS,
    CLAUDE,
    CLAUDE_1M,
    LLAMA_405B,
    NO_OUTPUT,
    SMALLEST,
    USER,
    bound,
    limited,
    model,
)


def test_every_family_has_its_smallest_body_here():
    assert FAMILIES.keys() == SMALLEST.keys() | NO_OUTPUT.keys()
    with pytest.raises(UnknownModel):
        native("nova-reel")


@pytest.mark.parametrize("family", SMALLEST)
def test_a_limit_is_read_injected_lowered_and_else_left_alone(family):
    dialect, (body, with_limit) = native(family), SMALLEST[family]
    assert bound(dialect, body).output_limit is None
    assert bound(dialect, body | with_limit).output_limit == 64
    assert limited(dialect, body, 64) == body | with_limit
    assert bound(dialect, limited(dialect, body | with_limit, 10)).output_limit == 10
    raw = json.dumps(body | with_limit).encode()
    assert dialect.with_output_limit(parse(raw), raw, 64) == raw
    spaced = b" \n" + json.dumps(body, indent=2).encode() + b" "
    assert json.loads(dialect.with_output_limit(parse(spaced), spaced, 64)) == body | with_limit


@pytest.mark.parametrize("family", NO_OUTPUT)
def test_what_makes_no_text_has_no_output(family):
    found = bound(native(family), NO_OUTPUT[family])
    assert found.output_limit == 0 and found.deterministic
    assert found.images == (1 if "image" in family or family in {"nova-canvas", "stability"} else 0)
    assert limited(native(family), NO_OUTPUT[family], 5) == NO_OUTPUT[family]


@pytest.mark.parametrize("value", [-1, 0, 10**18, 1.5, "10", True, [], {}])
@pytest.mark.parametrize("family", SMALLEST)
def test_a_limit_that_is_no_whole_number_from_1_is_refused(family, value):
    body, with_limit = SMALLEST[family]
    ((name, inner),) = with_limit.items()
    wrong = {name: dict.fromkeys(inner, value) if isinstance(inner, dict) else value}
    with pytest.raises(Invalid):
        bound(native(family), body | wrong)


@pytest.mark.parametrize("family", sorted(SMALLEST.keys() - {"openai", "openai-compatible"}))
def test_a_null_limit_is_refused_where_it_means_nothing(family):
    body, with_limit = SMALLEST[family]
    ((name, inner),) = with_limit.items()
    with pytest.raises(Invalid):
        bound(native(family), body | {name: dict.fromkeys(inner) if isinstance(inner, dict) else None})


def test_a_null_limit_is_none_in_openais_words():
    body = {"messages": USER, "max_tokens": None}
    assert bound(native("openai"), body).output_limit is None
    assert limited(native("openai"), body, 9)["max_completion_tokens"] == 9


@pytest.mark.parametrize("family", sorted(SMALLEST.keys() | NO_OUTPUT.keys()))
@pytest.mark.parametrize(
    "name", ["best_of", "mcp_servers", "prediction", "web_search_options", "background", "samples2"]
)
def test_an_unknown_field_is_refused(family, name):
    body = SMALLEST[family][0] if family in SMALLEST else NO_OUTPUT[family]
    with pytest.raises(UnboundedCost):
        bound(native(family), body | {name: 2})


@pytest.mark.parametrize(
    ("family", "field"),
    [("jamba", "n"), ("mistral", "n"), ("openai", "n"), ("openai-compatible", "n"),
     ("cohere-command-text", "num_generations"), ("ai21-j2", "numResults")],
)  # fmt: skip
def test_choices_multiply(family, field):
    body, with_limit = SMALLEST[family]
    assert bound(native(family), body | with_limit | {field: 16}).choices == 16
    for wrong in (0, -1, 1.0, True, "2", 10**6):
        with pytest.raises(Invalid):
            bound(native(family), body | {field: wrong})


def test_llama_counts_its_prompt_by_bytes_and_keeps_its_documented_maximum():
    found = bound(native("llama"), {"prompt": "é" * 100, "max_gen_len": 2048, "temperature": 0}, LLAMA_405B)
    assert found.input_tokens == 200 + 64 and found.deterministic and not found.tools
    with pytest.raises(Invalid, match="2048"):
        bound(native("llama"), {"prompt": "x", "max_gen_len": 2049}, LLAMA_405B)
    for wrong in (
        {"temperature": 1.1},
        {"temperature": "0"},
        {"temperature": True},
        {"top_p": -0.1},
        {"prompt": None},
    ):
        with pytest.raises(Invalid):
            bound(native("llama"), {"prompt": "x"} | wrong, LLAMA_405B)


def test_images_may_fill_the_context():
    assert bound(native("llama"), {"prompt": "x", "images": ["aGk="]}).input_tokens == 100_000
    image = {"image": {"format": "png", "source": {"bytes": "aGk="}}}
    messages = [{"role": "user", "content": [image]}]
    assert bound(CONVERSE, {"messages": messages}, model("nova")).input_tokens == 100_000
    assert bound(native("nova"), {"messages": messages}).input_tokens == 100_000
    part = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}
    assert (
        bound(native("openai"), {"messages": [{"role": "user", "content": [part]}]}).input_tokens == 100_000
    )
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
    nested = {"type": "tool_result", "tool_use_id": "t", "content": [block]}
    for one in (block, nested):
        found = bound(
            native("anthropic"), {"messages": [{"role": "user", "content": [one]}], "max_tokens": 1}
        )
        assert found.input_tokens == 100_000


def test_headers_set_the_terms_of_an_invocation():
    headers = {
        "x-amzn-bedrock-service-tier": "priority",
        "x-amzn-bedrock-performanceconfig-latency": "optimized",
        "x-amzn-bedrock-guardrailidentifier": "g1",
        "x-amzn-bedrock-guardrailversion": "1",
        "x-amzn-bedrock-request-metadata": '{"team": "blue"}',
        "x-amzn-bedrock-trace": "ENABLED",
        "content-type": "application/json",
    }
    found = bound(native("llama"), {"prompt": "x"}, LLAMA_405B, headers)
    assert (found.tier, found.latency, found.guardrail_id) == ("priority", "optimized", "g1")
    assert found.guardrail and found.metadata == (("team", "blue"),)
    for name, value, kind in (
        ("x-amzn-bedrock-service-tier", "ultrafast", Invalid),
        ("x-amzn-bedrock-performanceconfig-latency", "x", Invalid),
        ("x-amzn-bedrock-request-metadata", "[]", Invalid),
        ("x-amzn-bedrock-request-metadata", '{"a": "ü"}', Invalid),
        ("x-amzn-bedrock-number-of-answers", "5", UnboundedCost),
    ):
        with pytest.raises(kind):
            bound(native("llama"), {"prompt": "x"}, LLAMA_405B, {name: value})


@pytest.mark.parametrize(
    "change",
    [
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]},
        {"tools": [{"type": "web_fetch_20250910", "name": "web_fetch"}]},
        {"tools": [{"type": "mcp_toolset", "mcp_server_name": "x"}]},
        {"tools": [{"name": "x", "input_schema": {}, "allowed_callers": ["code_execution_20250825"]}]},
        {"mcp_servers": []},
        {"container": "c"},
        {"speed": "fast"},
        {"inference_geo": "us"},
        {"anthropic_beta": ["context-1m-2025-08-07"]},
        {"anthropic_beta": ["fast-mode-2026-02-01"]},
        {"anthropic_beta": ["files-api-2025-04-14"]},
        {"context_management": {"edits": [{"type": "compact_20260112"}]}},
        {"messages": [{"role": "user", "content": [{"type": "container_upload", "file_id": "f"}]}]},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "document", "source": {"type": "file", "file_id": "f"}}],
                }
            ]
        },
        {"messages": [{"role": "user", "content": [{"type": "server_tool_use", "name": "x"}]}]},
        {"amazon-bedrock-guardrailConfig": {"guardrailIdentifier": "g"}},
    ],
)
def test_claude_refuses_what_runs_in_the_service_or_has_no_known_price(change):
    with pytest.raises(UnboundedCost):
        bound(native("anthropic"), {"messages": USER, "max_tokens": 1} | change, CLAUDE)


def test_claude_serves_what_clients_really_send():
    body = {
        "anthropic_version": "bedrock-2023-05-31",
        "anthropic_beta": [
            "claude-code-20250219",
            "interleaved-thinking-2025-05-14",
            "context-1m-2025-08-07",
        ],
        "max_tokens": 1000,
        "thinking": {"type": "enabled", "budget_tokens": 30_000},
        "system": [{"type": "text", "text": "You are."}],
        "tools": [
            {"name": "get", "description": "x", "input_schema": {"type": "object"}},
            {"type": "bash_20250124", "name": "bash"},
            {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool", "max_characters": 10_000},
        ],
        "messages": [
            {"role": "user", "content": "Hi"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "tool_use", "id": "t", "name": "get", "input": {"a": [1]}},
                ],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "42"}]},
        ],
        "context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]},
    }
    found = bound(native("anthropic"), body, CLAUDE_1M)
    assert found.output_limit == 30_000 and found.tools
    lower = limited(native("anthropic"), body, 5000)
    assert lower["max_tokens"] == 1000 and lower["thinking"]["budget_tokens"] == 4999


def test_nova_with_high_effort_writes_without_a_limit():
    body = {"messages": BLOCKS, "reasoningConfig": {"type": "enabled", "maxReasoningEffort": "high"}}
    assert bound(native("nova"), body).output_limit == 128_000
    extra = {"messages": BLOCKS, "additionalModelRequestFields": {"reasoningConfig": body["reasoningConfig"]}}
    assert bound(CONVERSE, extra, model("nova")).output_limit == 128_000


def test_image_counts_are_bound():
    body = {"taskType": "TEXT_IMAGE", "imageGenerationConfig": {"numberOfImages": 5, "quality": "premium"}}
    assert bound(native("nova-canvas"), body).images == 5
    assert bound(native("stability"), {"text_prompts": [], "samples": 3}).images == 3
    for wrong in (0, 11, "2", None, 1.0):
        with pytest.raises(Invalid):
            bound(native("nova-canvas"), {"imageGenerationConfig": {"numberOfImages": wrong}})


@pytest.mark.parametrize(
    ("family", "body"),
    [
        ("titan-embed", {"inputText": "x", "inputImage": "aGk="}),
        ("cohere-embed", {"texts": ["x"], "images": ["data:image/png;base64,aGk="]}),
        ("nova-embed", {"taskType": "SINGLE_EMBEDDING", "singleEmbeddingParams": {"video": {}}}),
        ("nova-embed", {"taskType": "SEGMENTED_EMBEDDING"}),
        ("openai", {"messages": USER, "store": True}),
        ("openai", {"messages": USER, "modalities": ["text", "audio"]}),
        ("openai", {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}),
        ("openai", {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]}),
        ("openai", {"messages": USER, "tools": [{"type": "web_search"}]}),
        ("openai", {"messages": [{"role": "user", "content": "x", "audio": {"id": "a"}}]}),
    ],
)
def test_other_families_refuse_what_they_cannot_bound(family, body):
    with pytest.raises(UnboundedCost):
        bound(native(family), body)


def test_a_body_may_not_name_another_model_than_its_url():
    served_by = model("openai", id="openai.gpt-oss-120b-1:0")
    for same in ("openai.gpt-oss-120b-1:0", None):
        assert bound(native("openai"), {"messages": USER, "model": same}, served_by)
    for other in ("openai.gpt-5.6-sol", 5):
        with pytest.raises(Invalid):
            bound(native("openai"), {"messages": USER, "model": other}, served_by)
