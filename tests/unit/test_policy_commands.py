"""`policies test`, `diff` and `backtest` on files and recorded calls."""

import datetime as dt
import shutil
from pathlib import Path
from typing import Any

import pytest

from proxy import policyfile
from proxy.cli import main
from proxy.commands.policies import summarize
from proxy.domain.usage import Usage
from proxy.policyfile.backtest import Payer, Pot, Recorded, replay
from proxy.policyfile.comparing import differences
from proxy.policyfile.trying import run_examples

BASE = Path(__file__).parents[1] / "policies" / "base"
LARGE, SMALL = "acme.large-v1:0", "acme.small-v1:0"
NOON = dt.datetime(2026, 11, 10, 12, tzinfo=dt.UTC)


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(BASE, tmp_path / "policies")
    return tmp_path / "policies"


def rules(folder: Path, text: str) -> None:
    (folder / "rules" / "rules.yaml").write_text(text)


NEARLY = f"""
rules:
  - name: nearly
    when: request.model == "{LARGE}" && budget.used > 0.5
    then: {{substitute: "{SMALL}"}}
  - name: short
    when: tenant == "b"
    then: {{cap_output_tokens: 10}}
  - name: no
    when: '"x" in request.tags'
    then: {{deny: not that}}
"""


def test_examples_are_run_and_told_with_their_place(folder, capsys):
    rules(folder, NEARLY + f"""
examples:
  - name: holds
    request: {{model: {LARGE}}}
    budget_used: "0.6"
    expect: {{model: {SMALL}, deny: false, rules: [nearly], output_limit: 512}}
  - name: does not
    request: {{model: {LARGE}, tags: {{x: y}}}}
    tenant: b
    expect: {{deny: false, output_limit: 20, rules: [no]}}
""")  # fmt: skip
    found = [str(problem) for problem in run_examples(policyfile.load(folder))]
    line = (folder / "rules" / "rules.yaml").read_text().splitlines().index("  - name: does not") + 1
    assert found == [
        f"rules/rules.yaml:{line}:1: example 'does not': {told}"
        for told in (
            "deny is true (not that), not false", "output_limit is 10, not 20", "rules is [short, no], not [no]",
        )
    ]  # fmt: skip
    assert main(["policies", "test", str(folder)]) == 1
    assert "1 examples hold, 1 do not" in capsys.readouterr().out
    rules(folder, NEARLY)
    assert main(["policies", "test", str(folder)]) == 0


def test_a_difference_is_one_line(folder, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    assert main(["policies", "diff", str(folder), str(other)]) == 0
    assert capsys.readouterr().out == "no difference\n"
    rules(folder, NEARLY)
    rules(other, NEARLY.replace("0.5", "0.7").replace("cap_output_tokens: 10", "cap_output_tokens: 20"))
    (other / "plans" / "team.yaml").write_text("plan: team\n")
    plan = (other / "plans" / "default.yaml").read_text()
    (other / "plans" / "default.yaml").write_text(
        plan + '\nbudgets:\n  - {scope: tenant, period: month, limit_usd: "5"}\n'
    )
    (other / "prices" / "2026-06-01.yaml").write_text(
        f'effective_from: "2026-06-01T00:00:00Z"\nprices:\n  {LARGE}:\n    - {{input: "9", output: "9"}}\n'
    )
    lines = differences(
        policyfile.load(folder), policyfile.load(other), dt.datetime(2026, 11, 1, tzinfo=dt.UTC).timestamp()
    )
    assert "plan team: added" in lines
    assert "plan default: budget added: scope tenant, period month, limit 5 USD, on_short reject" in lines
    assert "rule short: tokens 10 -> 20" in lines
    assert any(line.startswith("rule nearly: when ") for line in lines)
    assert "price version 2026-06-01: added" in lines
    assert any(
        line.startswith(f"price of {LARGE}, USD per million: input ") and "-> 9" in line for line in lines
    )


def call(n: int, tenant: str = "a", model: str = LARGE, cost: int = 10**9, **more) -> Recorded:
    values: dict[str, Any] = {
        "id": str(n), "tenant": tenant, "project": "", "key": "k", "operation": "Converse", "model": model,
        "target": f"us-east-1/{model}", "tags": {}, "cost": cost, "at": NOON + dt.timedelta(minutes=n),
        "usage": Usage(input_tokens=1000, output_tokens=100),
    }  # fmt: skip
    return Recorded(**values | more)


def test_recorded_calls_are_refused_moved_and_capped(folder):
    rules(folder, NEARLY)
    policies = policyfile.load(folder)
    price = policies.priced(policies.models[LARGE], policies.resolve(LARGE).targets[0])
    each = price.cost(call(0).usage, "default", "standard", NOON.timestamp())[0]
    calls = [call(n, cost=each) for n in range(4)]
    calls += [call(4, "b", cost=each), call(5, "c", tags={"x": "1"}, cost=each), call(6, "d", cost=each)]
    payers = {"d": Payer(plan="default", overrides={"models_denied": [LARGE]})}
    pots = [Pot(scope="tenant:a", period="month", zone="UTC", limit=3 * each)]
    made = replay(policies, calls, payers, pots)
    assert [one.verdict for one in made] == ["same", "same", "moved", "moved", "capped", "refused", "refused"]
    assert [one.model for one in made[:4]] == [LARGE, LARGE, SMALL, SMALL]
    assert made[0].cost == each and made[4].cost < each and made[5].cost == 0
    assert made[5].why == "not that" and "not allowed" in made[6].why
    summary = summarize(made, complete=True)
    assert summary["tenants"]["a"] | {"calls": 4, "moved": 2, "refused": 0} == summary["tenants"]["a"]
    assert summary["why"]["moved: by nearly"] == 2


def test_a_pot_is_empty_when_its_period_begins_anew(folder):
    pot = Pot(scope="tenant:a", period="day", zone="Pacific/Auckland", limit=10)
    assert pot.used(NOON) == 0
    pot.spent = 9
    assert pot.used(NOON + dt.timedelta(hours=1)) == 0.9
    assert pot.used(NOON + dt.timedelta(days=1)) == 0
    total = Pot(scope="tenant:a", period="total", zone="UTC", limit=0)
    assert total.used(NOON) == 1.0


def test_a_model_that_is_gone_is_told_not_raised(folder):
    policies = policyfile.load(folder)
    [one] = replay(policies, [call(1, model="acme.gone-v1:0")], {})
    assert one.verdict == "refused" and "acme.gone" in one.why
