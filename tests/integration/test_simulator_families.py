"""Native bodies of every family, guardrails, counting, and the control plane, all through stock boto3."""

import json
from decimal import Decimal
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from proxy.simulator.launch import Simulator

ACCOUNT = "arn:aws:bedrock:us-east-1:123456789012"
LLAMA = "meta.llama3-1-405b-instruct-v1:0"
CLAUDE = "anthropic.claude-sonnet-4-5-20250929-v1:0"
CHAT = [{"role": "user", "content": "Go on. [[tokens=7]]"}]
BLOCKS = [{"role": "user", "content": [{"text": "Go on. [[tokens=7]]"}]}]
PROMPT = "Go on. [[tokens=7]]"

#: Model, body, and where the native answer says its output text (of the first choice).
TEXT_MODELS: list[tuple[str, dict[str, Any], tuple[Any, ...]]] = [
    ("meta.llama3-3-70b-instruct-v1:0", {"prompt": PROMPT}, ("generation",)),
    (CLAUDE, {"max_tokens": 99, "messages": CHAT}, ("content", 0, "text")),
    ("amazon.nova-lite-v1:0", {"messages": BLOCKS}, ("output", "message", "content", 0, "text")),
    ("amazon.titan-text-express-v1", {"inputText": PROMPT}, ("results", 0, "outputText")),
    ("mistral.mistral-7b-instruct-v0:2", {"prompt": PROMPT}, ("outputs", 0, "text")),
    ("mistral.mistral-large-2407-v1:0", {"messages": CHAT}, ("choices", 0, "message", "content")),
    ("cohere.command-r-plus-v1:0", {"message": PROMPT}, ("text",)),
    ("cohere.command-light-text-v14", {"prompt": PROMPT}, ("generations", 0, "text")),
    ("ai21.jamba-1-5-mini-v1:0", {"messages": CHAT}, ("choices", 0, "message", "content")),
    ("deepseek.r1-v1:0", {"prompt": PROMPT}, ("choices", 0, "text")),
    ("openai.gpt-oss-120b-1:0", {"messages": CHAT}, ("choices", 0, "message", "content")),
    ("qwen.qwen3-32b-v1:0", {"messages": CHAT}, ("choices", 0, "message", "content")),
    ("anthropic.claude-instant-v1", {"prompt": PROMPT, "max_tokens_to_sample": 99}, ("completion",)),
]


def connect(service: Any, url: str) -> Any:
    return boto3.client(
        service,
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="AKIAIOSFODNN7EXAMPLE",
        aws_secret_access_key="secret",
        config=Config(retries={"total_max_attempts": 1}),
    )


@pytest.fixture
def bedrock(simulator: Simulator):
    return connect("bedrock-runtime", simulator.url)


@pytest.fixture
def plane(simulator: Simulator):
    return connect("bedrock", simulator.url)


def invoke(client, model: str, body: dict[str, Any], **more):
    answer = client.invoke_model(modelId=model, body=json.dumps(body), **more)
    return json.loads(answer["body"].read()), answer["ResponseMetadata"]["HTTPHeaders"]


@pytest.mark.parametrize(("model", "body", "path"), TEXT_MODELS, ids=[model for model, _, _ in TEXT_MODELS])
def test_text_models(simulator, bedrock, model, body, path):
    answer, headers = invoke(bedrock, model, body)
    text = answer
    for step in path:
        text = text[step]
    assert len(text.split()) == 7
    stream = bedrock.invoke_model_with_response_stream(modelId=model, body=json.dumps(body))
    chunks = [json.loads(event["chunk"]["bytes"]) for event in stream["body"]]
    metrics = chunks[-1]["amazon-bedrock-invocationMetrics"]
    assert (metrics["inputTokenCount"], metrics["outputTokenCount"]) == (
        int(headers["x-amzn-bedrock-input-token-count"]),
        int(headers["x-amzn-bedrock-output-token-count"]),
    )
    chat = bedrock.converse(modelId=model, messages=BLOCKS)
    assert chat["usage"]["outputTokens"] == 7
    first, second, third = simulator.bill()["calls"]
    assert first["cost_usd"] == second["cost_usd"]
    assert Decimal(third["cost_usd"]) > 0
    assert first["input_tokens"] == metrics["inputTokenCount"]


def test_families_without_usage_in_their_bodies(bedrock):
    for model, body, _ in TEXT_MODELS:
        if model.startswith(("mistral.", "deepseek.r1", "cohere.command-r")):
            answer, _ = invoke(bedrock, model, body)
            assert not {"usage", "meta", "prompt_token_count"} & set(answer)
    stream = bedrock.invoke_model_with_response_stream(
        modelId="cohere.command-r-v1:0", body=json.dumps({"message": PROMPT})
    )
    last = [json.loads(event["chunk"]["bytes"]) for event in stream["body"]][-1]
    assert last["response"]["meta"]["billed_units"]["output_tokens"] == 7


def test_every_choice_is_billed(simulator, bedrock):
    answer, _ = invoke(bedrock, "ai21.jamba-1-5-large-v1:0", {"messages": CHAT, "n": 3, "max_tokens": 5})
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["length"] * 3
    assert answer["usage"]["completion_tokens"] == 15
    invoke(bedrock, "cohere.command-light-text-v14", {"prompt": PROMPT, "num_generations": 2})
    assert [call["output_tokens"] for call in simulator.bill()["calls"]] == [15, 14]


def test_embeddings_have_only_an_input_count(simulator, bedrock):
    answer, headers = invoke(
        bedrock, "amazon.titan-embed-text-v2:0", {"inputText": "abcd efgh", "dimensions": 256}
    )
    assert len(answer["embedding"]) == 256
    assert answer["inputTextTokenCount"] == 2
    assert headers["x-amzn-bedrock-input-token-count"] == "2"
    assert "x-amzn-bedrock-output-token-count" not in headers
    body = {"texts": ["abcd", "efgh ijkl"], "input_type": "search_document"}
    answer, headers = invoke(bedrock, "cohere.embed-english-v3", body)
    assert len(answer["embeddings"]) == 2
    assert headers["x-amzn-bedrock-input-token-count"] == "3"
    first, second = simulator.bill()["calls"]
    assert Decimal(first["cost_usd"]) == Decimal("0.00000004")
    assert Decimal(second["cost_usd"]) == Decimal("0.0000003")
    with pytest.raises(ClientError, match="unsupported for streaming"):
        bedrock.invoke_model_with_response_stream(modelId="cohere.embed-english-v3", body=json.dumps(body))
    with pytest.raises(ClientError, match="doesn't support the model"):
        bedrock.converse(modelId="amazon.titan-embed-text-v2:0", messages=BLOCKS)


def test_pictures_are_billed_by_the_piece(simulator, bedrock):
    settings = {"numberOfImages": 3, "quality": "premium", "width": 1_280, "height": 720}
    body = {"taskType": "TEXT_IMAGE", "textToImageParams": {"text": "x"}, "imageGenerationConfig": settings}
    answer, headers = invoke(bedrock, "amazon.nova-canvas-v1:0", body)
    assert len(answer["images"]) == 3
    assert "x-amzn-bedrock-input-token-count" not in headers
    answer, _ = invoke(bedrock, "stability.sd3-5-large-v1:0", {"prompt": "x"})
    assert len(answer["images"]) == 1
    first, second = simulator.bill()["calls"]
    assert (first["images"], Decimal(first["cost_usd"])) == (3, Decimal("0.24"))
    assert (second["images"], Decimal(second["cost_usd"])) == (1, Decimal("0.08"))


def test_rerank_is_billed_by_the_query(simulator, bedrock):
    body = {"query": "x", "documents": ["d"] * 101, "top_n": 2}
    answer, _ = invoke(bedrock, "cohere.rerank-v3-5:0", body)
    assert len(answer["results"]) == 2
    [call] = simulator.bill()["calls"]
    assert (call["queries"], Decimal(call["cost_usd"])) == (2, Decimal("0.004"))


def test_the_stream_member_must_match_the_operation(bedrock):
    with pytest.raises(ClientError, match="stream field must match"):
        invoke(bedrock, "qwen.qwen3-32b-v1:0", {"messages": CHAT, "stream": True})


def test_guardrails_on_calls(simulator, bedrock):
    config = {"guardrailIdentifier": "gr1", "guardrailVersion": "1", "trace": "enabled"}
    text = [{"role": "user", "content": [{"text": "y" * 1_001 + "[[tokens=3]]"}]}]
    passed = bedrock.converse(modelId=LLAMA, messages=text, guardrailConfig=config)
    usage = passed["trace"]["guardrail"]["inputAssessment"]["gr1"]["invocationMetrics"]["usage"]
    assert usage["contentPolicyUnits"] == usage["topicPolicyUnits"] == 2
    blocked = bedrock.converse(
        modelId=LLAMA,
        messages=[{"role": "user", "content": [{"text": "[[guardrail=block]]"}]}],
        guardrailConfig=config,
    )
    assert blocked["stopReason"] == "guardrail_intervened"
    native, _ = invoke(
        bedrock, LLAMA, {"prompt": "[[guardrail=block]]"}, guardrailIdentifier="gr1", guardrailVersion="1"
    )
    assert native["amazon-bedrock-guardrailAction"] == "INTERVENED"
    first, second, third = simulator.bill()["calls"]
    assert first["guardrail_units"] == {"contentPolicyUnits": 3, "topicPolicyUnits": 3}
    tokens = Decimal("2.4") * (first["input_tokens"] + 3) / 10**6
    assert Decimal(first["cost_usd"]) == tokens + 6 * Decimal("0.00015")
    assert second["output_tokens"] == third["input_tokens"] == 0
    assert Decimal(second["cost_usd"]) == Decimal(third["cost_usd"]) == Decimal("0.0003")


def test_apply_guardrail(simulator, bedrock):
    ask = {"guardrailIdentifier": "gr1", "guardrailVersion": "DRAFT", "source": "INPUT"}
    passed = bedrock.apply_guardrail(**ask, content=[{"text": {"text": "y" * 2_500}}])
    assert (passed["action"], passed["usage"]["contentPolicyUnits"]) == ("NONE", 3)
    blocked = bedrock.apply_guardrail(**ask, content=[{"text": {"text": "[[guardrail=block]]"}}])
    assert blocked["action"] == "GUARDRAIL_INTERVENED"
    assert blocked["outputs"][0]["text"].startswith("Sorry")
    costs = [Decimal(call["cost_usd"]) for call in simulator.bill()["calls"]]
    assert costs == [Decimal("0.0009"), Decimal("0.0003")]


def test_count_tokens_is_free_and_agrees(simulator, bedrock):
    body = {"max_tokens": 9, "messages": CHAT, "system": "Be kind."}
    native = bedrock.count_tokens(modelId=CLAUDE, input={"invokeModel": {"body": json.dumps(body)}})
    answer, _ = invoke(bedrock, CLAUDE, body)
    assert native["inputTokens"] == answer["usage"]["input_tokens"]
    converse = bedrock.count_tokens(modelId=CLAUDE, input={"converse": {"messages": BLOCKS}})
    used = bedrock.converse(modelId=CLAUDE, messages=BLOCKS)["usage"]
    assert converse["inputTokens"] == used["inputTokens"]
    assert simulator.bill()["count"] == 2
    with pytest.raises(ClientError, match="doesn't support counting tokens"):
        bedrock.count_tokens(modelId=LLAMA, input={"converse": {"messages": BLOCKS}})


def test_foundation_models(plane):
    models = {model["modelId"]: model for model in plane.list_foundation_models()["modelSummaries"]}
    llama = models[LLAMA]
    assert llama["modelArn"] == f"arn:aws:bedrock:us-east-1::foundation-model/{LLAMA}"
    assert (llama["providerName"], llama["modelLifecycle"]["status"]) == ("Meta", "LEGACY")
    assert llama["inferenceTypesSupported"] == ["ON_DEMAND"]
    assert models["amazon.nova-canvas-v1:0"]["outputModalities"] == ["IMAGE"]
    only = plane.list_foundation_models(byProvider="cohere")["modelSummaries"]
    assert only
    assert all(model["providerName"] == "Cohere" for model in only)
    assert plane.get_foundation_model(modelIdentifier=LLAMA)["modelDetails"]["modelId"] == LLAMA
    with pytest.raises(ClientError, match="ResourceNotFoundException"):
        plane.get_foundation_model(modelIdentifier="nothing")


def test_inference_profiles(plane):
    system = plane.list_inference_profiles(typeEquals="SYSTEM_DEFINED")["inferenceProfileSummaries"]
    assert f"us.{LLAMA}" in {profile["inferenceProfileId"] for profile in system}
    profile = plane.get_inference_profile(inferenceProfileIdentifier=f"us.{LLAMA}")
    assert len(profile["models"]) == 3
    arn = f"{ACCOUNT}:application-inference-profile/llama405bapp"
    application = plane.get_inference_profile(inferenceProfileIdentifier=arn)
    assert (application["type"], application["inferenceProfileArn"]) == ("APPLICATION", arn)
    assert {model["modelArn"].rpartition("/")[2] for model in application["models"]} == {LLAMA}
    single = plane.get_inference_profile(
        inferenceProfileIdentifier=f"{ACCOUNT}:application-inference-profile/haiku3app000"
    )
    assert len(single["models"]) == 1


def test_capacity_that_is_bought(simulator, plane, bedrock):
    arn = f"{ACCOUNT}:provisioned-model/bought000001"
    entry = {"arn": arn, "model": LLAMA, "units": 3, "requests_per_minute": 1}
    assert arn in simulator.call("POST", "/_catalog", entry)["arns"]
    throughput = plane.get_provisioned_model_throughput(provisionedModelId=arn)
    assert (throughput["modelUnits"], throughput["status"]) == (3, "InService")
    listed = plane.list_provisioned_model_throughputs()["provisionedModelSummaries"]
    assert arn in {one["provisionedModelArn"] for one in listed}
    assert plane.get_provisioned_model_throughput(provisionedModelId="notready0000")["status"] == "Creating"
    bedrock.converse(modelId=arn, messages=BLOCKS)
    with pytest.raises(ClientError, match="ThrottlingException"):
        bedrock.converse(modelId=arn, messages=BLOCKS)
    imported = plane.get_imported_model(modelIdentifier=f"{ACCOUNT}:imported-model/importllama0")
    assert imported["customModelUnits"]["customModelUnitsPerModelCopy"] == 1
    deployment = plane.get_custom_model_deployment(
        customModelDeploymentIdentifier=f"{ACCOUNT}:custom-model-deployment/deployllama0"
    )
    assert deployment["status"] == "Active"
    assert plane.get_model_invocation_logging_configuration().get("loggingConfig") is None
