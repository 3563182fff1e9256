# mypy: ignore-errors
"""langchain-aws: Converse and InvokeModel."""

from langchain_aws import ChatBedrock, ChatBedrockConverse
from saying import CLAUDE, LLAMA, PROMPT, REGION, run

by_converse = ChatBedrockConverse(model=CLAUDE, max_tokens=64, region_name=REGION)
by_invoke = ChatBedrock(model=LLAMA, region=REGION, model_kwargs={"max_gen_len": 64})


def _text(content):
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content if isinstance(part, dict))


def converse():
    return _text(by_converse.invoke(PROMPT).content)


def converse_stream():
    return "".join(_text(chunk.content) for chunk in by_converse.stream(PROMPT))


def invoke():
    return _text(by_invoke.invoke(PROMPT).content)


def invoke_stream():
    return "".join(_text(chunk.content) for chunk in by_invoke.stream(PROMPT))


run(converse, converse_stream, invoke, invoke_stream)
