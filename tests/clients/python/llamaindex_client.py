# mypy: ignore-errors
"""LlamaIndex over Converse. It knows models by a list of its own, on which base Llama 3.1 405B is not."""

from llama_index.core.llms import ChatMessage
from llama_index.llms.bedrock_converse import BedrockConverse
from saying import CLAUDE, PROMPT, REGION, URL, run

llm = BedrockConverse(model=CLAUDE, endpoint_url=URL, region_name=REGION, max_tokens=64)
TALK = [ChatMessage(role="user", content=PROMPT)]


def chat():
    return llm.chat(TALK).message.content


def chat_stream():
    return "".join(part.delta or "" for part in llm.stream_chat(TALK))


async def achat():
    return (await llm.achat(TALK)).message.content


run(chat, chat_stream, achat)
