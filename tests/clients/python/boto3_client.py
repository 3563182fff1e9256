# mypy: ignore-errors
"""boto3, signing, by its environment variables alone: the four operations."""

import json

import boto3
from saying import CLAUDE, LLAMA, PROMPT, run

client = boto3.client("bedrock-runtime")
MESSAGES = [{"role": "user", "content": [{"text": PROMPT}]}]
NATIVE = json.dumps({"prompt": PROMPT, "max_gen_len": 64})


def invoke():
    return json.loads(client.invoke_model(modelId=LLAMA, body=NATIVE)["body"].read())["generation"]


def invoke_stream():
    body = client.invoke_model_with_response_stream(modelId=LLAMA, body=NATIVE)["body"]
    return "".join(json.loads(event["chunk"]["bytes"])["generation"] for event in body)


def converse():
    answer = client.converse(modelId=CLAUDE, messages=MESSAGES, inferenceConfig={"maxTokens": 64})
    return answer["output"]["message"]["content"][0]["text"]


def converse_stream():
    stream = client.converse_stream(modelId=CLAUDE, messages=MESSAGES, inferenceConfig={"maxTokens": 64})
    return "".join(
        event["contentBlockDelta"]["delta"]["text"]
        for event in stream["stream"]
        if "contentBlockDelta" in event
    )


run(invoke, invoke_stream, converse, converse_stream)
