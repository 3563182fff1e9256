"""What a team lead and an administrator ask from a terminal, of a running product."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from proxy.cli import main
from tests.support.stack import LLAMA, Key, Proxy, nano


def ask(stack: Proxy, key: Key) -> dict[str, Any]:
    """The ledger's item of one call."""
    body = {"prompt": "Name a bird.", "max_gen_len": 16}
    status, _, answer = stack.request("POST", f"/model/{LLAMA}/invoke", body, key=key.bearer_token)
    assert status == 200, answer
    [item] = stack.settled_calls(tenant=key.tenant)
    return item


def said(*words: str, code: int = 0) -> str:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main(words) == code, err.getvalue() + out.getvalue()
    return out.getvalue() if code == 0 else err.getvalue()


def told(*words: str) -> Any:
    return json.loads(said(*words, "--json"))


@pytest.fixture
def served(stack: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Proxy:
    """A terminal with the administrator's key, and nothing in its folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOLLHOUSE_URL", stack.url)
    monkeypatch.setenv("TOLLHOUSE_ADMIN_KEY", stack.admin_key)
    monkeypatch.delenv("TOLLHOUSE_API_KEY", raising=False)
    return stack


def test_a_key_says_what_it_is_used_and_may(served: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    key = served.key()
    served.admin("POST", "/limits", {"scope": f"key:{key.id}", "requests_per_minute": 600}, expect=201)
    served.budget(f"tenant:{key.tenant}", "2.50")
    item = ask(served, key)
    assert "TOLLHOUSE_API_KEY" in said("me", "show", code=2)
    monkeypatch.setenv("TOLLHOUSE_API_KEY", key.bearer_token)
    me = told("me", "show")
    assert (me["tenant"], me["key"], me["budgets"][0]["limit_usd"]) == (key.tenant, key.id, "2.50")
    usage = told("me", "usage", "--since", "2026-01-01T00:00:00Z")
    assert nano(usage["cost_usd"]) == nano(item["cost_usd"]) > 0
    assert LLAMA in said("me", "usage") and "600" in said("me", "limits")
    monkeypatch.setenv("TOLLHOUSE_API_KEY", served.admin_key)
    assert "(401)" in said("me", "show", code=1)


def test_where_a_sourced_file_is_not_needed(served: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tollhouse run` leaves its keys in `.run/`."""
    key = served.key()
    for name in ("TOLLHOUSE_URL", "TOLLHOUSE_ADMIN_KEY"):
        monkeypatch.delenv(name)
    Path(".run").mkdir()
    Path(".run/client.env").write_text(
        f"export TOLLHOUSE_URL={served.url}\nexport TOLLHOUSE_API_KEY={key.bearer_token}\n"
    )
    Path(".run/admin.env").write_text(
        f"export TOLLHOUSE_URL={served.url}\nexport TOLLHOUSE_ADMIN_KEY={served.admin_key}\n"
    )
    assert told("me", "show")["key"] == key.id
    assert told("keys", "show", key.id)["tenant"] == key.tenant


def test_plans_prices_and_budgets_are_asked_and_set(served: Proxy) -> None:
    key = served.key()
    item = ask(served, key)
    assert "default" in said("plans", "list") and "team" in [
        one["id"] for one in told("plans", "list")["items"]
    ]
    price = told("calls", "price", item["attempt"])
    assert (price["cost_usd"], price["book_cost_usd"]) == (item["cost_usd"], item["cost_usd"])
    assert item["cost_usd"] in said("calls", "price", item["attempt"])
    made = told(
        "budgets", "create", f"tenant:{key.tenant}", "day", "3", "--on-short", "clamp", "--floor-output-tokens", "64"
    )  # fmt: skip
    assert (made["on_short"], made["floor_output_tokens"]) == ("clamp", 64)
    changed = told("budgets", "change", made["id"], "--floor-output-tokens", "128")
    assert changed["floor_output_tokens"] == 128
    assert "400" in said("budgets", "change", made["id"], "--floor-output-tokens", "0", code=1)
