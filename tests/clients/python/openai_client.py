# mypy: ignore-errors
"""OpenAI's client by its environment variables alone: one model of Bedrock's route, one translated."""

from openai import OpenAI
from saying import CLAUDE, GPT, LLAMA, PROMPT, run

client = OpenAI()
MESSAGES = [{"role": "user", "content": PROMPT}]


def _whole(model):
    answer = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=64)
    assert answer.usage.completion_tokens == 12
    return answer.choices[0].message.content


def _stream(model, **more):
    chunks = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=64, stream=True, **more
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def chat():
    return _whole(GPT)


def chat_stream():
    return _stream(GPT)


def translated():
    return _whole(LLAMA)


def translated_stream():
    return _stream(CLAUDE, stream_options={"include_usage": True})


def responses():
    return client.responses.create(model=GPT, input=PROMPT, max_output_tokens=64).output_text


def responses_stream():
    with client.responses.stream(model=GPT, input=PROMPT, max_output_tokens=64) as stream:
        return stream.get_final_response().output_text


run(chat, chat_stream, translated, translated_stream, responses, responses_stream)
