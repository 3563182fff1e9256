"""Schemathesis against the OpenAPI document of a running product: no answer of 500 and above, none that the
document does not describe, none that takes long; nothing that the document forbids is accepted, nothing is
answered without a key, and what was deleted stays away.

Schemathesis is no dependency: it is looked for in `.cache/schemathesis` and on the path. `OPENAPI_EXAMPLES`
says how many requests are made up for each operation.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.stack import Proxy

REPOSITORY = Path(__file__).parents[2]
TOOL = shutil.which("schemathesis", path=str(REPOSITORY / ".cache" / "schemathesis" / "bin")) or shutil.which(
    "schemathesis"
)
EXAMPLES = os.environ.get("OPENAPI_EXAMPLES", "2")
#: every bound of every field takes the better part of a minute: only where somebody asked for more than a look
PHASES = "examples,coverage,fuzzing,stateful" if int(EXAMPLES) > 2 else "examples,fuzzing"
#: all that do not need to know what the product means: a well-formed budget of a model that does not exist is
#: refused with 400, which `positive_data_acceptance` takes for a fault
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,missing_required_header,unsupported_method,"
    "use_after_free,ensure_resource_availability,ignored_auth"
)
#: an old `If-Match` is told before the body is looked at
CONFIGURATION = """
[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "409", "412", "415", "422", "429", "503"]
"""
HOW = "python -m venv .cache/schemathesis && .cache/schemathesis/bin/pip install schemathesis"


@pytest.mark.skipif(TOOL is None, reason=f"NOT CHECKED: schemathesis is not installed ({HOW})")
@pytest.mark.timeout(3600)
def test_every_operation_keeps_to_the_document(module_stack: Proxy, tmp_path: Path) -> None:
    assert TOOL is not None
    command = [
        TOOL, "run", f"{module_stack.url}/admin/v1/openapi.json", "--header", f"Authorization: Bearer {module_stack.admin_key}",
        "--checks", CHECKS, "--max-examples", EXAMPLES, "--workers", "1", "--phases", PHASES, "--seed", "1",
        "--max-response-time", "5", "--continue-on-failure", "--no-shrink", "--warnings", "off",
    ]  # fmt: skip
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "NO_COLOR": "1", "NO_PROXY": "*"}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False, timeout=3500
    )
    print(done.stdout[-4000:])
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    found = re.search(r"(\d+) generated", done.stdout)
    assert found is not None, done.stdout[-2000:]
    assert int(found[1]) > 30
    assert module_stack.log is not None
    assert "admin request failed, incident" not in module_stack.log.read_text()
