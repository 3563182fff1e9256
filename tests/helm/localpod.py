"""Runs what the chart renders as local processes: exactly its command, arguments, environment and mounted files.

What a cluster would give and a laptop cannot is replaced, and only that: Secrets by a mapping, container ports by
free ports, mount paths by directories, Services by the addresses of the processes, the pod network by loopback.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.helm.chart import Document, container

#: what the image itself sets and the chart relies on
IMAGE = {
    "PATH": os.environ["PATH"],
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    "LANG": "C.UTF-8",
}


#: makes everything read-only but the directories before "--", then becomes the command after it
_READ_ONLY = (
    'while [ "$1" != -- ]; do mount --bind "$1" "$1" || exit 125; shift; done; shift; '
    'mount -o remount,ro,bind / || exit 125; exec "$@"'
)
_UNSHARE = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _READ_ONLY, "sh"]


@functools.cache
def read_only_root() -> bool:
    """Whether this machine lets us give a process a root file system that it cannot write."""
    try:
        done = subprocess.run([*_UNSHARE, "--", "true"], capture_output=True, timeout=10, check=False)
    except OSError:
        return False
    return done.returncode == 0


#: proxy, its worker processes, the admin's, and a resource tracker for each
MOST_PROCESSES = 12


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def mount(directory: Path, items: list[dict[str, str]], data: dict[str, str]) -> None:
    """Lay a ConfigMap out as the kubelet does: links through `..data`, which is swapped at once."""
    version = directory / f"..{time.monotonic_ns()}"
    for item in items:
        file = version / item["path"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(data[item["key"]])
    fresh = directory / "..data_tmp"
    fresh.symlink_to(version.name)
    fresh.replace(directory / "..data")
    for top in {item["path"].split("/")[0] for item in items}:
        link = directory / top
        if not link.is_symlink():
            link.symlink_to(Path("..data") / top)


@dataclass
class LocalPod:
    """One container of the chart, as a process."""

    workload: Document
    secrets: dict[str, dict[str, str]]
    root: Path
    configmaps: dict[str, dict[str, str]] = field(default_factory=dict)
    #: set by the platform, as EKS does for IRSA
    injected: dict[str, str] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.container = container(self.workload)
        self.pod = self.workload["spec"]["template"]["spec"]
        self.root.mkdir(parents=True, exist_ok=True)
        self.ports = {port["name"]: free_port() for port in self.container.get("ports", [])}
        self._numbers = {
            str(port["containerPort"]): str(self.ports[port["name"]])
            for port in self.container.get("ports", [])
        }
        self.mounts = {m["mountPath"]: self.root / m["name"] for m in self.container.get("volumeMounts", [])}
        for path in self.mounts.values():
            path.mkdir(exist_ok=True)
        for volume in self.pod.get("volumes", []):
            if "configMap" in volume:
                source = volume["configMap"]
                mount(self.root / volume["name"], source["items"], self.configmaps[source["name"]])

    @property
    def log(self) -> Path:
        return self.root / "log"

    def environment(self) -> dict[str, str]:
        found = dict(IMAGE) | self.injected
        for variable in self.container["env"]:
            value = self._value(variable)
            if value is not None:
                found[variable["name"]] = value
        return found

    def _value(self, variable: dict[str, Any]) -> str | None:
        if "value" not in variable:
            reference = variable["valueFrom"]["secretKeyRef"]
            held = self.secrets.get(reference["name"], {})
            assert reference["key"] in held or reference.get("optional"), (
                f"{variable['name']}: no such secret"
            )
            return held.get(reference["key"])
        value: str = variable["value"]
        if variable["name"].endswith("_PORT"):
            return self._numbers[value]
        if value in {"0.0.0.0", "::"}:
            return "127.0.0.1"
        for path, directory in self.mounts.items():
            if value == path or value.startswith(path + "/"):
                return str(directory) + value.removeprefix(path)
        return value

    def command(self) -> list[str]:
        command = [*self.container["command"], *self.container.get("args", [])]
        assert command[0] == "tollhouse"
        ours = [sys.executable, "-m", "proxy", *command[1:]]
        if not (self.container["securityContext"]["readOnlyRootFilesystem"] and read_only_root()):
            return ours
        return [*_UNSHARE, *map(str, self.mounts.values()), "--", *ours]

    def start(self) -> None:
        environment = self.environment()
        if "/tmp" in self.mounts:
            environment["TMPDIR"] = str(self.mounts["/tmp"])
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                env=environment,
                cwd=self._cwd(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _cwd(self) -> Path:
        """The repository: the package is not installed where a container has it."""
        return Path(__file__).parents[2]

    def probe(self, name: str) -> int:
        """The status a kubelet would see, 0 for none."""
        get = self.container[name]["httpGet"]
        address = f"http://127.0.0.1:{self.ports[get['port']]}{get['path']}"
        try:
            with urllib.request.urlopen(address, timeout=self.container[name]["timeoutSeconds"]) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def await_started(self) -> None:
        """Probe as a kubelet does. Raises AssertionError where it would kill the container."""
        probe = self.container["startupProbe"]
        deadline = time.monotonic() + min(probe["failureThreshold"] * probe["periodSeconds"], 30)
        while self.probe("startupProbe") != 200:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            assert self.processes() <= MOST_PROCESSES, "its processes multiply"
            time.sleep(0.05)

    def processes(self) -> int:
        """How many processes it has now."""
        assert self.process is not None
        group = str(self.process.pid)
        found = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                found += stat.read_text().rpartition(")")[2].split()[2] == group
            except OSError:
                continue  # it has ended meanwhile
        return found

    def terminate(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    def run(self, seconds: float = 60) -> int:
        """To its end; the exit code."""
        self.start()
        assert self.process is not None
        return self.process.wait(seconds)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
