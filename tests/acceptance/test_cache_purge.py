"""Cached answers are forgotten on demand: of one model or of all, of one tenant and never of another."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from proxy.cli import main
from proxy.embedded import Valkey
from tests.support.stack import CLAUDE, LLAMA, Key, Proxy, running


def cached(stack: Proxy, key: Key, model: str) -> str:
    """Where the answer to one and the same prompt comes from."""
    body = {
        "messages": [{"role": "user", "content": [{"text": "Name a bird."}]}],
        "inferenceConfig": {"maxTokens": 16, "temperature": 0},
    }
    status, headers, answer = stack.request("POST", f"/model/{model}/converse", body, key=key.bearer_token)
    assert status == 200, answer
    return headers["x-tollhouse-cache"]


def places(stack: Proxy, *pairs: tuple[Key, str]) -> list[str]:
    return [cached(stack, key, model) for key, model in pairs]


def test_a_purge_forgets_what_it_names_and_nothing_else(stack: Proxy) -> None:
    mine, others = stack.key(), stack.key()
    asked = ((mine, LLAMA), (mine, CLAUDE), (others, LLAMA), (others, CLAUDE))
    assert places(stack, *asked) == ["miss"] * 4
    assert places(stack, *asked) == ["hit"] * 4

    purge = f"/tenants/{mine.tenant}/cache/purge"
    assert stack.admin("POST", purge, {"model": LLAMA}) == {"deleted": 1, "model": LLAMA}
    assert stack.admin("POST", purge, {"model": LLAMA}) == {"deleted": 0, "model": LLAMA}
    assert places(stack, *asked) == ["miss", "hit", "hit", "hit"]
    assert stack.admin("POST", purge) == {"deleted": 2, "model": None}
    assert places(stack, *asked) == ["miss", "miss", "hit", "hit"]
    told = stack.admin("GET", f"/audit?object=tenant:{mine.tenant}")["items"]
    assert [one["after"]["deleted"] for one in told if one["action"] == "cache.purge"] == [2, 0, 1]
    stack.admin("POST", purge, {"model": "no.such-model"}, expect=400)
    stack.admin("POST", purge, {"modell": LLAMA}, expect=400)
    stack.admin("POST", "/tenants/nobody/cache/purge", expect=404)


def test_a_purge_is_a_command_too(stack: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    key = stack.key()
    assert places(stack, (key, LLAMA), (key, CLAUDE)) == ["miss", "miss"]
    monkeypatch.setenv("TOLLHOUSE_URL", stack.url)
    monkeypatch.setenv("TOLLHOUSE_ADMIN_KEY", stack.admin_key)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["tenants", "purge-cache", key.tenant, "--model", CLAUDE, "--json"]) == 0
    assert json.loads(out.getvalue()) == {"deleted": 1, "model": CLAUDE}
    assert places(stack, (key, LLAMA), (key, CLAUDE)) == ["hit", "miss"]


def test_a_tenant_admin_purges_its_own_and_no_other(stack: Proxy) -> None:
    mine, others = stack.key(), stack.key()
    who = {"name": "lead", "role": "tenant-admin", "tenant": mine.tenant}
    lead = stack.admin("POST", "/admins", who, expect=201)["admin_key"]
    assert places(stack, (mine, LLAMA), (others, LLAMA)) == ["miss", "miss"]
    for tenant, status in ((others.tenant, 404), (mine.tenant, 200)):
        answer = stack.request("POST", f"/admin/v1/tenants/{tenant}/cache/purge", {}, key=lead)
        assert answer[0] == status, answer
    assert places(stack, (mine, LLAMA), (others, LLAMA)) == ["miss", "hit"]


def test_a_purge_that_cannot_reach_the_cache_says_so(
    module_database_url: str, simulator: Any, server_dir: Path, tmp_path: Path
) -> None:
    with Valkey.start(server_dir / "purged", with_password=False) as redis:
        proxy = Proxy(module_database_url, redis.url, simulator.url, tmp_path / "state")
        with running(proxy) as stack:
            key = stack.key()
            redis.kill()
            answer = stack.admin("POST", f"/tenants/{key.tenant}/cache/purge", expect=503)
            assert "repeat the purge" in answer["detail"]
            status, headers, _ = stack.request("GET", "/admin/v1/reports/prompt-caching")
            assert (status, "retry-after" in headers) == (503, True)
