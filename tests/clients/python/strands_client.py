# mypy: ignore-errors
"""Strands agents over Converse, whole and streamed."""

from saying import CLAUDE, PROMPT, REGION, URL, run
from strands import Agent
from strands.models import BedrockModel


def _agent(streaming):
    model = BedrockModel(
        model_id=CLAUDE, endpoint_url=URL, region_name=REGION, max_tokens=64, streaming=streaming
    )
    return Agent(model=model, callback_handler=None)


def converse():
    return str(_agent(streaming=False)(PROMPT))


def converse_stream():
    return str(_agent(streaming=True)(PROMPT))


run(converse, converse_stream)
