"""The wide list of unmodified clients, newest from their registries, each in an environment of its own under
`.cache/clients`. Run by `make test-clients`; ends with a table. `.cache/clients` may be deleted.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import module_database_url, module_stack, stack  # noqa: F401 - fixtures
from tests.clients.driving import HERE, MODULES, NotInstalled, check, node
from tests.support.stack import Proxy

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]
CACHE = HERE.parents[1] / ".cache" / "clients"
_INSTALL_SECONDS = 400


@dataclass(frozen=True)
class Client:
    """`script` is in python/ or js/; the first of `packages` is the client itself."""

    name: str
    packages: tuple[str, ...]
    script: str

    @property
    def package(self) -> str:
        return self.packages[0].split("[")[0].split("<")[0].split(">")[0]


PYTHON = (
    Client("boto3", ("boto3",), "boto3_client.py"),
    Client("boto3 of botocore 1.43", ("boto3<1.44", "botocore>=1.43,<1.44"), "boto3_client.py"),
    Client("aioboto3", ("aioboto3",), "aioboto3_client.py"),
    Client("aws command line 1", ("awscli",), "awscli_client.py"),
    Client("langchain-aws", ("langchain-aws",), "langchain_client.py"),
    Client("llama-index", ("llama-index-llms-bedrock-converse",), "llamaindex_client.py"),
    Client("anthropic", ("anthropic[bedrock]",), "anthropic_client.py"),
    Client("openai", ("openai",), "openai_client.py"),
    Client("litellm", ("litellm",), "litellm_client.py"),
    Client("pydantic-ai", ("pydantic-ai-slim[bedrock,openai]",), "pydanticai_client.py"),
    Client("strands-agents", ("strands-agents",), "strands_client.py"),
)
JAVASCRIPT = (
    Client("AWS SDK for JavaScript", ("@aws-sdk/client-bedrock-runtime",), "aws_sdk.mjs"),
    Client("LangChain.js", ("@langchain/aws",), "langchain.mjs"),
    Client("AI SDK", ("ai",), "ai_sdk.mjs"),
)

Row = tuple[str, str, str, str]


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[Row]]:
    """One row a client, printed at the end."""
    rows: list[Row] = [("client", "version", "served", "what its user reads when the budget is spent")]
    yield rows
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    capture: Any = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print()
        for row in rows:
            print("  ".join(text.ljust(width) for text, width in zip(row, [*widths, 0], strict=True)))


def installed(client: Client) -> Path:
    """The Python of the client's environment. Raises `NotInstalled`."""
    home = CACHE / client.name.replace(" ", "-")
    python, stamp = home / "bin" / "python", home / ".packages"
    if stamp.is_file() and stamp.read_text() == " ".join(client.packages):
        return python
    shutil.rmtree(home, ignore_errors=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE / ".gitignore").write_text("*\n")
    uv = Path(sys.executable).with_name("uv")
    if uv.is_file():
        commands = [[uv, "venv", "--quiet", home], [uv, "pip", "install", "--quiet", "--python", python]]
    else:
        commands = [[sys.executable, "-m", "venv", home], [python, "-m", "pip", "install", "--quiet"]]
    commands[1] += client.packages
    for command in commands:
        done = subprocess.run(
            [str(word) for word in command],
            capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False,
        )  # fmt: skip
        if done.returncode:
            raise NotInstalled(f"cannot be installed here: {done.stderr.strip()[-400:]}")
    stamp.write_text(" ".join(client.packages))
    return python


def version_in(python: Path, package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def tell(table: list[Row], client: Client, version: str, came: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """One row a client: what it did, and the sentence its user reads when the budget is spent."""
    served, refused = came
    sentence = " ".join(next(iter(refused.values()))["error"].split())
    table.append((client.name, version, " ".join(served), sentence[:150]))


@pytest.mark.parametrize("client", PYTHON, ids=lambda client: client.name)
def test_python(stack: Proxy, simulator: Any, table: list[Row], client: Client) -> None:  # noqa: F811
    try:
        python = installed(client)
    except NotInstalled as missing:
        table.append((client.name, "-", "SKIPPED", missing.why[:150]))
        pytest.skip(missing.why)
    came = check([str(python), str(HERE / "python" / client.script)], stack)
    tell(table, client, version_in(python, client.package), came)


@pytest.mark.parametrize("client", JAVASCRIPT, ids=lambda client: client.name)
def test_javascript(stack: Proxy, simulator: Any, table: list[Row], client: Client) -> None:  # noqa: F811
    try:
        command = node()
    except NotInstalled as missing:
        table.append((client.name, "-", "SKIPPED", missing.why[:150]))
        pytest.skip(missing.why)
    came = check([*command, str(HERE / "js" / client.script)], stack)
    version = json.loads((MODULES / client.package / "package.json").read_text())["version"]
    tell(table, client, version, came)
