"""The command line about prices: the arithmetic of a call, paid capacity, models."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy import policyfile
from tests.support.stack import CLAUDE, LLAMA, Key, Proxy, nano, running

CAPACITY = "arn:aws:bedrock:us-east-1:123456789012:provisioned-model/llama3108b00"
SMALL = "meta.llama3-1-8b-instruct-v1:0"
ROUTES = f"""
routes:
  paid-by-the-hour:
    model: {SMALL}
    policy: provisioned_only
    targets: [{{arn: "{CAPACITY}", rates: {{input: "0.5", output: "0.75"}}}}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("commands") / "policies"
    shutil.copytree(policyfile.directory(), made)
    (made / "routes" / "own.yaml").write_text(ROUTES)
    return made


@pytest.fixture(scope="module")
def proxy(
    module_database_url: str, session_redis_url: str, simulator_server: Any, folder: Path,
) -> Iterator[Proxy]:  # fmt: skip
    settings = {"TOLLHOUSE_POLICIES_DIR": str(folder)}
    state = folder.parent / "state"
    with running(
        Proxy(module_database_url, session_redis_url, simulator_server.url, state, settings)
    ) as started:
        yield started


@pytest.fixture(scope="module")
def key(proxy: Proxy) -> Key:
    return proxy.key()


def tollhouse(proxy: Proxy, *words: str, control: str = "") -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("TOLLHOUSE_", "AWS_ENDPOINT"))}
    clean |= {"TOLLHOUSE_URL": proxy.url, "TOLLHOUSE_ADMIN_KEY": proxy.admin_key,
              "TOLLHOUSE_POLICIES_DIR": proxy.settings["TOLLHOUSE_POLICIES_DIR"],
              "TOLLHOUSE_BEDROCK_CONTROL_ENDPOINT_URL": control}  # fmt: skip
    command = [sys.executable, "-m", "proxy", *words]
    run = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def last(proxy: Proxy, model: str) -> dict[str, Any]:
    return proxy.settled_calls(model=model)[0]


def test_the_arithmetic_of_a_call_adds_up_to_its_charge(proxy, key, simulator):
    body = {"prompt": "one two three", "max_gen_len": 30}
    proxy.request("POST", f"/model/{LLAMA}/invoke", body, key=key.bearer_token)
    row = last(proxy, LLAMA)
    said = tollhouse(proxy, "prices", "explain", row["attempt"])
    used = row["usage"]
    assert f"{used['input_tokens']} x 2.4 USD per million" in said
    assert f"{used['output_tokens']} x 2.4 USD per million" in said
    rounded = float(row["cost_usd"])
    assert f"rounded up to {rounded:.9f}".rstrip("0") in said
    assert f"prices of {row['price_version']}, tier default" in said
    assert "more than its tokens cost" not in said


def test_the_tier_that_was_served_is_found_by_what_was_charged(proxy, key, simulator):
    model = "amazon.nova-premier-v1:0"
    body = {
        "messages": [{"role": "user", "content": [{"text": "hello"}]}],
        "serviceTier": {"type": "priority"},
    }
    status, _, answer = proxy.request("POST", f"/model/{model}/converse", body, key=key.bearer_token)
    assert status == 200, answer
    row = last(proxy, model)
    assert nano(row["cost_usd"]) == nano(simulator.bill()["total_usd"])
    assert "tier priority" in tollhouse(proxy, "prices", "explain", row["attempt"])


def test_images_are_explained_by_the_size_that_was_charged(proxy, key, simulator):
    model = "amazon.nova-canvas-v1:0"
    body = {
        "taskType": "TEXT_IMAGE",
        "textToImageParams": {"text": "a tollhouse"},
        "imageGenerationConfig": {"numberOfImages": 2, "width": 2048, "height": 2048, "quality": "standard"},
    }
    status, _, answer = proxy.request("POST", f"/model/{model}/invoke", body, key=key.bearer_token)
    assert status == 200, answer
    row = last(proxy, model)
    assert row["usage"]["images"] == 2
    assert nano(row["cost_usd"]) == nano(simulator.bill()["total_usd"])
    said = tollhouse(proxy, "prices", "explain", row["attempt"])
    assert "more than" not in said and "2 x " in said


def test_units_of_a_guardrail_are_explained_by_their_policies(proxy, simulator):
    guard = "arn:aws:bedrock:us-east-1:123456789012:guardrail/abcdefghij12"
    key = proxy.key(proxy.tenant(overrides={"arns_allowed": [guard]}))
    body = {"source": "INPUT", "content": [{"text": {"text": "is this allowed? " * 100}}]}
    path = f"/guardrail/{guard.replace('/', '%2F')}/version/1/apply"
    status, _, answer = proxy.request("POST", path, body, key=key.bearer_token)
    assert status == 200, answer
    [row] = proxy.settled_calls(tenant=key.tenant)
    assert row["usage"]["guardrail_units"] > 0
    assert nano(row["cost_usd"]) == nano(simulator.bill()["total_usd"]) > 0
    said = tollhouse(proxy, "prices", "explain", row["attempt"])
    assert f"{row['cost_usd']} USD" in said and "more than" not in said


def test_both_lifetimes_of_the_cache_are_told(proxy, key, simulator):
    cached = {
        "anthropic_version": "bedrock-2023-05-31",
        "max_tokens": 20,
        "system": [
            {"type": "text", "text": "law " * 3000, "cache_control": {"type": "ephemeral", "ttl": "1h"}},
            {"type": "text", "text": "case " * 3000, "cache_control": {"type": "ephemeral"}},
        ],
        "messages": [{"role": "user", "content": "hello"}],
    }
    model = "anthropic.claude-sonnet-4-5-20250929-v1:0"
    status, _, answer = proxy.request("POST", f"/model/us.{model}/invoke", cached, key=key.bearer_token)
    assert status == 200, answer
    row = last(proxy, model)
    used = row["usage"]
    assert used["cache_write_5m_tokens"] > 0 and used["cache_write_1h_tokens"] > 0
    assert used["cache_write_tokens"] == used["cache_write_5m_tokens"] + used["cache_write_1h_tokens"]
    assert nano(row["cost_usd"]) == nano(simulator.bill()["total_usd"])
    said = tollhouse(proxy, "prices", "explain", row["attempt"])
    assert "more than" not in said
    assert f"{used['cache_write_1h_tokens']:,} x " in said and f"{used['cache_write_5m_tokens']:,} x " in said


def test_a_call_that_was_charged_its_ceiling_says_so(proxy, key, simulator):
    simulator.fault({"fault": "close:0", "model": CLAUDE, "times": 1})
    body = {"messages": [{"role": "user", "content": [{"text": "hello"}]}]}
    proxy.request("POST", f"/model/{CLAUDE}/converse", body, key=key.bearer_token)
    row = last(proxy, CLAUDE)
    assert row["outcome"] == "CEILING"
    said = tollhouse(proxy, "prices", "explain", row["attempt"])
    assert "CEILING (cut)" in said
    assert f"charged {row['ceiling_usd']} USD: only a POST is charged by its tokens" in said


def test_hours_bought_are_laid_beside_hours_used(proxy, key, simulator):
    for _ in range(2):
        body = {"prompt": "hello", "max_gen_len": 10}
        sent = {"Cache-Control": "no-store"}
        assert (
            proxy.request("POST", "/model/paid-by-the-hour/invoke", body, key=key.bearer_token, headers=sent)[
                0
            ]
            == 200
        )
    charged = sum(nano(row["cost_usd"]) for row in proxy.settled_calls(model=SMALL))
    said = tollhouse(proxy, "prices", "capacity", "--since", "2026-02-01T00:00:00Z", "--until", "2100-01-01T00:00:00Z",
                     control=simulator.url)  # fmt: skip
    [line] = [words for row in said.splitlines() if (words := row.split())[0] == "llama3108b00"]
    name, model, status, units, hours, used, calls, paid, charge = line
    assert (name, model, status, units, calls) == ("llama3108b00", SMALL, "InService", "1", "2")
    assert int(used) in {1, 2}
    assert nano(charge) == charged > 0
    assert nano(paid) == int(hours) * 21_180_000_000


def test_models_are_listed_with_prices_and_what_ends(proxy, simulator):
    said = tollhouse(proxy, "models", "*llama3-1*", "--aws", control=simulator.url)
    lines = {words[0]: row for row in said.splitlines() if (words := row.split())}
    assert "2.4" in lines[LLAMA]
    assert lines.keys() > {LLAMA, SMALL, f"us.{LLAMA}"}
    assert not any("claude" in name for name in lines)
