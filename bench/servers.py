"""nginx in its two roles: an upstream with canned answers, and the plain reverse proxy to compare with."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

from bench import payloads, processes

_BASE = """\
daemon off;
worker_processes 1;
pid {home}/nginx.pid;
error_log stderr error;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {home}/body;
  proxy_temp_path {home}/proxy;
  fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi;
  scgi_temp_path {home}/scgi;
  client_max_body_size 0;
  client_body_buffer_size 2m;
  keepalive_timeout 600s;
  keepalive_requests 1000000000;
  {body}
}}
"""


class NoNginxError(RuntimeError):
    """nginx is not installed."""


def nginx(home: Path, body: str, cores: frozenset[int]) -> subprocess.Popen[bytes]:
    """Start a private nginx. Raises `NoNginxError`."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if program is None:
        raise NoNginxError("nginx is not installed (Debian: apt-get install --no-install-recommends nginx)")
    home.mkdir(parents=True, exist_ok=True)
    config = home / "nginx.conf"
    config.write_text(_BASE.format(home=home, body=body))
    return processes.start([program, "-p", home, "-e", "stderr", "-c", config], cores, home / "nginx.log")


def canned(port: int) -> str:
    """Answers of Bedrock and OpenAI that cost the upstream next to nothing."""
    headers = "".join(f'    add_header {name} "{value}";\n' for name, value in payloads.HEADERS.items())

    def location(match: str, answer: bytes) -> str:
        return f"  location ~ {match} {{\n    default_type application/json;\n{headers}    return 200 '{answer.decode()}';\n  }}\n"

    routes = location("/converse$", payloads.CONVERSE_WHOLE)
    routes += location("/completions$", payloads.CHAT_WHOLE)
    routes += location("/", payloads.LLAMA_WHOLE)
    return f"server {{\n  listen 127.0.0.1:{port} backlog=4096;\n{routes}  }}"


def forwarding(port: int, upstream: int) -> str:
    """A reverse proxy with keep-alive to its upstream; streams pass as they come."""
    return f"""upstream bedrock {{ server 127.0.0.1:{upstream}; keepalive 512; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://bedrock;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}"""


class Upstream:
    """What stands for Bedrock: always at the same address, in the form a measurement needs."""

    def __init__(self, home: Path, cores: frozenset[int]) -> None:
        self.port = processes.free_port()
        self._home = home
        self._cores = cores
        self._process: subprocess.Popen[bytes] | None = None
        self.form = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def whole(self) -> None:
        """Whole answers at once, from nginx."""
        if self.form != "whole":
            self.stop()
            self._replace("whole", nginx(self._home / "upstream", canned(self.port), self._cores))

    def paced(self, *, events: int = 50, gap_ms: float = 50.0, delay_ms: float = 0.0) -> None:
        """Streams of `events` events `gap_ms` apart; whole answers after `delay_ms`."""
        form = f"paced {events} {gap_ms} {delay_ms}"
        if self.form == form:
            return
        self.stop()
        command = [sys.executable, "-m", "bench.streamer", str(self.port), "--events", str(events)]
        command += ["--gap-ms", str(gap_ms), "--delay-ms", str(delay_ms)]
        root = Path(__file__).resolve().parents[1]
        self._replace(
            form, processes.start(command, self._cores, self._home / "streamer.log", directory=root)
        )

    def cpu_us(self) -> int:
        return 0 if self._process is None else processes.cpu_us(self._process.pid)

    def stop(self) -> None:
        if self._process is not None:
            processes.stop(self._process)
        self._process, self.form = None, ""

    def _replace(self, form: str, process: subprocess.Popen[bytes]) -> None:
        self._process, self.form = process, form
        if not processes.wait_for_http(f"{self.url}/health/completions", process, 20):
            raise RuntimeError(f"the upstream ({form}) does not answer; see {self._home}")
        time.sleep(0.2)
