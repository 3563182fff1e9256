"""Unmodified clients, told by environment variables alone: whole and streamed calls, and the words in which
a spent budget reaches their users. The wide list is `make test-clients`.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest

from tests.clients import driving
from tests.clients.driving import HERE, check
from tests.support.stack import Proxy

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
