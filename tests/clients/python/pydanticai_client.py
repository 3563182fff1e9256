# mypy: ignore-errors
"""pydantic-ai over Bedrock (signing) and over the OpenAI route."""

from pydantic_ai import Agent
from pydantic_ai.models.bedrock import BedrockConverseModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.bedrock import BedrockProvider
from pydantic_ai.providers.openai import OpenAIProvider
from saying import CLAUDE, KEY, LLAMA, PROMPT, REGION, URL, run

SETTINGS = {"max_tokens": 64}
bedrock = Agent(
    BedrockConverseModel(CLAUDE, provider=BedrockProvider(region_name=REGION)), model_settings=SETTINGS
)
openai = Agent(
    OpenAIChatModel(LLAMA, provider=OpenAIProvider(base_url=f"{URL}/v1", api_key=KEY)),
    model_settings=SETTINGS,
)


async def _whole(agent):
    return (await agent.run(PROMPT)).output


async def _stream(agent):
    async with agent.run_stream(PROMPT) as result:
        return "".join([part async for part in result.stream_text(delta=True)])


async def converse():
    return await _whole(bedrock)


async def converse_stream():
    return await _stream(bedrock)


async def chat():
    return await _whole(openai)


async def chat_stream():
    return await _stream(openai)


run(converse, converse_stream, chat, chat_stream)
