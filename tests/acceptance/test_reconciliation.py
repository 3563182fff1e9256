"""The ledger's tokens against CloudWatch's, over calls that were really made."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from proxy.bedrock.evidence import Clients, CloudWatchTokens
from proxy.domain.evidence import EvidenceAwayError
from proxy.domain.reconciling import Line
from proxy.postgres.engine import create_engine
from proxy.postgres.evidence import PostgresEvidence
from proxy.worker.reconciliation import Reconciler
from tests.support import moto
from tests.support.stack import CLAUDE, LLAMA, Key, Proxy, get_json

METRICS = {"input_tokens": "InputTokenCount", "output_tokens": "OutputTokenCount"}

#: the first run installs a server
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def aws() -> Iterator[str]:
    with moto.serving() as url:
        yield url


@pytest.fixture
async def engine(stack: Proxy) -> AsyncIterator[AsyncEngine]:
    made = create_engine(stack.database_url, pool_size=1)
    yield made
    await made.dispose()


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


def tomorrow() -> dt.datetime:
    return dt.datetime.now(dt.UTC) + dt.timedelta(days=1)


def chat(stack: Proxy, key: Key, model: str, number: int, path: str = "converse") -> None:
    body = {"messages": [{"role": "user", "content": [{"text": f"hello {number}"}]}]}
    assert stack.request("POST", f"/model/{model}/{path}", body, key=key.bearer_token)[0] == 200


def meter(aws: str, calls: list[dict[str, Any]], extra: int = 0) -> None:
    """What CloudWatch would have of these calls."""
    client = moto.client("cloudwatch", aws)
    for call in calls:
        client.put_metric_data(
            Namespace="AWS/Bedrock",
            MetricData=[
                {
                    "MetricName": name, "Dimensions": [{"Name": "ModelId", "Value": call["model"]}],
                    "Timestamp": dt.datetime.now(dt.UTC), "Value": call[member] + extra, "Unit": "Count",
                }
                for member, name in METRICS.items()
            ],
        )  # fmt: skip


def reconciler(engine: AsyncEngine, aws: str) -> Reconciler:
    return Reconciler(PostgresEvidence(engine), CloudWatchTokens(Clients(aws)), 1, tomorrow)


def of(lines: list[Line], model: str, kind: str = "input") -> Line:
    [line] = [one for one in lines if one.model_id == model and one.kind == kind]
    return line


async def test_what_both_sides_have_is_even_and_what_passed_by_is_not(
    stack: Proxy, simulator: Any, engine: AsyncEngine, aws: str
) -> None:
    key = stack.key()
    for number in range(3):
        chat(stack, key, LLAMA, number)
        chat(stack, key, CLAUDE, number)
    chat(stack, key, LLAMA, 0)  # from the cache: it costs nothing and CloudWatch has no second one
    calls = get_json(f"{simulator.url}/_bill")["calls"]
    assert len(calls) == 6
    meter(aws, [c for c in calls if c["model"] == LLAMA])
    meter(aws, [c for c in calls if c["model"] == CLAUDE], extra=7)
    lines = await reconciler(engine, aws).report()
    assert of(lines, LLAMA).verdict == of(lines, LLAMA, "output").verdict == "even"
    assert of(lines, LLAMA).ledger == sum(c["input_tokens"] for c in calls if c["model"] == LLAMA)
    odd = of(lines, CLAUDE)
    assert (odd.verdict, odd.unexplained, odd.difference, odd.age_days) == ("unexplained", 21, 21, 1)


async def test_a_charge_at_the_ceiling_explains_what_cloudwatch_has_more(
    stack: Proxy, simulator: Any, engine: AsyncEngine, aws: str
) -> None:
    model = "us.meta.llama3-1-70b-instruct-v1:0"
    key = stack.key()
    simulator.fault({"fault": "close:1", "times": 1})
    chat(stack, key, model, 1, "converse-stream")
    [item] = stack.settled_calls(tenant=key.tenant)
    assert item["outcome"] == "CEILING"
    meter(aws, get_json(f"{simulator.url}/_bill")["calls"])
    line = of(await reconciler(engine, aws).report(), model)
    assert (line.ledger, line.verdict, line.unknown, line.unexplained) == (0, "ceilings", 1, 0)
    assert line.cloudwatch > 0


async def test_metrics_that_cannot_be_read_conclude_nothing(
    stack: Proxy, engine: AsyncEngine, free_port: Any
) -> None:
    chat(stack, stack.key(), LLAMA, 9)
    with pytest.raises(EvidenceAwayError, match="CloudWatch in us-"):
        await reconciler(engine, f"http://127.0.0.1:{free_port()}").report()


def test_the_command_prints_a_table_or_json(stack: Proxy, aws: str) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "proxy", "reconcile", "--days", "2", *arguments],
            env=stack.environment() | {"TOLLHOUSE_EVIDENCE_ENDPOINT_URL": aws},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    table = run()
    assert table.returncode == 0, table.stderr
    assert table.stdout.startswith("day")
    assert "unexplained tokens by age" in table.stdout
    assert json.loads(run("--json").stdout)["lines"] == []
