"""Closed-loop load from wrk: so many connections, each asking again as soon as it is answered.

Being closed-loop it slows down with the server, so its latencies say nothing about a fixed rate; for
that there is `bench.client`.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.contestants import Ask

_SCRIPT = """\
local function slurp(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read("*a")
  file:close()
  return text
end
wrk.method = "POST"
wrk.path = "{path}"
wrk.body = slurp("{body}")
{headers}
{many}
done = function(summary, latency)
  local e = summary.errors
  io.write(string.format(
    'RESULT {{"requests":%d,"us":%d,"p50":%d,"p95":%d,"p99":%d,"max":%d,"status":%d,"socket":%d,"timeout":%d}}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(95),
    latency:percentile(99), latency.max, e.status, e.connect + e.read + e.write, e.timeout))
end
"""
_MANY = """\
local made, at = {{}}, 0
init = function(arguments)
  for token in io.lines("{tokens}") do
    wrk.headers["Authorization"] = "Bearer " .. token
    made[#made + 1] = wrk.format()
  end
end
request = function()
  at = at % #made + 1
  return made[at]
end
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of wrk saw. Latencies in ms."""

    requests: int
    seconds: float
    p50: float
    p95: float
    p99: float
    refused: int  # answers other than 2xx and 3xx
    broken: int  # connections that failed, and time-outs

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def run(ask: Ask, *, connections: int, seconds: float, core: int, tokens: Sequence[str] = ()) -> Load:
    """Whole seconds, at least one. With `tokens` every request is the next tenant's."""
    with tempfile.TemporaryDirectory(prefix="tollhouse-wrk-") as home:
        script = _script(Path(home), ask, tokens)
        command = [
            "taskset",
            "-c",
            str(core),
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{max(1, round(seconds))}s",
        ]
        command += ["--timeout", "30s", "-s", str(script), f"http://127.0.0.1:{ask.port}{ask.path}"]
        environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin")}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            found = json.loads(line.removeprefix("RESULT "))
            return Load(
                requests=found["requests"],
                seconds=found["us"] / 1e6,
                p50=found["p50"] / 1e3,
                p95=found["p95"] / 1e3,
                p99=found["p99"] / 1e3,
                refused=found["status"],
                broken=found["socket"] + found["timeout"],
            )
    raise RuntimeError(f"wrk failed: {done.stdout[-500:]}{done.stderr[-500:]}")


def _script(home: Path, ask: Ask, tokens: Sequence[str]) -> Path:
    (home / "body").write_bytes(ask.body)
    headers = "\n".join(f"wrk.headers[{json.dumps(k)}] = {json.dumps(v)}" for k, v in ask.headers.items())
    many = ""
    if tokens:
        (home / "tokens").write_text("\n".join(tokens) + "\n")
        many = _MANY.format(tokens=home / "tokens")
    script = home / "load.lua"
    script.write_text(_SCRIPT.format(path=ask.path, body=home / "body", headers=headers, many=many))
    return script
