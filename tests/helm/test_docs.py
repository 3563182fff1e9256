"""What the operators' pages tell people to run is true: queries run, values render, names exist."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml

from helm.dashboards import series
from helm.policyvalues import values as policy_values
from proxy import policyfile
from proxy.cli import _parser
from tests.conftest import APPLICATION
from tests.helm.chart import REPOSITORY, VERSIONS, merged, render
from tests.helm.conftest import Validate

DOCS = REPOSITORY / "docs"
PAGES = sorted(
    [
        *(DOCS / "runbooks").glob("*.md"),
        *(DOCS / f"{n}.md" for n in ("install", "iam", "upgrade", "backup", "sizing", "scale")),
    ]
)
FENCE = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    page: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.text.split())[:50]}"


def blocks(language: str) -> list[Block]:
    return [
        Block(page.name, language, text)
        for page in PAGES
        for found, text in FENCE.findall(page.read_text())
        if found == language
    ]


READS = [block for block in blocks("sql") if not block.text.startswith("CREATE")]


def test_every_query_runs(database_url: str, as_role: Callable[[str, str], str]) -> None:
    """As the application's role, which changes nothing here: the transaction is read-only."""

    async def run() -> list[str]:
        url = as_role(database_url, APPLICATION).replace("postgresql+asyncpg://", "postgresql://")
        connection = await asyncpg.connect(url)
        problems = []
        try:
            for block in READS:
                try:
                    async with connection.transaction(readonly=True):
                        await connection.execute(block.text)
                except asyncpg.PostgresError as error:
                    problems.append(f"{block}: {error}")
        finally:
            await connection.close()
        return problems

    assert len(READS) > 15
    assert asyncio.run(run()) == []


def test_every_expression_parses_and_names_metrics_that_exist(prometheus_tool: Path, tmp_path: Path) -> None:
    lines = [line for block in blocks("promql") for line in block.text.splitlines() if line.strip()]
    assert len(lines) > 5
    rules = [{"record": f"line{number}", "expr": line} for number, line in enumerate(lines)]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "docs", "rules": rules}]}))
    promtool = str(prometheus_tool / "bin" / "promtool")
    done = subprocess.run(
        [promtool, "check", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {name for line in lines for name in re.findall(r"\btollhouse_\w+", line)} <= series()


# ---- install.md ------------------------------------------------------------------------------------------------

VALUES = [block for block in blocks("yaml") if block.text.startswith("# values")]
OBJECTS = [block for block in blocks("yaml") if block.text.startswith("apiVersion")]


@pytest.mark.parametrize("block", VALUES, ids=str)
def test_values_are_values_of_the_chart(block: Block, helm_tool: Path) -> None:
    del helm_tool
    given: dict[str, Any] = yaml.safe_load(block.text)
    assert render(given).documents != render().documents


def test_all_values_together(helm_tool: Path) -> None:
    del helm_tool
    together: dict[str, Any] = {}
    for block in VALUES:
        together = merged(together, yaml.safe_load(block.text))
    assert render(together).documents


def test_the_objects_are_valid(validate: Validate) -> None:
    documents = [document for block in OBJECTS for document in yaml.safe_load_all(block.text)]
    known = [document for document in documents if "cnpg.io" not in document["apiVersion"]]
    assert len(known) == 2
    assert len(documents) == 3
    assert validate(known, VERSIONS) == []


def test_the_secret_has_the_keys_that_the_chart_reads() -> None:
    wanted = yaml.safe_load((REPOSITORY / "helm" / "tollhouse" / "values.yaml").read_text())["secrets"]
    text = (DOCS / "install.md").read_text().partition("## 5. The Secret")[2]
    made = set(re.findall(r"--from-literal=([a-z-]+)=", text))
    optional = {"previous-master-key", "otlp-headers"}
    assert made == {entry["key"] for entry in wanted.values()} - optional


def test_names_of_objects_exist(helm_tool: Path) -> None:
    del helm_tool
    chart = render(release="tollhouse")
    kinds = {"deploy": "Deployment", "deployment": "Deployment", "service": "Service", "job": "Job"}
    there = {(document["kind"], document["metadata"]["name"]) for document in chart.documents}
    named = {
        (kinds[kind], name)
        for page in PAGES
        for kind, name in re.findall(
            r"\b(deploy|deployment|service|job)[/ ](tollhouse[a-z-]*)", page.read_text()
        )
    }
    assert named
    assert named <= there


def test_commands_exist() -> None:
    told = {
        tuple(found.split())
        for page in PAGES
        for found in re.findall(
            r"(?:^|`)tollhouse ((?:policies |keys )?[a-z]+)", page.read_text(), re.MULTILINE
        )
    }
    assert ("policies", "check") in told
    for words in told:
        with pytest.raises(SystemExit) as done:
            _parser().parse_args([*words, "--help"])
        assert done.value.code == 0, words


def test_links_and_pages_exist() -> None:
    for page in PAGES:
        text = page.read_text()
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
        for name in re.findall(r"`((?:docs|helm|policies|tests)/[\w./-]+)`", text):
            assert (REPOSITORY / name).exists(), f"{page.name}: {name}"


def test_settings_that_are_named_exist() -> None:
    from proxy.settings import describe

    known = {name for name, _, _ in describe()} | {"TOLLHOUSE_URL", "TOLLHOUSE_API_KEY"}
    for page in PAGES:
        assert set(re.findall(r"TOLLHOUSE_[A-Z_]+", page.read_text())) <= known, page.name


def test_a_folder_of_policies_becomes_values(helm_tool: Path, tmp_path: Path) -> None:
    del helm_tool
    chart = render(policy_values(REPOSITORY / "policies"))
    assert any(document["metadata"]["name"].endswith("-policies") for document in chart.kind("ConfigMap"))
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "default.yaml").write_text("plan: other\n")
    with pytest.raises(ValueError, match="plans"):
        policy_values(tmp_path)
    assert policyfile.check(REPOSITORY / "policies") == []


# ---- iam.md ----------------------------------------------------------------------------------------------------

POLICIES = [json.loads(block.text) for block in blocks("json") if block.page == "iam.md"]


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def test_the_role_may_do_what_the_proxy_does_and_no_more() -> None:
    role, irsa, identity, _ = POLICIES
    allowed = [s for s in role["Statement"] if s["Effect"] == "Allow"]
    actions = [action for statement in allowed for action in _list(statement["Action"])]
    assert allowed == role["Statement"]
    assert not [action for action in actions if "*" in action], "every action is named"
    assert all(action.startswith("bedrock:") for action in actions)
    assert all(
        action.split(":")[1].startswith(("InvokeModel", "Get", "List", "CountTokens", "ApplyGuardrail"))
        for action in actions
    )
    wide = [s for s in allowed if "*" in _list(s["Resource"])]
    lists = [action.startswith("bedrock:List") for s in wide for action in _list(s["Action"])]
    assert all(lists), "every resource has a kind, but for lists, which AWS cannot narrow"
    assert {s["Effect"] for trust in (irsa, identity) for s in trust["Statement"]} == {"Allow"}
    assert all("Condition" in s for trust in (irsa, identity) for s in trust["Statement"])


def test_nobody_else_may_call_models() -> None:
    organization = POLICIES[3]["Statement"]
    assert {statement["Effect"] for statement in organization} == {"Deny"}
    models, doors, keys, role = organization
    assert "bedrock:InvokeModel*" in models["Action"]
    for way in (
        "CreateModelInvocationJob",
        "StartAsyncInvoke",
        "InvokeAgent",
        "InvokeFlow",
        "RetrieveAndGenerate",
    ):
        assert f"bedrock:{way}" in models["Action"]
    assert {"bedrock:CallWithBearerToken", "bedrock-mantle:*"} <= set(doors["Action"])
    assert keys["Action"] == "iam:CreateServiceSpecificCredential"
    excepted = models["Condition"]["ArnNotLike"]["aws:PrincipalArn"]
    assert excepted == role["Resource"]
    assert "*" not in excepted
    assert "Condition" not in doors, "not even the proxy needs the other door"
