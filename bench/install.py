"""Installs what is measured, each in a place of its own under `.cache/bench`: Tollhouse as its image has it, without
what only its tests need, and who it is compared with.

`python -m bench.install [tools] [tollhouse] [hardcap] [litellm] [portkey]`; without names, all of them. What cannot
be installed is said and left out: the benchmark reports it as absent.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "bench"
TOOLS = ("nginx", "wrk")
PYTHON = {"hardcap": "hardcap", "litellm": "litellm[proxy]"}
PORTKEY = "@portkey-ai/gateway"
RUNTIME_LOCK = Path(__file__).resolve().parents[1] / "requirements.runtime.lock"


def tools() -> bool:
    """nginx and wrk, from the distribution, when we may."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
    missing = [tool for tool in TOOLS if shutil.which(tool, path=path) is None]
    if not missing:
        return True
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        print(f"bench: install {' and '.join(missing)} first", file=sys.stderr)
        return False
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    if _quiet([apt, "install", "-y", "--no-install-recommends", *missing], environment):
        return True
    return _quiet([apt, "update"], environment) and _quiet(
        [apt, "install", "-y", "--no-install-recommends", *missing], environment
    )


def python(name: str, *, again: bool = False) -> bool:
    """The newest release that the package index gives this Python, in an environment of its own."""
    home = CACHE / name
    if (home / "bin" / name).exists() and _ours(home) and not again:
        return True
    if not _quiet([sys.executable, "-m", "venv", "--clear", str(home)]):
        return False
    pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return _quiet([*pip, "--upgrade", PYTHON[name]])


def _ours(home: Path) -> bool:
    """Whether an environment is of the Python that runs here: who is compared must not differ by that."""
    made = (home / "pyvenv.cfg").read_text().splitlines()
    return f"home = {Path(sys.base_prefix) / 'bin'}" in made


def tollhouse(*, again: bool = False) -> bool:
    """The packages of the runtime lock; the code is that of the tree, found in the working directory."""
    home = CACHE / "tollhouse"
    mark, lock = home / "installed.lock", RUNTIME_LOCK.read_text()
    if not again and mark.is_file() and mark.read_text() == lock and _ours(home):
        return True
    if not _quiet([sys.executable, "-m", "venv", "--clear", str(home)]):
        return False
    uv = [sys.executable, "-m", "uv", "pip", "install", "--python", str(home / "bin" / "python")]
    pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check"]
    what = ["--require-hashes", "--requirement", str(RUNTIME_LOCK)]
    if not (_quiet([*uv, *what]) or _quiet([*pip, *what])):
        return False
    mark.write_text(lock)
    return True


def interpreter() -> str:
    """The Python that runs Tollhouse: that of its own environment where that could be made, else this one."""
    mark = CACHE / "tollhouse" / "installed.lock"
    return str(mark.parent / "bin" / "python") if mark.is_file() else sys.executable


def portkey(*, again: bool = False) -> bool:
    home = CACHE / "portkey"
    if (home / "node_modules" / PORTKEY).exists() and not again:
        return True
    npm = shutil.which("npm")
    if npm is None:
        return False
    home.mkdir(parents=True, exist_ok=True)
    (home / "package.json").write_text("{}\n")
    command = [
        npm,
        "install",
        "--prefix",
        str(home),
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--silent",
    ]
    return _quiet([*command, PORTKEY])


def all_of(names: list[str], *, again: bool = False) -> dict[str, bool]:
    """name -> whether it is there now."""
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE.parent / ".gitignore").write_text("*\n")
    done = {}
    for name in names:
        if name == "tools":
            done[name] = tools()
        elif name == "tollhouse":
            done[name] = tollhouse(again=again)
        elif name == "portkey":
            done[name] = portkey(again=again)
        else:
            done[name] = python(name, again=again)
    return done


def _quiet(command: list[str], environment: dict[str, str] | None = None) -> bool:
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "install.log").open("ab") as log:
        try:
            return (
                subprocess.run(command, stdout=log, stderr=log, env=environment, check=False).returncode == 0
            )
        except OSError:
            return False


def main() -> int:
    names = sys.argv[1:] or ["tools", "tollhouse", *PYTHON, "portkey"]
    done = all_of(names, again=bool(sys.argv[1:]))
    for name, good in done.items():
        print(f"{name}: {'installed' if good else 'could not be installed, see .cache/bench/install.log'}")
    return 0 if done.get("tools", True) else 1


if __name__ == "__main__":
    raise SystemExit(main())
