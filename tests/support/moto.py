"""moto's server as a process: CloudWatch, CloudWatch Logs and S3 as boto3 speaks to them.

moto's server brings a web framework of its own, so it lives in a virtual environment under `.cache/`, made
once from the package index that pip is configured for. Where that fails, whoever asks is skipped and says so.
"""

from __future__ import annotations

import fcntl
import http.client
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.support.stack import free_port

VERSION = "5.2.5"
PLACE = Path(__file__).parents[2] / ".cache" / "moto"
INSTALL_SECONDS, START_SECONDS = 240, 40


def installed() -> Path:
    """The server's command. Skips the test where it cannot be installed."""
    PLACE.parent.mkdir(exist_ok=True)
    with (PLACE.parent / "moto.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = PLACE / f"ready-{VERSION}"
        if not done.exists():
            try:
                subprocess.run([sys.executable, "-m", "venv", str(PLACE)], check=True, capture_output=True)
                subprocess.run(
                    [str(PLACE / "bin" / "python"), "-m", "pip", "install", "-q", f"moto[server]=={VERSION}"],
                    check=True, capture_output=True, timeout=INSTALL_SECONDS,
                )  # fmt: skip
            except (subprocess.SubprocessError, OSError) as error:
                pytest.skip(f"NOT TESTED: moto[server] could not be installed: {error}")
            done.touch()
    return PLACE / "bin" / "moto_server"


@contextmanager
def serving() -> Iterator[str]:
    """The address of a server with nothing in it."""
    command, port = installed(), free_port()
    process = subprocess.Popen(
        [str(PLACE / "bin" / "python"), str(command), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        _await(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _await(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/moto-api/data.json")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.1)
        finally:
            connection.close()
    raise AssertionError("moto's server did not start")


def client(service: str, url: str, region: str = "us-east-1") -> Any:
    return boto3.client(  # type: ignore[call-overload]
        service, region, endpoint_url=url, aws_access_key_id="AKIDEXAMPLE", aws_secret_access_key="secret"
    )


def put_log(url: str, group: str, events: list[tuple[int, str]], region: str = "us-east-1") -> None:
    """Events of (unix milliseconds, text), into the one stream Bedrock writes to."""
    logs = client("logs", url, region)
    stream = "aws/bedrock/modelinvocations"
    for make, arguments in (
        (logs.create_log_group, {"logGroupName": group}),
        (logs.create_log_stream, {"logGroupName": group, "logStreamName": stream}),
    ):
        try:
            make(**arguments)
        except logs.exceptions.ResourceAlreadyExistsException:
            pass
    for start in range(0, len(events), 500):
        logs.put_log_events(
            logGroupName=group, logStreamName=stream,
            logEvents=[{"timestamp": at, "message": text} for at, text in sorted(events)[start : start + 500]],
        )  # fmt: skip
