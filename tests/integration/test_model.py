"""The model of the money protocol: it passes, its mutants are caught, and it speaks of this code."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "docs" / "model"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("model_check", FOLDER / "check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


check = load()
needs_spin = pytest.mark.skipif(
    bool(check.missing()),
    reason=f"THE MODEL WAS NOT CHECKED: {' and '.join(check.missing())} not found (Debian: apt-get install spin gcc)",
)


@needs_spin
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_protocol_passes_and_every_mutant_is_caught():
    results = list(check.check((*check.PROTOCOL, *check.MUTANTS, *check.WITNESSES)))
    wrong = [check.row(result) for result in results if not result.good]
    assert not wrong, "\n".join(wrong)
    assert sum(result.states for result in results if result.case.kind == check.SAFE) > 1_000_000, (
        "searched too little"
    )


@needs_spin
def test_a_mutant_that_is_none_is_not_called_caught():
    result = check.run(check.Case("NO_SUCH_FLAG", check.MUTANT, "nothing is changed", 2, 0))
    assert not result.good
    assert result.found == "NOT CAUGHT"


def test_every_mutant_and_witness_is_a_flag_of_the_model_and_in_the_table():
    flags = set(re.findall(r"#if(?:n)?def ([A-Z_]+)", (FOLDER / "admit.pml").read_text()))
    cases = {case.name for case in (*check.MUTANTS, *check.WITNESSES)}
    assert flags - {"ATTEMPTS", "FAULTS", "MONEY_ONLY"} == cases
    assert set(re.findall(r"`([A-Z_]{5,})`", (FOLDER / "README.md").read_text())) >= {
        c.name for c in check.MUTANTS
    }


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("proxy/recorder.py", ["opened", "sent", "done", "closed", "resolve"]),
        ("proxy/exchange.py", ["_forward"]),
        ("proxy/reservation.py", ["_mint", "_admit", "move_on", "resolve", "_void_later"]),
        ("proxy/settler.py", ["later"]),
        ("proxy/worker/recovery.py", ["recover"]),
        ("proxy/ports.py", ["admit", "settle", "settle_and_admit"]),
    ],
)
def test_the_names_in_the_model_are_the_codes(path, names):
    code, model = (REPOSITORY / path).read_text(), (FOLDER / "admit.pml").read_text()
    assert [n for n in names if not re.search(rf"def {n}\(", code)] == [], (
        "renamed in the code, not in the model"
    )
    assert [n for n in names if not re.search(rf"\b{n}\b", model)] == [], "not in the model"


def test_the_bank_has_the_functions_that_the_model_takes_for_atomic():
    sql = "\n".join(path.read_text() for path in (REPOSITORY / "proxy/postgres/sql").glob("*.sql"))
    for name in ("bank_settle_and_admit", "bank_sweep"):
        assert re.search(rf"CREATE OR REPLACE FUNCTION {name}\(", sql)
