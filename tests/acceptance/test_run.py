"""`tollhouse run`: one command from nothing, state that survives SIGKILL of everything."""

from __future__ import annotations

import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stack import LLAMA, Proxy, free_port, get_json, nano

BODY = {"prompt": "Say hello.", "max_gen_len": 64}


class Run:
    """One `tollhouse run` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Proxy:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("TOLLHOUSE_", "AWS_ENDPOINT"))}
        with (self.folder / "out.txt").open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "proxy", "run"], cwd=self.folder, stdout=out, stderr=out,
                env=clean | {"TOLLHOUSE_PORT": str(self.port)}, start_new_session=True,
            )  # fmt: skip
        proxy = Proxy("", "", "", self.folder / "state", port=self.port, log=self.folder / "out.txt")
        proxy.await_ready(self.process, seconds=60)
        deadline = time.monotonic() + 5
        while (
            "Ctrl-C stops everything" not in (self.folder / "out.txt").read_text()
            and time.monotonic() < deadline
        ):
            time.sleep(0.02)
        proxy.admin_key = self.env("admin.env")["TOLLHOUSE_ADMIN_KEY"]
        return proxy

    def env(self, name: str) -> dict[str, str]:
        path = self.folder / ".run" / name
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        words = shlex.split(path.read_text())
        return dict(word.split("=", 1) for word in words if "=" in word)

    def tree(self) -> list[int]:
        """Every living descendant."""
        assert self.process is not None
        found, todo = [], [self.process.pid]
        while todo:
            pid = todo.pop()
            found.append(pid)
            try:
                for task in Path(f"/proc/{pid}/task").iterdir():
                    todo += [int(child) for child in (task / "children").read_text().split()]
            except OSError:
                continue
        return found

    def kill_everything(self) -> None:
        for pid in self.tree():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        assert self.process is not None
        self.process.wait()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.kill_everything()


def alive(pids: list[int]) -> list[int]:
    return [
        p
        for p in pids
        if Path(f"/proc/{p}/stat").exists() and Path(f"/proc/{p}/stat").read_text().split()[2] != "Z"
    ]


def test_from_nothing_to_a_ledgered_call_and_back_after_sigkill(run: Run) -> None:
    proxy = run.start()
    client, admin = run.env("client.env"), run.env("admin.env")
    assert client["AWS_ENDPOINT_URL_BEDROCK_RUNTIME"] == client["ANTHROPIC_BASE_URL"] == proxy.url
    assert client["OPENAI_BASE_URL"] == proxy.url + "/openai/v1"
    assert client.keys() >= {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "OPENAI_API_KEY",
                             "ANTHROPIC_API_KEY", "TOLLHOUSE_URL", "TOLLHOUSE_API_KEY"}  # fmt: skip
    token = client["TOLLHOUSE_API_KEY"]
    assert proxy.request("POST", f"/model/{LLAMA}/invoke", BODY, key=token)[0] == 200
    [item] = proxy.settled_calls()
    bill = get_json(admin["TOLLHOUSE_SIMULATOR_URL"] + "/_bill")
    assert nano(item["cost_usd"]) == nano(bill["total_usd"])
    metrics = run_metrics(admin["TOLLHOUSE_METRICS_URL"])
    assert 'tollhouse_calls_total{model="meta.llama3-1-405b-instruct-v1:0"' in metrics

    tree = run.tree()
    run.kill_everything()
    deadline = time.monotonic() + 10
    while alive(tree) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive(tree) == []

    proxy = run.start()
    again = run.env("client.env")
    kept = ("TOLLHOUSE_API_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    assert all(again[name] == client[name] for name in kept)
    assert [i["id"] for i in proxy.calls()] == [item["id"]]
    assert proxy.request("POST", f"/model/{LLAMA}/converse", {
        "messages": [{"role": "user", "content": [{"text": "again"}]}]}, key=token)[0] == 200  # fmt: skip


def test_ctrl_c_stops_everything(run: Run) -> None:
    run.start()
    tree = run.tree()
    assert run.process is not None
    os.kill(run.process.pid, signal.SIGINT)
    assert run.process.wait(20) == 0
    assert alive(tree) == []


def run_metrics(url: str) -> str:
    import urllib.request

    with urllib.request.urlopen(url, timeout=10) as response:
        return str(response.read().decode())
