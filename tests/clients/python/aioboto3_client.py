# mypy: ignore-errors
"""aioboto3, signing, by its environment variables alone."""

import json

import aioboto3
from saying import CLAUDE, LLAMA, PROMPT, run

MESSAGES = [{"role": "user", "content": [{"text": PROMPT}]}]
NATIVE = json.dumps({"prompt": PROMPT, "max_gen_len": 64})


def _client():
    return aioboto3.Session().client("bedrock-runtime")


async def invoke():
    async with _client() as client:
        answer = await client.invoke_model(modelId=LLAMA, body=NATIVE)
        return json.loads(await answer["body"].read())["generation"]


async def invoke_stream():
    async with _client() as client:
        answer = await client.invoke_model_with_response_stream(modelId=LLAMA, body=NATIVE)
        chunks = [json.loads(event["chunk"]["bytes"]) async for event in answer["body"]]
        return "".join(chunk["generation"] for chunk in chunks)


async def converse():
    async with _client() as client:
        answer = await client.converse(modelId=CLAUDE, messages=MESSAGES, inferenceConfig={"maxTokens": 64})
        return answer["output"]["message"]["content"][0]["text"]


async def converse_stream():
    async with _client() as client:
        answer = await client.converse_stream(
            modelId=CLAUDE, messages=MESSAGES, inferenceConfig={"maxTokens": 64}
        )
        deltas = [e["contentBlockDelta"]["delta"] async for e in answer["stream"] if "contentBlockDelta" in e]
        return "".join(delta["text"] for delta in deltas)


run(invoke, invoke_stream, converse, converse_stream)
