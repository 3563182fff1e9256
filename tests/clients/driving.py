"""Running a client script the way its user would: in a process of its own, told by environment variables.

Every script prints one line `SAID {case: {"text": ...} or {"error": ...}}`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.stack import Key, Proxy

HERE = Path(__file__).parent
MODULES = HERE / "node_modules"
#: what a spent budget says, in every dialect
SPENT = "budget"
_INSTALL_SECONDS = 240
_RUN_SECONDS = 100


@dataclass(frozen=True)
class NotInstalled(Exception):
    """The client cannot be had on this machine; says why."""

    why: str


def environment(proxy: Proxy, key: Key) -> dict[str, str]:
    """The variables of `.run/client.env`, and nothing else of ours or of AWS's."""
    ours = ("AWS_", "OPENAI_", "ANTHROPIC_", "TOLLHOUSE_", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {
        "TOLLHOUSE_URL": proxy.url,
        "TOLLHOUSE_API_KEY": key.bearer_token,
        "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": proxy.url,
        "AWS_ACCESS_KEY_ID": key.aws_access_key_id,
        "AWS_SECRET_ACCESS_KEY": key.aws_secret_access_key,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "OPENAI_BASE_URL": f"{proxy.url}/openai/v1",
        "OPENAI_API_KEY": key.bearer_token,
        "ANTHROPIC_BASE_URL": proxy.url,
        "ANTHROPIC_API_KEY": key.bearer_token,
        "NO_PROXY": "*",
        "PYTHONWARNINGS": "ignore",
    }


def say(command: Sequence[str], proxy: Proxy, key: Key) -> dict[str, dict[str, str]]:
    """What came of every case of a script."""
    done = subprocess.run(
        command,
        env=environment(proxy, key),
        capture_output=True,
        text=True,
        timeout=_RUN_SECONDS,
        check=False,
    )
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("SAID "):
            found: dict[str, Any] = json.loads(line[5:])
            return found
    raise AssertionError(f"{command} said nothing:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def spent_key(proxy: Proxy) -> Key:
    """A key whose budget has room for nothing."""
    key = proxy.key()
    proxy.budget(f"key:{key.id}", "0.000000001")
    return key


def check(
    command: Sequence[str], proxy: Proxy
) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, str]]]:
    """Run a script with a good key and with a spent one; every case must do as it should."""
    key, spent = proxy.key(), spent_key(proxy)
    served = say(command, proxy, key)
    wrong = {name: said for name, said in served.items() if len(said.get("text", "").split()) != 12}
    assert served and not wrong, wrong
    refused = say(command, proxy, spent)
    unclear = {name: said for name, said in refused.items() if SPENT not in said.get("error", "")}
    assert refused.keys() == served.keys() and not unclear, unclear
    return served, refused


def node() -> tuple[str, ...]:
    """The command of node, with every package of the lock file in place. Raises `NotInstalled`."""
    binary, npm = shutil.which("node"), shutil.which("npm")
    if binary is None or npm is None:
        raise NotInstalled("there is no node and npm on this machine")
    stamp, lock = MODULES / ".of-lock", (HERE / "package-lock.json").read_text()
    if not stamp.is_file() or stamp.read_text() != lock:
        done = subprocess.run(
            [npm, "ci", "--ignore-scripts"],
            cwd=HERE, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False,
        )  # fmt: skip
        if done.returncode:
            raise NotInstalled(f"npm ci failed: {done.stderr.strip()[-300:]}")
        stamp.write_text(lock)
    return (binary,)
