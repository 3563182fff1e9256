"""Send the requests with a stock boto3 client, at their times whatever the answers do."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

from proxy.replay.plan import Shape

REGION = "us-east-1"
_ANSWER_SECONDS = 300
_SLICE_S = 0.25
_PROGRESS_S = 5.0
#: behind by more than this, the schedule was not kept
LATE_S = 1.0


class Cut(Exception):  # noqa: N818
    """A stream ended without its usage: boto3 takes a clean early end for a whole answer."""


@dataclass(frozen=True, slots=True)
class Sender:
    """One tenant of the run and the access key pair that signs for it."""

    tenant: str
    access_key_id: str
    secret_access_key: str


@dataclass(slots=True)
class Tally:
    """What the clients saw. Only the tally's own methods change it."""

    answered: Counter[str] = field(default_factory=Counter)  #: by tenant
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)  #: by tenant and error code
    failed: Counter[tuple[str, str]] = field(default_factory=Counter)  #: by tenant and kind of failure
    #: `x-tollhouse-call-id` of every whole answer: each must have its row in the ledger
    calls: dict[str, str] = field(default_factory=dict)
    late_max_s: float = 0.0
    sent: int = 0
    elapsed_s: float = 0.0
    interrupted: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, tenant: str, call: str | None) -> None:
        with self._lock:
            self.answered[tenant] += 1
            if call:
                self.calls[call] = tenant

    def refuse(self, tenant: str, code: str) -> None:
        with self._lock:
            self.refused[tenant, code] += 1

    def fail(self, tenant: str, kind: str) -> None:
        with self._lock:
            self.failed[tenant, kind] += 1

    @property
    def done(self) -> int:
        return sum(counter.total() for counter in (self.answered, self.refused, self.failed))


@cache
def _session() -> boto3.session.Session:
    """One, because it keeps the parsed service model: the second client costs a tenth of the first."""
    return boto3.session.Session()


def client(proxy_url: str, sender: Sender, connections: int) -> Any:
    """A stock client of the SDK: SigV4, and no retries, because a row of the trace is one call."""
    config = Config(
        signature_version="v4",
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=connections,
        connect_timeout=10,
        read_timeout=_ANSWER_SECONDS,
    )
    return _session().client(
        "bedrock-runtime",
        endpoint_url=proxy_url,
        config=config,
        region_name=REGION,
        aws_access_key_id=sender.access_key_id,
        aws_secret_access_key=sender.secret_access_key,
    )


def send(client: Any, shape: Shape) -> str | None:
    """One call, read to its end; returns its `x-tollhouse-call-id`.

    Raises botocore's exceptions, and `Cut` for a stream without its usage.
    """
    body = _native(shape) if shape.operation.startswith("invoke") else None
    streams = shape.operation.endswith("stream")
    if body is not None:
        operation = client.invoke_model_with_response_stream if streams else client.invoke_model
        answer = operation(modelId=shape.model, body=body)
        if streams:
            _read_native_stream(answer["body"])
        else:
            answer["body"].read()
    else:
        operation = client.converse_stream if streams else client.converse
        answer = operation(
            modelId=shape.model,
            messages=[{"role": "user", "content": [{"text": shape.text}]}],
            inferenceConfig={"maxTokens": shape.output_tokens},
        )
        if streams and not any("metadata" in event for event in list(answer["stream"])):
            raise Cut("no metadata event")
    call: str | None = answer["ResponseMetadata"]["HTTPHeaders"].get("x-tollhouse-call-id")
    return call


def _native(shape: Shape) -> bytes | None:
    """The family's own body; None for families that are only sent through Converse."""
    if "meta.llama" in shape.model:
        return json.dumps({"prompt": shape.text, "max_gen_len": shape.output_tokens}).encode()
    if "anthropic.claude" in shape.model:
        return json.dumps(
            {
                "anthropic_version": "bedrock-2023-05-31",
                "max_tokens": shape.output_tokens,
                "messages": [{"role": "user", "content": shape.text}],
            }
        ).encode()
    return None


def _read_native_stream(events: Iterable[dict[str, Any]]) -> None:
    last = b""
    for event in events:
        last = event.get("chunk", {}).get("bytes", b"")
    if b"amazon-bedrock-invocationMetrics" not in last:
        raise Cut("no invocation metrics")


class Driver:
    """Open loop: a request starts at its time, not when another one has ended.

    At most `concurrency` run at once. A request that finds none free waits, and how late the
    latest one was is kept: beyond `LATE_S` the run measured less load than it was asked for.
    """

    def __init__(
        self, proxy_url: str, senders: Sequence[Sender], concurrency: int, output: Callable[[str], Any]
    ) -> None:
        self._senders = senders
        self._clients = [client(proxy_url, sender, concurrency) for sender in senders]
        self._concurrency = concurrency
        self._slots = threading.BoundedSemaphore(concurrency)
        self._output = output
        self._running: list[Future[None]] = []
        self._total = 0
        self._began = self._told = 0.0
        self.tally = Tally()

    def run(self, shapes: Sequence[Shape]) -> Tally:
        """Send all. Ctrl-C stops sending and waits for what runs; a second one is passed on."""
        self._total = len(shapes)
        self._began = self._told = time.monotonic()
        pool = ThreadPoolExecutor(self._concurrency, "replay")
        try:
            for shape in shapes:
                self._start(pool, shape)
        except KeyboardInterrupt:
            self.tally.interrupted = True
            self._output("interrupted: waiting for the calls that run")
        self._finish()
        pool.shutdown()
        self.tally.elapsed_s = time.monotonic() - self._began
        self._tell(last=True)
        return self.tally

    def _start(self, pool: ThreadPoolExecutor, shape: Shape) -> None:
        due = self._began + shape.due_s
        while (left := due - time.monotonic()) > 0:
            time.sleep(min(left, _SLICE_S))
            self._tell()
        while not self._slots.acquire(timeout=_SLICE_S):
            self._tell()
        self.tally.late_max_s = max(self.tally.late_max_s, time.monotonic() - due)
        self.tally.sent += 1
        self._running.append(pool.submit(self._one, shape))

    def _finish(self) -> None:
        while wait(self._running, timeout=_SLICE_S).not_done:
            self._tell()

    def _one(self, shape: Shape) -> None:
        tenant = self._senders[shape.tenant].tenant
        try:
            call = send(self._clients[shape.tenant], shape)
        except ClientError as error:  # EventStreamError, an error inside a stream, is one too
            self.tally.refuse(tenant, str(error.response.get("Error", {}).get("Code", "unknown")))
        except (BotoCoreError, HTTPClientError, Cut, OSError) as error:
            self.tally.fail(tenant, type(error).__name__)
        except Exception as error:
            self.tally.fail(tenant, f"{type(error).__name__}: {error}"[:80])
        else:
            self.tally.answer(tenant, call)
        finally:
            self._slots.release()

    def _tell(self, *, last: bool = False) -> None:
        """A line that is written over on a terminal; elsewhere one every few seconds."""
        now, terminal = time.monotonic(), sys.stderr.isatty()
        if not last and now - self._told < (_SLICE_S if terminal else _PROGRESS_S):
            return
        self._told = now
        line = progress(self.tally, self._total, now - self._began)
        if terminal:
            print(f"\r\x1b[K{line}", end="\n" if last else "", file=sys.stderr, flush=True)
        else:
            self._output(line)


def progress(tally: Tally, total: int, elapsed_s: float) -> str:
    """One line: how far, how fast, what went wrong so far."""
    done, seconds = tally.done, max(elapsed_s, 1e-9)
    parts = [f"{done}/{total} calls", f"{elapsed_s:.0f} s", f"{done / seconds:.0f}/s"]
    for name, counter in (("refused", tally.refused), ("failed", tally.failed)):
        if counter:
            parts.append(f"{counter.total()} {name}")
    if tally.late_max_s > LATE_S:
        parts.append(f"behind by up to {tally.late_max_s:.1f} s")
    return ", ".join(parts)
