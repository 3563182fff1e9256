"""One measurement each: what was asked, how fast it went, and what it cost whom."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import processes, wrk
from bench.contestants import Ask, Contestant, Place

Figures = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]


@dataclass(slots=True)
class Cost:
    """CPU used between the beginning and the end of a block, in µs, and how busy the cores were."""

    proxy: int = 0
    postgres: int = 0
    redis: int = 0
    upstream: int = 0
    busy: dict[str, float] = field(default_factory=dict)

    def per(self, calls: int) -> Figures:
        """µs per call."""
        if not calls:
            return {}
        parts = {"proxy": self.proxy, "postgres": self.postgres, "redis": self.redis}
        return {f"cpu_us_{name}": round(value / calls, 1) for name, value in parts.items()}


@contextmanager
def counted(place: Place, contestant: Contestant) -> Iterator[Cost]:
    cost = Cost()
    cores = {"proxy": min(place.cores.proxy), "rest": min(place.cores.rest)}
    processes.quiet(cores["proxy"])
    before = {name: processes.busy_ticks(core) for name, core in cores.items()}
    began = _readings(place, contestant)
    try:
        yield cost
    finally:
        ended = _readings(place, contestant)
        cost.proxy, cost.postgres, cost.redis, cost.upstream = (
            later - earlier for later, earlier in zip(ended, began, strict=True)
        )
        for name, core in cores.items():
            worked, total = processes.busy_ticks(core)
            cost.busy[name] = round((worked - before[name][0]) / max(1, total - before[name][1]), 3)


def _readings(place: Place, contestant: Contestant) -> tuple[int, int, int, int]:
    return (
        0 if contestant.pid is None else processes.cpu_us(contestant.pid),
        place.bank.postgres_us(),
        place.bank.valkey_us(),
        place.upstream.cpu_us(),
    )


def closed(
    place: Place,
    contestant: Contestant,
    connections: int,
    seconds: float,
    *,
    ask: Ask | None = None,
    tokens: Sequence[str] = (),
) -> Figures:
    """Closed loop. Latencies in ms; CPU in µs per call; every answer but 2xx is an error."""
    core = min(place.cores.rest)
    question = ask or contestant.ask(stream=False)
    with counted(place, contestant) as cost:
        load = wrk.run(question, connections=connections, seconds=seconds, core=core, tokens=tokens)
    return {
        "calls": load.requests,
        "rate": round(load.rate, 1),
        "p50": load.p50,
        "p95": load.p95,
        "p99": load.p99,
        "refused": load.refused,
        "errors": load.refused + load.broken,
        "busy": cost.busy,
        **cost.per(load.requests),
    }


def open_loop(
    place: Place, contestant: Contestant, *, rate: float, seconds: float, connections: int = 64
) -> Figures:
    """A fixed rate, evenly spaced, latency from the moment each call was due."""
    order = {"kind": "rate", "rate": rate, "seconds": seconds, "connections": connections, "patience": 20}
    with counted(place, contestant) as cost:
        seen = _client(place, contestant.ask(stream=False), order)
    return {
        "calls": seen["complete"],
        **seen["ms"],
        "errors": sum(seen["errors"].values()),
        "error_kinds": seen["errors"],
        "client_cpu_share": seen["client_cpu_share"],
        "busy": cost.busy,
        **cost.per(seen["complete"]),
    }


def streams(
    place: Place, contestant: Contestant, *, count: int, rounds: int, events: int, spread: float
) -> Figures:
    """`count` streams at once, `rounds` times over; time to the first event and delay of every event, ms."""
    order = {"kind": "streams", "streams": count, "rounds": rounds, "events": events, "spread": spread}
    with counted(place, contestant) as cost, _peak(contestant) as peak:
        seen = _client(place, contestant.ask(stream=True), order | {"patience": 40})
    ended = seen["complete"]
    return {
        "streams": seen["started"],
        "complete": ended,
        "first": seen["ms"],
        "total": seen["total_ms"],
        "delay": seen["delay_ms"],
        "errors": seen["started"] - ended,
        "error_kinds": seen["errors"],
        "client_cpu_share": seen["client_cpu_share"],
        "upstream_cpu_share": round(cost.upstream / 1e6 / seen["seconds"], 3),
        "busy": cost.busy,
        "memory": peak,
        **{name.replace("_us_", "_ms_"): round(value / 1000, 3) for name, value in cost.per(ended).items()},
    }


@contextmanager
def _peak(contestant: Contestant) -> Iterator[Figures]:
    """The largest memory seen while the block ran, MiB; looked at once a second in a thread."""
    from threading import Event, Thread

    seen: Figures = {}
    over = Event()

    def watch() -> None:
        while contestant.pid is not None and not over.wait(1.0):
            now = processes.memory(contestant.pid)
            seen["pss"] = max(now.pss, seen.get("pss", 0.0))
            seen["rss_largest"] = max(now.rss_largest, seen.get("rss_largest", 0.0))

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def memory(contestant: Contestant) -> Figures:
    if contestant.pid is None:
        return {}
    now = processes.memory(contestant.pid)
    return {"pss": now.pss, "rss_largest": now.rss_largest}


def answers(contestant: Contestant, *, stream: bool) -> str:
    """Empty when one request is answered as it should be, else what went wrong."""
    import http.client

    ask = contestant.ask(stream=stream)
    try:
        line = http.client.HTTPConnection("127.0.0.1", ask.port, timeout=60)
        line.request("POST", ask.path, ask.body, ask.headers)
        answer = line.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    return "" if answer.status == 200 else f"{answer.status} {body[:200]!r}"


def settled_down(contestant: Contestant, *, stream: bool = False, seconds: float = 10.0) -> str:
    """Ask until connections to an upstream that was exchanged have been made anew; what is wrong, if anything."""
    deadline = time.monotonic() + seconds
    while True:
        wrong = answers(contestant, stream=stream)
        if not wrong or time.monotonic() > deadline:
            return wrong
        time.sleep(0.1)


def _client(place: Place, ask: Ask, order: Figures) -> Figures:
    order = order | {
        "host": "127.0.0.1",
        "port": ask.port,
        "path": ask.path,
        "headers": ask.headers,
        "body": ask.body.decode(),
    }
    core = str(min(place.cores.rest))
    done = subprocess.run(
        ["taskset", "-c", core, sys.executable, "-m", "bench.client"],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the client failed: {done.stderr[-1500:]}")
    seen: Figures = json.loads(done.stdout)
    return seen
