"""Child processes on the core they belong on, and what the operating system says they used."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_TICK_US = 1_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PR_SET_PDEATHSIG = 1
#: of a core: what idle contestants do together
QUIET_SHARE = 0.2
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True)
class Cores:
    """Where things run: the process under test alone on `proxy`, everything else on `rest`."""

    proxy: frozenset[int]
    rest: frozenset[int]

    @property
    def both(self) -> frozenset[int]:
        return self.proxy | self.rest

    @property
    def apart(self) -> bool:
        return self.proxy != self.rest

    @staticmethod
    def found() -> Cores:
        """The first two cores this process may use; one core serves both roles."""
        mine = sorted(os.sched_getaffinity(0))
        return Cores(frozenset(mine[:1]), frozenset(mine[1:2] or mine[:1]))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(
    command: Sequence[str | Path],
    cores: frozenset[int],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a child on `cores`, as a group of its own that ends with us. Its output goes to `log`."""

    def settle_in() -> None:
        os.sched_setaffinity(0, cores)
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        return subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=None if environment is None else dict(environment),
            cwd=directory,
            start_new_session=True,
            preexec_fn=settle_in,  # noqa: PLW1509 (no other thread runs while children are started)
        )


def stop(process: subprocess.Popen[bytes], seconds: float = 8.0) -> None:
    """End the whole group: politely, then not."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for_http(url: str, process: subprocess.Popen[bytes] | None, seconds: float) -> bool:
    """True as soon as the address answers anything but 5xx; False when it does not, or its process ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process is not None and process.poll() is not None:
            return False
        try:
            with urllib.request.urlopen(url, timeout=2):
                return True
        except urllib.error.HTTPError as error:
            if error.code < 500:
                return True
        except OSError:
            pass
        time.sleep(0.05)
    return False


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, at = [pid], 0
    while at < len(found):
        found += parents.get(found[at], [])
        at += 1
    return found


def cpu_us(pid: int) -> int:
    """User and system time of a tree, ended children included, in µs; exact to one clock tick."""
    ticks = 0
    for each in tree(pid):
        if fields := _stat(each):
            ticks += sum(int(value) for value in fields[11:15])  # utime, stime, cutime, cstime
    return ticks * _TICK_US


@dataclass(frozen=True, slots=True)
class Memory:
    """Of a process tree, in MiB: the sum of proportional sizes, and the largest resident process."""

    pss: float
    rss_largest: float


def memory(pid: int) -> Memory:
    pss, largest = 0.0, 0.0
    for each in tree(pid):
        with contextlib.suppress(OSError, ValueError, IndexError):
            largest = max(largest, int(Path(f"/proc/{each}/statm").read_text().split()[1]) * _PAGE / 2**20)
            for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    pss += int(line.split()[1]) / 1024
                    break
    return Memory(round(pss, 1), round(largest, 1))


def busy_ticks(core: int) -> tuple[int, int]:
    """(ticks a core worked, all its ticks) since boot; the share between two readings is how busy it was."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *values = line.split()
        if name == f"cpu{core}":
            ticks = [int(value) for value in values[:8]]
            return sum(ticks) - ticks[3] - ticks[4], sum(ticks)
    return 0, 1


def quiet(core: int, *, seconds: float = 60.0, look_s: float = 0.25) -> bool:
    """Wait until hardly anything runs on a core, for so many seconds at most; whether it came to that. A contestant that
    was asked more than it can serve works on for a while when nobody waits any more, and would be charged to the next.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        worked, total = busy_ticks(core)
        time.sleep(look_s)
        later, later_total = busy_ticks(core)
        if later - worked <= QUIET_SHARE * (later_total - total):
            return True
    return False


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/<pid>/stat after the name: state, parent, ..."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()
