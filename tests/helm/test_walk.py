"""A stranger's walk through docs/install.md: what the page says is typed, in its order, as far as one machine can.

Replaced are only: the addresses of the servers, `kubectl` (a program that keeps Secrets in a file), the cluster (the
chart's processes run here), and AWS (the simulator). TLS to Postgres is left out: the private server has none.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.embedded import Bootstrap, Postgres, Valkey
from tests.conftest import execute
from tests.helm.chart import REPOSITORY, merged, render
from tests.helm.release import Release
from tests.support.stack import Key

pytestmark = [pytest.mark.usefixtures("helm_tool"), pytest.mark.timeout(120), pytest.mark.slow]

PAGE = (REPOSITORY / "docs" / "install.md").read_text()
MODEL = "eu.amazon.nova-lite-v1:0"
#: keeps each `create secret generic` in a file and answers `get secret -o jsonpath`, as far as the page needs it
KUBECTL = f"""#!{sys.executable}
import base64, json, pathlib, re, sys
words = sys.argv[1:]
name = words[words.index("secret") + 1 + ("generic" in words)] if "secret" in words else ""
store = pathlib.Path(__file__).with_name(f"secret-{{name}}.json")
if "create" in words and "secret" in words:
    held = dict(w.removeprefix("--from-literal=").split("=", 1) for w in words if w.startswith("--from-literal="))
    store.write_text(json.dumps(held))
elif "get" in words and "secret" in words:
    key = re.search(r"[.]data[.](.+)}}", words[-1])[1]
    print(base64.b64encode(json.loads(store.read_text())[key].encode()).decode(), end="")
elif words[0] not in {{"create", "label"}}:
    sys.exit(f"not known here: {{words}}")
"""


def block(section: str, language: str, number: int = 0) -> str:
    """The page's code of a section, by its heading."""
    [text] = re.findall(rf"^##+ {re.escape(section)}\n(.*?)(?=^##+ |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return found[number]


class Shell:
    """A terminal: `kubectl` is ours, everything else the machine's."""

    def __init__(self, home: Path) -> None:
        self.home = home
        tool = home / "kubectl"
        tool.write_text(KUBECTL)
        tool.chmod(0o700)

    def run(self, text: str) -> str:
        environment = {"PATH": f"{self.home}:{os.environ['PATH']}", "HOME": str(self.home)}
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text], capture_output=True, text=True, timeout=60, check=False,
            env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def secret(self, name: str) -> dict[str, str]:
        held: dict[str, str] = json.loads((self.home / f"secret-{name}.json").read_text())
        return held


@pytest.fixture
def postgres(server_dir: Path) -> Iterator[Postgres]:
    with Postgres.start(
        server_dir / "walk-postgres", bootstrap=Bootstrap(database="postgres"), throwaway=True
    ) as server:
        yield server


@pytest.fixture
def valkey(server_dir: Path) -> Iterator[Valkey]:
    """With the settings of the page's own command line."""
    [deployment, _] = yaml.safe_load_all(block("3. Redis or Valkey", "yaml"))
    command = deployment["spec"]["template"]["spec"]["containers"][0]["command"][-1]
    words = shlex.split(command.removeprefix("exec valkey-server "))
    settings = dict(zip((w.removeprefix("--") for w in words[::2]), words[1::2], strict=True))
    settings |= {"requirepass": "PASSWORD", "save": '""', "appendonly": "no"}
    # the launcher asks without a password whether it is up, so that is set afterwards
    password = settings.pop("requirepass")
    with Valkey.start(server_dir / "walk-valkey", with_password=False, settings=settings) as server:
        import redis

        with redis.Redis.from_url(server.url) as client:
            client.config_set("requirepass", password)
        yield server


def test_from_nothing_to_a_governed_call(
    postgres: Postgres, valkey: Valkey, simulator: Any, tmp_path: Path
) -> None:
    shell = Shell(tmp_path)
    prepare, image = block("1. The namespace and the image", "sh").split("docker", 1)
    assert image.startswith(" build")
    shell.run(prepare + block("CloudNativePG", "sh") + block("3. Redis or Valkey", "sh"))
    for statement in block("2. Postgres", "sql").split(";\n"):
        if statement.strip():
            execute(postgres.url, statement)
    secrets = block("5. The Secret", "sh")
    assert secrets.count("HOST:5432") == 2
    for said, here in (
        ("HOST:5432", f"127.0.0.1:{postgres.port}"), ("?ssl=verify-full", ""),
        ("valkey.tollhouse:6379", f"127.0.0.1:{valkey.port}"),
    ):  # fmt: skip
        secrets = secrets.replace(said, here)
    shell.run(secrets)

    values = merged(yaml.safe_load(block("6. The chart", "yaml")), {"aws": {"endpointUrl": simulator.url}})
    release = Release(render(values, release="tollhouse"), shell.secret("tollhouse"), tmp_path / "pods")
    try:
        release.start()
        admin = release.admin()
        admin.log = release.proxy.log
        admin.await_ready()
        key = first_key(shell, release)
        governed(release, key, simulator)
    finally:
        release.stop()


def test_every_secret_that_a_manifest_reads_is_made_before_it() -> None:
    for manifest in re.finditer(r"(?:passwordSecret|secretKeyRef): \{name: ([\w-]+)", PAGE):
        assert f"create secret generic {manifest[1]} " in PAGE[: manifest.start()], manifest[1]
    assert PAGE.index("create namespace") < PAGE.index("--namespace tollhouse") < PAGE.index("helm test")


def first_key(shell: Shell, release: Release) -> Key:
    """Section 7 as it stands; the port is where `kubectl port-forward` would lead."""
    text = block("7. The first key", "sh")
    assert "http://127.0.0.1:8081" in text
    printed = shell.run(text.replace("127.0.0.1:8081", f"127.0.0.1:{release.proxy.ports['admin']}"))
    decoder, answers = json.JSONDecoder(), []
    while printed := printed.strip():
        answer, end = decoder.raw_decode(printed)
        answers.append(answer)
        printed = printed[end:]
    tenant, budget, key = answers
    assert tenant["id"] == "acme", tenant
    assert budget["limit_usd"] in {"100", "100.00"}, budget
    return Key(key["id"], key["bearer_token"], key["aws_access_key_id"], key["aws_secret_access_key"], "acme")


def governed(release: Release, key: Key, simulator: Any) -> None:
    """What the team does next: a call with the SDK it has. It is billed, and stands in the ledger."""
    clients, admin = release.clients(), release.admin()
    admin.admin_key = release.held["admin-key"]
    clients.await_key(key)
    message = {"role": "user", "content": [{"text": "Say hello."}]}
    answer = clients.boto3(key).converse(modelId=MODEL, messages=[message], inferenceConfig={"maxTokens": 20})
    assert answer["output"]["message"]["content"]
    [row] = admin.settled_calls()
    assert row["cost_usd"] == simulator.bill()["total_usd"]
    assert row["outcome"] == "POST"
