"""What opaque ARNs run, learned from the control plane; and what that changes for calls."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from proxy import policyfile
from proxy.bedrock.control import ControlPlane, _profiles
from proxy.discovery import Discovery
from proxy.domain.discovery import Found, Lifecycle
from proxy.errors import ConfigurationError, UnboundedCost
from tests.support.stack import LLAMA, Proxy, free_port, nano, running

ACCOUNT = "arn:aws:bedrock:us-east-1:123456789012:"
PROFILE, HAIKU = (
    f"{ACCOUNT}application-inference-profile/llama405bapp",
    "anthropic.claude-3-haiku-20240307-v1:0",
)
BODY = {"prompt": "hello", "max_gen_len": 30}


@pytest.fixture
def plane(simulator: Any) -> ControlPlane:
    return ControlPlane(endpoint_url=simulator.url)


async def test_profiles_capacity_and_deployments_are_resolved(plane):
    found = await plane.look(["us-east-1"])
    assert found.arns[PROFILE] == f"us.{LLAMA}"
    assert found.arns[f"{ACCOUNT}application-inference-profile/haiku3app000"] == HAIKU
    assert found.arns[f"{ACCOUNT}provisioned-model/llama31405b0"] == LLAMA
    assert found.arns[f"{ACCOUNT}custom-model-deployment/deployllama0"] == "meta.llama3-3-70b-instruct-v1:0"
    assert "rates" in found.refused[f"{ACCOUNT}imported-model/importllama0"]
    [capacity] = [c for c in found.capacity if c.arn.endswith("llama31405b0")]
    assert (capacity.model, capacity.units, capacity.status, capacity.commitment) == (
        LLAMA,
        2,
        "InService",
        "OneMonth",
    )
    assert capacity.since > 0


async def test_lifecycles_say_what_ends(plane):
    found = await plane.look(["us-east-1"])
    ending = found.lifecycles["ai21.jamba-1-5-mini-v1:0"]
    assert ending.status == "LEGACY"
    assert ending.end_at is not None
    assert ending.warning(ending.end_at - 86_400 * 3, 86_400 * 90) == "reaches its end of life in 3 days"
    assert ending.warning(ending.end_at, 0) == "has reached its end of life: calls fail"
    assert Lifecycle(model="m").warning(0, 1e9) is None
    assert Lifecycle(model="m", extended_at=5).warning(6, 0) == "is charged at the extended access rate"


def test_a_profile_over_models_of_no_known_profile_has_no_price():
    def model(region: str, name: str) -> dict[str, str]:
        return {"modelArn": f"arn:aws:bedrock:{region}::foundation-model/{name}"}

    class Client:
        def list_inference_profiles(self, **asked: Any) -> dict[str, Any]:
            if asked["typeEquals"] == "SYSTEM_DEFINED":
                members = [model("us-east-1", LLAMA), model("us-west-2", LLAMA)]
                return {
                    "inferenceProfileSummaries": [{"inferenceProfileId": f"us.{LLAMA}", "models": members}]
                }
            of = {"whole": [model("us-west-2", LLAMA), model("us-east-1", LLAMA)], "one": [model("us-east-1", HAIKU)],
                  "odd": [model("us-east-1", LLAMA), model("eu-west-1", LLAMA)]}  # fmt: skip
            return {
                "inferenceProfileSummaries": [{"inferenceProfileArn": n, "models": m} for n, m in of.items()]
            }

    arns: dict[str, str] = {}
    refused: dict[str, str] = {}
    _profiles(Client(), arns, refused)
    assert arns == {"whole": f"us.{LLAMA}", "one": HAIKU}
    assert list(refused) == ["odd"]


def test_of_two_regions_the_later_end_holds():
    other = Found(arns={"a": "x"}, lifecycles={"m": Lifecycle(model="m", end_at=5)})
    both = Found(arns={"b": "y"}, lifecycles={"m": Lifecycle(model="m", end_at=9)}).and_also(other)
    assert (both.arns, both.lifecycles["m"].end_at) == ({"a": "x", "b": "y"}, 9)


async def test_a_control_plane_that_is_away_changes_nothing(plane):
    nowhere = ControlPlane(endpoint_url=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ConfigurationError, match="does not answer in us-east-1"):
        await nowhere.look(["us-east-1"])
    changes: list[int] = []

    async def changed() -> None:
        changes.append(1)

    discovery = Discovery(plane, lambda: ["us-east-1"], changed, 60)
    await discovery.refresh()
    before = discovery.found
    discovery._plane = nowhere
    with pytest.raises(ConfigurationError):
        await discovery.refresh()
    assert (discovery.found, changes) == (before, [1])


async def test_what_is_found_can_be_resolved_and_files_win(plane):
    policies = policyfile.load()
    with pytest.raises(UnboundedCost):
        policies.resolve(PROFILE)
    knowing = policies.with_arns((await plane.look(policies.regions_used)).arns)
    [target] = knowing.resolve(PROFILE).targets
    assert (target.model, target.prefix, target.model_id) == (LLAMA, "us", PROFILE)
    with pytest.raises(UnboundedCost, match="chooses its model by itself"):
        knowing.resolve(f"{ACCOUNT}prompt-router/abcdefghij12")


@pytest.fixture(scope="module")
def proxy(
    module_database_url: str, session_redis_url: str, simulator_server: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Proxy]:  # fmt: skip
    settings = {
        "TOLLHOUSE_BEDROCK_CONTROL_ENDPOINT_URL": simulator_server.url,
        "TOLLHOUSE_CONTROL_SECONDS": "1",
    }
    state = tmp_path_factory.mktemp("control") / "state"
    with running(
        Proxy(module_database_url, session_redis_url, simulator_server.url, state, settings)
    ) as started:
        yield started


def test_a_profile_of_the_account_is_called_and_priced_by_those_who_may(proxy, simulator):
    plain = proxy.key()
    path = f"/model/{PROFILE.replace('/', '%2F')}/invoke"
    deadline = time.monotonic() + 10
    while True:
        status, _, answer = proxy.request("POST", path, BODY, key=plain.bearer_token)
        if status == 403 or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert (status, "allow-list" in json.dumps(answer)) == (403, True)
    own = proxy.key(proxy.tenant(overrides={"arns_allowed": [PROFILE]}))
    status, _, answer = proxy.request("POST", path, BODY, key=own.bearer_token)
    assert status == 200, answer
    [row] = proxy.settled_calls(tenant=own.tenant)
    assert (row["model"], row["target"]) == (LLAMA, f"us-east-1/{PROFILE}")
    assert nano(row["cost_usd"]) == nano(simulator.bill()["total_usd"])


def test_the_list_of_models_says_what_they_cost_and_what_ends(proxy, simulator):
    key = proxy.key(proxy.tenant(overrides={"models_denied": ["meta.llama2*"]}))
    ending = "ai21.jamba-1-5-mini-v1:0"
    deadline = time.monotonic() + 10
    while True:
        _, _, one = proxy.request("GET", f"/v1/models/{ending}", key=key.bearer_token)
        if "warning" in one["tollhouse"] or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert one["tollhouse"]["warning"].startswith(
        ("reaches its end of life in", "has reached its end of life")
    )
    assert (one["tollhouse"]["input_usd_per_million"], one["owned_by"]) == ("0.2", "AI21 Labs")
    _, _, listed = proxy.request("GET", "/v1/models", key=key.bearer_token)
    items = {item["id"]: item for item in listed["data"]}
    assert items["llama-405b"]["tollhouse"] | {"end_of_life": ""} == {
        "model": LLAMA, "region": "us-east-2", "input_usd_per_million": "2.4", "output_usd_per_million": "2.4",
        "end_of_life": "", **({"warning": w} if (w := items["llama-405b"]["tollhouse"].get("warning")) else {}),
    }  # fmt: skip
    assert not [name for name in items if "llama2" in name]
