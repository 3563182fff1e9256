"""The product as processes that can be frozen, looked into and killed one by one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults import wreck
from tests.faults.wreck import Remains
from tests.support.stack import Proxy

#: granian takes a worker that dies twice within 5.5 s for a crash loop and gives up
CRASH_LOOP_SECONDS = 5.7
#: two deaths that granian learns of together count for both places
_GAP_SECONDS = 0.3
_SHIM = Path(__file__).resolve().parents[2] / "proxy" / "embedded" / "shim.py"
#: a harness that is killed leaves nothing behind
_END_WITH_US = (sys.executable, "-I", "-S", str(_SHIM), "same", str(int(signal.SIGKILL)))
#: imports before the server forks, so that a thousand deaths do not cost a thousand times all imports
_PRELOADED = "import proxy.app, sys; from proxy.cli import main; sys.exit(main(sys.argv[1:]))"


def stat_of(pid: int) -> tuple[str, int]:
    """(state, parent) of a process; ("", 0) when there is none."""
    try:
        fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        )
    except OSError:
        return "", 0
    return fields[0], int(fields[1])


def children_of(parent: int) -> list[int]:
    try:
        tasks = Path(f"/proc/{parent}/task").iterdir()
        return [int(c) for t in tasks for c in (t / "children").read_text(encoding="ascii").split()]
    except OSError:
        return []


@dataclass
class Death:
    """One killed process: when (unix seconds), and what its flight recorders said when it could be asked."""

    at: float
    pid: int
    how: str
    remains: list[Remains] | None = None


@dataclass
class Tree:
    """`tollhouse serve` with its worker processes."""

    proxy: Proxy
    root: Path  # of the source tree that is run
    settings: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    deaths: list[Death] = field(default_factory=list)
    exits: int = 0
    quiet: bool = False
    starts: list[float] = field(default_factory=list)
    _last: tuple[int, float] = (0, float("-inf"))
    _slots: dict[int, int] = field(default_factory=dict)
    _vacant: list[int] = field(default_factory=list)
    _launched: float = 0.0

    @property
    def log(self) -> Path:
        return self.proxy.state_dir.with_suffix(".log")

    def launch(self, *, quiet: bool = False, **settings: str) -> None:
        """Starts it and does not wait. `quiet` throws its words away, where its files must stay small."""
        self.quiet = quiet
        self.settings = settings
        self._launched = time.monotonic()
        self.process = self._spawn("serve", settings)
        self._slots, self._vacant = {}, []

    async def start(self, *, quiet: bool = False, **settings: str) -> None:
        """Returns when it is ready to serve."""
        self.launch(quiet=quiet, **settings)
        await self.await_ready()

    async def await_ready(self) -> None:
        await asyncio.to_thread(self.proxy.await_ready, self.process, 40.0)
        self.starts.append(time.monotonic() - self._launched)

    def _spawn(self, verb: str, settings: dict[str, str]) -> subprocess.Popen[bytes]:
        self.proxy.log = self.log
        with Path(os.devnull if self.quiet else self.log).open("ab") as log:
            return subprocess.Popen(
                [*_END_WITH_US, str(os.getpid()), "--", sys.executable, "-c", _PRELOADED, verb],
                env=self.proxy.environment() | settings | self._places(),
                cwd=self.root, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def _places(self) -> dict[str, str]:
        metrics = self.proxy.state_dir.with_name("metrics")
        metrics.mkdir(exist_ok=True)
        return {"PYTHONPATH": str(self.root), "PROMETHEUS_MULTIPROC_DIR": str(metrics)}

    def spawn_worker(self) -> subprocess.Popen[bytes]:
        """`tollhouse worker` beside it; the caller ends it."""
        return self._spawn("worker", {})

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def children(self) -> list[int]:
        return children_of(self.process.pid) if self.process is not None else []

    def workers(self) -> list[int]:
        """Worker processes that have opened their flight recorder."""
        if self.process is None:
            return []
        return [pid for pid in children_of(self.process.pid) if wreck.files_of(pid)]

    def slot(self, pid: int) -> int:
        """Which of granian's places this worker has: new ones take the places of the dead, in their order."""
        for new in sorted(set(self.children()) - self._slots.keys()):
            self._slots[new] = self._vacant.pop(0) if self._vacant else len(self._slots)
        return self._slots.get(pid, -1)

    def may_kill(self, pid: int) -> bool:
        """False while this death would look like a crash loop to granian."""
        slot, at = self._last
        quiet = time.monotonic() - at
        if len(self.children()) < int(self.proxy.settings.get("TOLLHOUSE_WORKERS", "1")):
            return False  # it has not noticed the last one yet
        return quiet > CRASH_LOOP_SECONDS or (self.slot(pid) != slot and quiet > _GAP_SECONDS)

    async def freeze(self, pid: int) -> bool:
        """SIGSTOP; returns when it stands still, False when it is gone."""
        try:
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:
            return False
        while (state := stat_of(pid)[0]) not in {"T", "", "Z", "X"}:
            await asyncio.sleep(0.001)
        return state == "T"

    def wake(self, pids: list[int]) -> None:
        """SIGCONT to those that still live."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    async def kill_worker(self, pid: int, *, look: bool = True) -> Death | None:
        """SIGKILL of one worker process; with `look` it is frozen and its flight recorders are read first."""
        remains = None
        if look:
            if not await self.freeze(pid):
                return None
            remains = [r for path in wreck.files_of(pid) for r in wreck.read(path.read_bytes())]
        slot = self.slot(pid)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return None
        self._last = (slot, time.monotonic())
        self._vacant.append(slot)
        death = Death(time.time(), pid, "worker", remains)
        self.deaths.append(death)
        return death

    async def kill(self, *, look: bool = True) -> None:
        """SIGKILL of everything at one moment."""
        if self.process is None:
            return
        pids = [self.process.pid, *children_of(self.process.pid)]
        files: dict[int, list[Path]] = {}
        if look and self.alive:
            for pid in pids:
                await self.freeze(pid)
            files = {pid: wreck.files_of(pid) for pid in pids}
        data = {pid: [path.read_bytes() for path in paths] for pid, paths in files.items()}
        if self.alive:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pid in pids[1:]:
            remains = [r for d in data[pid] for r in wreck.read(d)] if look and pid in data else None
            self.deaths.append(Death(time.time(), pid, "tree", remains))
        while any(stat_of(pid)[0] not in {"", "Z"} for pid in pids):
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL."""
        if self.process is None:
            return
        if self.alive:
            self.process.terminate()
        try:
            await asyncio.to_thread(self.process.wait, 8)
        except subprocess.TimeoutExpired:
            await self.kill(look=False)

    async def watch(self, *, ready: bool = True) -> None:
        """Start it again when it has given up, as a supervisor would."""
        if self.alive:
            return
        self.exits += 1
        self.deaths.append(Death(time.time(), 0, "server exit"))  # its workers died with it, unseen
        self.launch(quiet=self.quiet, **self.settings)
        if ready:
            await self.await_ready()


def environment(**more: Any) -> dict[str, str]:
    return {key: str(value) for key, value in more.items()}
