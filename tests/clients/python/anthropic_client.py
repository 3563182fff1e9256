# mypy: ignore-errors
"""Both of Anthropic's clients by their environment variables alone; AnthropicBedrock signs, then bears."""

import os

from anthropic import Anthropic, AnthropicBedrock
from saying import CLAUDE, KEY, PROMPT, URL, run

plain = Anthropic()
signing = AnthropicBedrock(base_url=URL)
bearing = AnthropicBedrock(base_url=URL, api_key=KEY) if "AWS_BEARER" not in os.environ else signing
ASK = {"model": CLAUDE, "max_tokens": 64, "messages": [{"role": "user", "content": PROMPT}]}


def _stream(client):
    with client.messages.stream(**ASK) as stream:
        return "".join(stream.text_stream)


def messages():
    return plain.messages.create(**ASK).content[0].text


def messages_stream():
    return _stream(plain)


def bedrock_signed():
    return signing.messages.create(**ASK).content[0].text


def bedrock_signed_stream():
    return _stream(signing)


def bedrock_bearer_stream():
    return _stream(bearing)


run(messages, messages_stream, bedrock_signed, bedrock_signed_stream, bedrock_bearer_stream)
