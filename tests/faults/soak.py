"""Hours of mixed faults on processes that live: nothing may grow, and the invariants hold all the time.

Most of the time the proxy's own processes are left alive, so that a leak would show, while Redis, Postgres,
clients and the way to Bedrock misbehave. What is left of the time goes to the rounds that kill.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

from tests.faults import plan
from tests.faults.plan import Job
from tests.faults.world import World

#: share of the time in which the proxy's own processes live on
LIVING = 0.8
#: growth of resident memory that is allowed, KiB an hour, once it was watched for long enough
GROWTH_KIB_HOUR = 1024
WATCHED_SECONDS = 2 * 3600
#: caches fill and pools open before this, seconds
WARM_SECONDS = 900
FILES_MORE = 20
#: rounds of the full form during which the tree is neither killed nor restarted
_LIVING = (
    "Redis", "Postgres restarted", "Postgres sessions", "Postgres frozen", "Postgres gone", "clients leave",
    "retry storm", "edge of a budget", "exactly 100",
)  # fmt: skip


def sizes(pid: int) -> tuple[int, int]:
    """(resident KiB, open files) of a process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    resident = int(status.partition("VmRSS:")[2].split()[0])
    return resident, len(list(Path(f"/proc/{pid}/fd").iterdir()))


class Growth:
    """Memory and files of the processes that live, by process id: (monotonic seconds, KiB, files)."""

    def __init__(self) -> None:
        self.seen: dict[int, list[tuple[float, int, int]]] = {}

    def look(self, made: World) -> None:
        pids = made.tree.workers() + ([made.keeper.pid] if made.keeper is not None else [])
        for pid in pids:
            try:
                self.seen.setdefault(pid, []).append((time.monotonic(), *sizes(pid)))
            except (OSError, ValueError, IndexError):
                continue

    def slope(self, pid: int) -> tuple[float, float]:
        """(KiB an hour, seconds watched) by least squares, the warming-up left out."""
        first = self.seen[pid][0][0]
        points = [(at, kib) for at, kib, _ in self.seen[pid] if at - first > WARM_SECONDS]
        if len(points) < 3:
            return 0.0, 0.0
        mean_at = sum(at for at, _ in points) / len(points)
        mean_kib = sum(kib for _, kib in points) / len(points)
        spread = sum((at - mean_at) ** 2 for at, _ in points)
        slope = sum((at - mean_at) * (kib - mean_kib) for at, kib in points) / spread
        return slope * 3600, points[-1][0] - points[0][0]

    def wrong(self) -> list[str]:
        found = []
        for pid, looks in self.seen.items():
            slope, watched = self.slope(pid)
            if watched > WATCHED_SECONDS and slope > GROWTH_KIB_HOUR:
                found.append(f"process {pid} grew by {slope:.0f} KiB an hour for {watched / 3600:.1f} h")
            warm = [files for at, _, files in looks if at - looks[0][0] > WARM_SECONDS]
            if warm and warm[-1] - warm[0] > FILES_MORE:
                found.append(f"process {pid} had {warm[0]} files open and has {warm[-1]}")
        return found

    def told(self) -> list[str]:
        lines = []
        for pid, looks in self.seen.items():
            slope, watched = self.slope(pid)
            if watched:
                lines.append(
                    f"process {pid}: {looks[0][1]} to {looks[-1][1]} KiB, {slope:+.0f} KiB an hour over "
                    f"{watched / 3600:.2f} h, {looks[0][2]} to {looks[-1][2]} files"
                )
        return lines


class Schedule:
    """Which round comes next, by a seed, until the time is over."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.chance = random.Random(options.seed)
        self.began = time.monotonic()
        self.seconds = options.hours * 3600
        jobs = plan.full(0.25)
        self.living = [job for job in jobs if job.name.startswith(_LIVING)]
        self.deadly = [job for job in jobs if not job.name.startswith(_LIVING)]

    @property
    def over(self) -> bool:
        return bool(time.monotonic() - self.began > self.seconds)

    def next(self) -> Job:
        living = time.monotonic() - self.began < self.seconds * LIVING
        return self.chance.choice(self.living if living else self.deadly)
