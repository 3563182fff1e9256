"""Stock clients read answers out of the cache as they read fresh ones, and pay nothing for them."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from tests.clients.driving import HERE, NotInstalled, node, say
from tests.support.stack import Proxy, get_json

pytestmark = pytest.mark.clients


def says_the_same_for_nothing(stack: Proxy, simulator: Any, command: tuple[str, ...]) -> None:
    key = stack.key()
    first = say(command, stack, key)
    paid = get_json(f"{simulator.url}/_bill?summary=1")
    second = say(command, stack, key)
    assert second == first
    assert all("text" in said for said in second.values()), second
    assert get_json(f"{simulator.url}/_bill?summary=1") == paid
    outcomes = [item["outcome"] for item in stack.settled_calls(tenant=key.tenant)]
    assert outcomes[: len(second)] == ["HIT"] * len(second)


@pytest.mark.parametrize("client", ["boto3", "openai", "anthropic"])
def test_python(stack: Proxy, simulator: Any, client: str) -> None:
    script = str(HERE / "python" / f"{client}_client.py")
    says_the_same_for_nothing(stack, simulator, (sys.executable, script))


@pytest.mark.slow
def test_the_aws_sdk_for_javascript(stack: Proxy, simulator: Any) -> None:
    try:
        command = node()
    except NotInstalled as missing:
        pytest.skip(missing.why)
    says_the_same_for_nothing(stack, simulator, (*command, str(HERE / "js" / "aws_sdk.mjs")))
