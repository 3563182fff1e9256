"""`python -m bench.over_reservation [--streams 1,8,128] [--budget 1.50]`: how much of a budget gets used?

Agents stream from one model, each asking again as soon as it is answered and after `Retry-After` when its
budget is held, until one of them is told that the budget is spent; then those that run end. What was charged
by then is what the budget was good for, and what it is above the limit was overspent. The same load meets:

reject    a budget that refuses what may not fit; bytes only: with CountTokens off
clamp     a budget that lowers output limits to what it affords
post-hoc  no budget in the proxy, but a counter that is looked at before a call and added to after it

The simulator serves, at the pace told, and its bill is what was charged.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.world import APPLICATION, Bank
from proxy.simulator import launch
from tests.support.stack import NANO, Key, Proxy, get_json, nano, running

MODEL = "anthropic.claude-sonnet-4-20250514-v1:0"
INPUT_TOKENS, OUTPUT_LIMIT = 8_000, 8_000
#: output lengths, in turn
OUTPUTS = (500, 1_900, 800, 1_200, 600, 1_500)
PACE = 4_000
MODES = ("post-hoc", "reject, bytes only", "reject", "clamp")
LONGEST_SECONDS = 90.0
RESULTS = Path(__file__).parent / "results"


@dataclass
class Counter:
    """What a gateway does that adds up after the fact: whoever comes while there is some left gets in."""

    limit: int
    spent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self) -> bool:
        with self.lock:
            return self.spent < self.limit

    def add(self, cost: int) -> None:
        with self.lock:
            self.spent += cost


@dataclass
class Run:
    """One mode at one number of streams."""

    proxy: Proxy
    key: Key
    streams: int
    counter: Counter | None
    name: str
    answered: int = 0
    held: int = 0
    clamped: int = 0
    spent: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    until: float = 0.0

    def go(self) -> float:
        """Seconds until the last agent stopped."""
        began = time.monotonic()
        self.until = began + LONGEST_SECONDS
        with ThreadPoolExecutor(self.streams) as pool:
            for one in [pool.submit(self._agent, number) for number in range(self.streams)]:
                one.result()
        return time.monotonic() - began

    def _agent(self, number: int) -> None:
        turn = 0
        while not self.spent and time.monotonic() < self.until:
            if self.counter is not None and not self.counter.open():
                self.spent = True
                return
            body = _body(
                f"{self.name} {self.streams} {number} {turn}", OUTPUTS[(number + turn) % len(OUTPUTS)]
            )
            status, headers, cost = _stream(self.proxy, self.key, body)
            with self.lock:
                if status == 200:
                    self.answered += 1
                    self.clamped += "x-tollhouse-clamped" in headers
                    turn += 1
                elif status == 429:
                    self.held += 1
                elif status == 400:
                    self.spent = True
                else:
                    raise RuntimeError(f"answered {status}")
            if self.counter is not None:
                self.counter.add(cost)
            if status == 429:
                time.sleep(float(headers.get("retry-after", "1")))


def _body(name: str, wanted: int) -> bytes:
    text = f"[[tokens={wanted}]] {name} " + "gate " * INPUT_TOKENS
    return json.dumps(
        {
            "messages": [{"role": "user", "content": [{"text": text}]}],
            "inferenceConfig": {"maxTokens": OUTPUT_LIMIT},
        }
    ).encode()


def _stream(proxy: Proxy, key: Key, body: bytes) -> tuple[int, dict[str, str], int]:
    """Status, headers, and what an onlooker would add up: the cost of the usage at the stream's end."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=120)
    try:
        connection.request(
            "POST", f"/model/{MODEL}/converse-stream", body,
            {"Authorization": f"Bearer {key.bearer_token}", "Content-Type": "application/json"},
        )  # fmt: skip
        response = connection.getresponse()
        data = response.read()
        headers = {name.lower(): value for name, value in response.getheaders()}
    finally:
        connection.close()
    return response.status, headers, _cost(data) if response.status == 200 else 0


def _cost(data: bytes) -> int:
    """Nano-dollars of the usage in the last event."""
    at = data.rindex(b'"usage":')
    usage, _ = json.JSONDecoder().raw_decode(data[at + len(b'"usage":') :].decode("utf-8", "replace"))
    return int(usage["inputTokens"]) * 3_000 + int(usage["outputTokens"]) * 15_000


def measure(proxies: dict[str, Proxy], simulator: launch.Simulator, mode: str, streams: int, limit: int) -> dict[str, Any]:  # fmt: skip
    proxy = proxies[mode]
    simulator.reset()
    key = proxy.key()
    counter = Counter(limit) if mode == "post-hoc" else None
    if counter is None:
        usd = f"{limit // NANO}.{limit % NANO:09d}"
        proxy.budget(f"tenant:{key.tenant}", usd, on_short="clamp" if mode == "clamp" else "reject")
    run = Run(proxy, key, streams, counter, mode)
    seconds = run.go()
    items = proxy.settled_calls(tenant=key.tenant)
    billed = nano(get_json(f"{simulator.url}/_bill?summary=1")["total_usd"])
    charged = sum(nano(item["cost_usd"]) for item in items)
    if charged != billed:
        raise RuntimeError(f"{mode} at {streams}: charged {charged}, billed {billed}")
    return {
        "streams": streams, "mode": mode, "answered": run.answered, "held": run.held, "clamped": run.clamped,
        "counted": sum(item["kind"] == "probe" for item in items), "ended": run.spent,
        "used_percent": round(100 * min(charged, limit) / limit, 1),
        "overspent_percent": round(100 * max(0, charged - limit) / limit, 1), "seconds": round(seconds, 1),
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: used and overspent, by mode and streams."""
    head = ["streams", *(f"{mode}: used" for mode in MODES[1:]), "post-hoc: used", "post-hoc: overspent"]
    lines = [f"| {' | '.join(head)} |", "|" + "--:|" * len(head)]
    by = {(row["streams"], row["mode"]): row for row in rows}
    for streams in sorted({row["streams"] for row in rows}):
        cells = [f"{by[streams, mode]['used_percent']} %" for mode in MODES[1:]]
        after = by[streams, "post-hoc"]
        cells += [f"{after['used_percent']} %", f"{after['overspent_percent']} %"]
        lines.append(f"| {streams} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--streams", default="1,2,4,8,16,32,64,128")
    parser.add_argument("--budget", default="1.50", help="US dollars")
    options = parser.parse_args()
    limit, rows = nano(options.budget), []
    with tempfile.TemporaryDirectory(prefix="tollhouse-bench-") as home:
        place = Path(home)
        bank = Bank.start(place)
        simulator = launch.start(tokens_per_second=PACE)
        settings = {"TOLLHOUSE_PREFIX_ADVICE": "false"}
        database = bank.postgres.url_for(role=APPLICATION)
        plain = Proxy(database, bank.valkey.url, simulator.url, place / "a" / "state", settings)
        bare = Proxy(
            database, bank.valkey.url, simulator.url, place / "b" / "state",
            settings | {"TOLLHOUSE_COUNTS_PER_SECOND": "0"}, master_key=plain.master_key,
        )  # fmt: skip
        try:
            with running(plain), running(bare):
                proxies = dict.fromkeys(MODES, plain) | {"reject, bytes only": bare}
                for streams in (int(n) for n in options.streams.split(",")):
                    for mode in MODES:
                        rows.append(measure(proxies, simulator, mode, streams, limit))
                        print(json.dumps(rows[-1]), flush=True)
        finally:
            simulator.stop()
            bank.stop()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "over-reservation.json").write_text(
        json.dumps({"budget_usd": options.budget, "rows": rows}, indent=1)
    )
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
