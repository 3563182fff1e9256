"""Unmodified clients, told by environment variables alone: whole and streamed calls, and the words in which
a spent budget reaches their users. The wide list is `make test-clients`.
"""

from __future__ import annotations

import sys
from typing import Any

import anthropic
import openai
import pytest

from tests.clients import driving
from tests.clients.driving import HERE, check
from tests.support.stack import CLAUDE, LLAMA, Proxy

pytestmark = pytest.mark.clients


@pytest.mark.parametrize("client", ["boto3", "openai", "anthropic"])
def test_python_clients_of_the_lock(stack: Proxy, simulator: Any, client: str) -> None:
    check([sys.executable, str(HERE / "python" / f"{client}_client.py")], stack)


def test_the_aws_sdk_for_javascript_over_http2(stack: Proxy, simulator: Any) -> None:
    try:
        node = driving.node()
    except driving.NotInstalled as missing:
        pytest.skip(missing.why)
    check([*node, str(HERE / "js" / "aws_sdk.mjs")], stack)


def test_what_clients_ask_besides_answers(stack: Proxy, simulator: Any) -> None:
    """Lists of models and counts of tokens, from the vendors' own clients."""
    key = stack.key()
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key=key.bearer_token) as client:
        names = {model.id for model in client.models.list()}
        assert {LLAMA, CLAUDE, "llama-405b"} <= names
        assert client.models.retrieve(LLAMA).owned_by == "Meta"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("no.such-model")
    with anthropic.Anthropic(base_url=stack.url, api_key=key.bearer_token) as claude:
        counted = claude.messages.count_tokens(
            model="anthropic.claude-3-5-haiku-20241022-v1:0",
            messages=[{"role": "user", "content": "How many tokens is this?"}],
        )
        assert counted.input_tokens > 5
    [item] = stack.settled_calls(key=key.id)
    assert (item["operation"], item["kind"], item["cost_usd"]) == (
        "MessagesCountTokens",
        "probe",
        "0.00",
    )
