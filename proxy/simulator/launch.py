"""Starts a simulator as a process of its own, for tests and for the one-command run."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path
from typing import IO, Any

_READY = "simulator ready "
_ROOT = Path(__file__).resolve().parents[2]


class NotReady(Exception):  # noqa: N818
    """The process ended, or said nothing, before it was ready; the message has what it printed."""


class Simulator:
    """A running simulator."""

    def __init__(self, process: "subprocess.Popen[str]", url: str) -> None:
        self._process = process
        self.url = url
        self.pid = process.pid

    def stop(self, timeout: float = 5.0) -> None:
        """SIGTERM, then SIGKILL after ``timeout`` seconds. Safe to call again."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._reap()

    def kill(self) -> None:
        """SIGKILL: the bill is lost with it."""
        self._process.kill()
        self._reap()

    def _reap(self) -> None:
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """A request to a control path (``/_bill``, ``/_control``…); returns the parsed answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method)  # noqa: S310 - our own URL
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return json.load(answer)

    def bill(self, **query: int) -> Any:
        return self.call("GET", "/_bill" + _query(query))

    def requests(self) -> list[dict[str, Any]]:
        seen: list[dict[str, Any]] = self.call("GET", "/_requests")["requests"]
        return seen

    def fault(self, *rules: dict[str, Any]) -> None:
        self.call("POST", "/_control", list(rules))

    def hold(self, *, hold: bool) -> None:
        self.call("POST", "/_barrier", {"hold": hold})

    def waiting(self) -> int:
        return int(self.call("GET", "/_barrier")["waiting"])

    def reset(self) -> None:
        """No rules, no bill, no request log, no held answers."""
        self.call("DELETE", "/_control")
        self.hold(hold=False)
        self.call("DELETE", "/_bill")
        self.call("DELETE", "/_requests")


def _query(values: dict[str, int]) -> str:
    return "?" + "&".join(f"{name}={value}" for name, value in values.items()) if values else ""


def start(host: str = "127.0.0.1", port: int = 0, *, timeout: float = 20.0, **settings: Any) -> Simulator:
    """Starts one and waits until it listens. Raises NotReady.

    It ends with the calling thread (Linux), and is a session of its own, so that Ctrl-C is not for it.
    ``settings`` are those of :func:`proxy.simulator.serve.serve` and the fields of Config.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        # JSON is YAML.
        json.dump(settings, file)
        file.flush()
        command = [sys.executable, "-m", "proxy.simulator", "--host", host, "--port", str(port)]
        command += ["--parent", str(os.getpid()), "--config", file.name]
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command,
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        line = _first_line(process.stdout, timeout)
    if not line.startswith(_READY):
        process.kill()
        rest = process.communicate()[0]
        raise NotReady(f"the simulator did not start within {timeout} s: {line}{rest}")
    return Simulator(process, line.removeprefix(_READY).strip())


def _first_line(stream: IO[str], timeout: float) -> str:
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.append(stream.readline()), daemon=True)
    reader.start()
    reader.join(timeout)
    return lines[0] if lines else ""
