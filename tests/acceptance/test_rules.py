"""Rules in files decide about calls, without a restart, and files with an error in them change nothing."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy import policyfile
from tests.support.stack import LLAMA, Key, Proxy, running

SMALL = "meta.llama3-1-8b-instruct-v1:0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("policies") / "policies"
    shutil.copytree(policyfile.directory(), made)
    return made


@pytest.fixture(scope="module")
def ruled(
    module_database_url: str, session_redis_url: str, simulator_server: Any, folder: Path
) -> Iterator[Proxy]:
    settings = {"TOLLHOUSE_POLICIES_DIR": str(folder)}
    proxy = Proxy(
        module_database_url, session_redis_url, simulator_server.url, folder.parent / "state", settings
    )
    with running(proxy) as started:
        yield started


class Rules:
    """The one file of rules; `set` returns when the running proxy has taken it over."""

    def __init__(self, proxy: Proxy, folder: Path) -> None:
        self.proxy, self.path = proxy, folder / "rules" / "rules.yaml"

    def write(self, *rules: dict[str, Any]) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps({"rules": list(rules)}))
        fresh.replace(self.path)

    def set(self, *rules: dict[str, Any]) -> None:
        self.write(*rules)
        version = policyfile.load(self.path.parents[1]).version
        for _ in range(300):
            if self.proxy.admin("GET", "/policies")["version"] == version:
                return
            time.sleep(0.05)
        raise AssertionError("the changed rules were not taken over within 15 s")


@pytest.fixture
def rules(ruled: Proxy, folder: Path) -> Iterator[Rules]:
    made = Rules(ruled, folder)
    yield made
    made.path.unlink(missing_ok=True)


def converse(proxy: Proxy, key: Key, model: str = LLAMA, **more: Any) -> tuple[int, Any]:
    body = {"messages": [{"role": "user", "content": [{"text": "hello"}]}], **more}
    status, _, answer = proxy.request("POST", f"/model/{model}/converse", body, key=key.bearer_token)
    return status, answer


def test_rules_decide_and_change_without_a_restart(ruled: Proxy, rules: Rules) -> None:
    key = ruled.key()
    assert converse(ruled, key)[0] == 200
    rules.set({"name": "closed", "when": f'tenant == "{key.tenant}"', "then": {"deny": "closed for today"}})
    status, answer = converse(ruled, key)
    assert status == 403 and "closed for today (rule closed)" in answer["message"]
    assert converse(ruled, ruled.key())[0] == 200
    rules.set({"name": "closed", "when": "true", "then": {"deny": "closed for today"}, "mode": "observe"})
    assert converse(ruled, key)[0] == 200
    rules.write({"name": "closed", "when": "tenant == 1", "then": {"deny": "x"}})
    for _ in range(200):
        if ruled.admin("GET", "/policies")["problems"]:
            break
        time.sleep(0.05)
    [problem] = ruled.admin("GET", "/policies")["problems"]
    assert problem.startswith("rules/rules.yaml:1:") and converse(ruled, key)[0] == 200


def test_a_nearly_spent_budget_moves_calls_to_a_smaller_model(ruled: Proxy, rules: Rules) -> None:
    key = ruled.key()
    budget = ruled.budget(f"tenant:{key.tenant}", "1")
    rules.set(
        {
            "name": "small",
            "when": f'request.model == "{LLAMA}" && budget.used > 0.5',
            "then": {"substitute": SMALL},
        },
        {"name": "short", "when": "budget.used > 0.5", "then": {"cap_output_tokens": 7}},
    )
    assert converse(ruled, key, inferenceConfig={"maxTokens": 20})[0] == 200
    ruled.admin("PATCH", f"/budgets/{budget['id']}", {"limit_usd": "0.0001"})
    for _ in range(100):
        converse(ruled, key, inferenceConfig={"maxTokens": 20})
        newest = ruled.settled_calls(tenant=key.tenant)[0]
        if newest["model"] == SMALL:
            break
        time.sleep(0.1)
    assert newest["model"] == SMALL and newest["outcome"] == "POST"
    assert newest["usage"]["output_tokens"] <= 7
    priced = policyfile.load().resolve(SMALL)
    assert newest["target"].endswith(priced.targets[0].model_id)
