# mypy: ignore-errors
"""litellm as a client: Bedrock with a bearer key over plain HTTP, and the OpenAI route."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else importing it downloads a price list

import litellm
from saying import CLAUDE, GPT, KEY, LLAMA, PROMPT, REGION, URL, run

litellm.suppress_debug_info = True
BEDROCK = {"api_base": URL, "api_key": KEY, "aws_region_name": REGION}
OPENAI = {"api_base": f"{URL}/openai/v1", "api_key": KEY}
MESSAGES = [{"role": "user", "content": PROMPT}]


def _ask(model, where, **more):
    return litellm.completion(model=model, messages=MESSAGES, max_tokens=64, num_retries=0, **where, **more)


def _whole(model, where):
    return _ask(model, where).choices[0].message.content


def _stream(model, where):
    return "".join(c.choices[0].delta.content or "" for c in _ask(model, where, stream=True) if c.choices)


def converse():
    return _whole(f"bedrock/converse/{LLAMA}", BEDROCK)


def converse_stream():
    return _stream(f"bedrock/converse/{CLAUDE}", BEDROCK)


def invoke():
    return _whole(f"bedrock/invoke/{CLAUDE}", BEDROCK)


def invoke_stream():
    return _stream(f"bedrock/invoke/{CLAUDE}", BEDROCK)


def openai():
    return _whole(f"openai/{GPT}", OPENAI)


def openai_stream():
    return _stream(f"openai/{LLAMA}", OPENAI)


run(converse, converse_stream, invoke, invoke_stream, openai, openai_stream)
