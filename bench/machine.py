"""What the figures were measured on: processor, kernel, disk, versions, and how busy it is now."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FSYNC_TRIES = 200


def describe(directory: Path) -> dict[str, Any]:
    """`directory` is on the disk that Postgres writes to: its fsync latency is measured there."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count() or 1,
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        "kernel": platform.release(),
        "python": f"{platform.python_version()} ({platform.python_compiler()}, {sys.base_prefix})",
        "fsync_us": fsync_us(directory),
        "load_average": list(os.getloadavg()),
        "versions": {
            "nginx": said("nginx", "-v"),
            "wrk": said("wrk", "-v").partition(" [")[0],
            "node": f"node {said('node', '--version')}",
        },
    }


def fsync_us(directory: Path) -> dict[str, float]:
    """Median and 99th percentile of a 4 KiB append with fdatasync, as Postgres flushes its log, in µs."""
    took = []
    with tempfile.NamedTemporaryFile(dir=directory) as file:
        for _ in range(FSYNC_TRIES):
            os.write(file.fileno(), b"\0" * 4096)
            began = time.perf_counter_ns()
            os.fdatasync(file.fileno())
            took.append((time.perf_counter_ns() - began) / 1000)
    return {
        "p50": round(statistics.median(took), 1),
        "p99": round(statistics.quantiles(took, n=100)[98], 1),
    }


def said(*command: str) -> str:
    """The first line a program prints about itself; empty when it is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0].strip() if lines else ""


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
