"""One file per way to be right or wrong.

Each file's first line names the place it takes in a small good folder (`base/`). What `check` then says
about the folder stands at the end of a bad file, one `# expect:` line per problem, in order.
"""

import shutil
from pathlib import Path

import pytest

from proxy import policyfile
from proxy.errors import ConfigurationError

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("good_*.yaml")) + sorted(HERE.glob("bad_*.yaml"))
EXPECT = "# expect: "


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(HERE / "base", tmp_path / "policies")
    return tmp_path / "policies"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_problem_is_told_with_its_place(path, folder):
    lines = path.read_text("utf-8").splitlines()
    place = lines[0].removeprefix("# ")
    expected = [line.removeprefix(EXPECT) for line in lines if line.startswith(EXPECT)]
    shutil.copyfile(path, folder / place)
    found = [str(problem) for problem in policyfile.check(folder)]
    assert found == expected
    assert bool(expected) == path.stem.startswith("bad_")
    if expected:
        with pytest.raises(ConfigurationError, match="policy files have"):
            policyfile.load(folder)
    else:
        assert policyfile.load(folder).plans["default"]
