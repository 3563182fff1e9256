"""Bedrock's own records of what it served: model invocation logs and CloudWatch token metrics, by boto3.

Sources: user guide, "Monitor model invocation using CloudWatch Logs and Amazon S3" (record members, the S3
layout `AWSLogs/<account>/BedrockModelInvocationLogs/<region>/YYYY/MM/DD/HH/*.json.gz` with large bodies under
`data/`) and "Amazon Bedrock runtime metrics"; CloudWatch Logs, "Filter pattern syntax" (at most 1,024
characters). The names of the cache counts are read off published records.

boto3 blocks, so everything runs in threads. Failures are `EvidenceAwayError`: nothing may be concluded.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

import orjson
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from proxy.bedrock.credentials import aws_session
from proxy.domain.evidence import ATTEMPT_TAG, EvidenceAwayError, LogLine, Unproven, told
from proxy.domain.reconciling import Metered

#: a log event may carry a time this much before its attempt was admitted, or after it was settled, seconds
_EARLY, _LATE = 300.0, 3600.0
#: attempts asked for in one filter pattern, which may have 1,024 characters
_AT_ONCE = 7
_REQUEST_ID_MAX = 40
_PAGES_MAX = 2_000
_OBJECTS_MAX = 50_000
_QUERIES_AT_ONCE = 500
NAMESPACE = "AWS/Bedrock"
_METRICS = {
    "InputTokenCount": "input",
    "OutputTokenCount": "output",
    "CacheReadInputTokenCount": "cache_read",
    "CacheWriteInputTokenCount": "cache_write",
}
T = TypeVar("T")
_AWAY = (BotoCoreError, ClientError, OSError, EOFError, zlib.error)


def parse(record: bytes | str, source: str) -> LogLine | None:
    """One record, None for anything that is no invocation."""
    try:
        said = orjson.loads(record)
    except ValueError:
        return None
    if not isinstance(said, dict) or said.get("schemaType") != "ModelInvocationLog":
        return None
    request_id = said.get("requestId")
    if not isinstance(request_id, str) or not request_id:
        return None
    metadata = {k: v for k, v in _object(said.get("requestMetadata")).items() if isinstance(v, str)}
    given, made, error = _object(said.get("input")), _object(said.get("output")), said.get("errorCode")
    return LogLine(
        request_id=request_id,
        attempt=_uuid(metadata.get(ATTEMPT_TAG)),
        terms=told(metadata),
        input_tokens=_count(given.get("inputTokenCount")),
        output_tokens=_count(made.get("outputTokenCount")),
        cache_read_tokens=_count(given.get("cacheReadInputTokenCount")),
        cache_write_tokens=_count(given.get("cacheWriteInputTokenCount")),
        error=str(error) if error else None,
        source=source,
    )


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _uuid(text: str | None) -> UUID | None:
    try:
        return UUID(text) if text else None
    except ValueError:
        return None


@dataclass(slots=True)
class Clients:
    """boto3 clients by service and Region. `endpoint_url` overrides AWS's addresses, as a private endpoint
    does.
    """

    endpoint_url: str | None = None
    _made: dict[tuple[str, str], Any] = field(default_factory=dict)

    def get(self, service: str, region: str) -> Any:
        client = self._made.get((service, region))
        if client is None:
            config = Config(retries={"total_max_attempts": 4, "mode": "adaptive"}, connect_timeout=5, read_timeout=60)  # fmt: skip
            if self.endpoint_url and service == "s3":
                config = config.merge(Config(s3={"addressing_style": "path"}))
            session = aws_session()
            client = session.client(service, region, endpoint_url=self.endpoint_url, config=config)  # type: ignore[call-overload]
            self._made[service, region] = client
        return client


async def _away(act: Callable[[], T], what: str) -> T:
    try:
        return await asyncio.to_thread(act)
    except _AWAY as error:
        raise EvidenceAwayError(f"{what}: {type(error).__name__}: {error}") from error


@dataclass(slots=True)
class CloudWatchLog:
    """The log group of one name in each Region."""

    clients: Clients
    group: str

    async def lines(self, region: str, questions: Sequence[Unproven]) -> list[LogLine]:
        """Every line of these attempts that the group has. Raises `EvidenceAwayError`."""
        return await _away(lambda: list(self._lines(region, questions)), f"log group {self.group}")

    def _lines(self, region: str, questions: Sequence[Unproven]) -> Iterator[LogLine]:
        client = self.clients.get("logs", region)
        ordered = sorted(questions, key=lambda one: one.admitted_at)
        for start in range(0, len(ordered), _AT_ONCE):
            some = ordered[start : start + _AT_ONCE]
            asked: dict[str, Any] = {
                "logGroupName": self.group,
                "startTime": int((min(q.admitted_at for q in some) - _EARLY) * 1000),
                "endTime": int((max(q.finished_at for q in some) + _LATE) * 1000),
                "filterPattern": _pattern(some),
            }
            for event in _paged(client.filter_log_events, asked, "events"):
                line = parse(event["message"], f"{self.group}/{event.get('logStreamName', '')}")
                if line is not None:
                    yield line


def _pattern(questions: Sequence[Unproven]) -> str:
    clauses = [f'($.requestMetadata.{ATTEMPT_TAG} = "{q.attempt}")' for q in questions]
    for q in questions:
        name = q.upstream_request_id
        if name and len(name) <= _REQUEST_ID_MAX and all(c.isalnum() or c == "-" for c in name):
            clauses.append(f'($.requestId = "{name}")')
    return "{ " + " || ".join(clauses) + " }"


def _paged(call: Callable[..., Any], asked: dict[str, Any], member: str) -> Iterator[Any]:
    """Every item of every page; a page may be empty and have a next one."""
    for _ in range(_PAGES_MAX):
        page = call(**asked)
        yield from page.get(member, ())
        token = page.get("nextToken")
        if not token or token == asked.get("nextToken"):
            return
        asked = {**asked, "nextToken": token}
    raise EvidenceAwayError(f"more than {_PAGES_MAX} pages")


@dataclass(slots=True)
class S3Log:
    """`bucket` as Bedrock's logging configuration names it, with its key prefix ("" or ending in "/")."""

    clients: Clients
    bucket: str
    prefix: str
    region: str

    async def lines(self, region: str, questions: Sequence[Unproven]) -> list[LogLine]:
        """Every line of these attempts that the bucket has. Raises `EvidenceAwayError`."""
        return await _away(lambda: list(self._lines(region, questions)), f"bucket {self.bucket}")

    def _lines(self, region: str, questions: Sequence[Unproven]) -> Iterator[LogLine]:
        client = self.clients.get("s3", self.region)
        attempts = {q.attempt for q in questions}
        requests = {q.upstream_request_id for q in questions} - {None}
        for key in self._keys(client, region, questions):
            body = client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
            for record in _records(body):
                line = parse(record, f"s3://{self.bucket}/{key}")
                if line is not None and (line.attempt in attempts or line.request_id in requests):
                    yield line

    def _keys(self, client: Any, region: str, questions: Sequence[Unproven]) -> Iterator[str]:
        seen = 0
        for account in self._below(client, f"{self.prefix}AWSLogs/"):
            for hour in _hours(questions):
                folder = f"{account}BedrockModelInvocationLogs/{region}/{hour:%Y/%m/%d/%H}/"
                for page in client.get_paginator("list_objects_v2").paginate(
                    Bucket=self.bucket, Prefix=folder
                ):
                    for found in page.get("Contents", ()):
                        name = found["Key"]
                        if "/data/" not in name and name.endswith((".json.gz", ".json")):
                            seen += 1
                            yield name
                if seen > _OBJECTS_MAX:
                    raise EvidenceAwayError(f"more than {_OBJECTS_MAX} objects")

    def _below(self, client: Any, prefix: str) -> list[str]:
        pages = client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=prefix, Delimiter="/"
        )
        return [one["Prefix"] for page in pages for one in page.get("CommonPrefixes", ())]


def _records(body: bytes) -> list[bytes]:
    """The lines of an object, compressed or not."""
    text = gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
    return text.splitlines()


def _hours(questions: Sequence[Unproven]) -> list[dt.datetime]:
    """Every hour whose objects may hold one of these attempts."""
    hours = set()
    for q in questions:
        at = dt.datetime.fromtimestamp(q.admitted_at - _EARLY, dt.UTC).replace(
            minute=0, second=0, microsecond=0
        )
        while at.timestamp() <= q.finished_at + _LATE:
            hours.add(at)
            at += dt.timedelta(hours=1)
    return sorted(hours)


@dataclass(slots=True)
class CloudWatchTokens:
    """Token sums per model and day, as CloudWatch has them."""

    clients: Clients
    namespace: str = NAMESPACE

    async def tokens(
        self, region: str, models: Sequence[str], since: dt.datetime, until: dt.datetime
    ) -> list[Metered]:
        """Sums of whole UTC days in [since, until) for these model ids, whatever CloudWatch calls them.
        Raises `EvidenceAwayError`.
        """
        return await _away(lambda: self._tokens(region, models, since, until), f"CloudWatch in {region}")

    def _tokens(
        self, region: str, models: Sequence[str], since: dt.datetime, until: dt.datetime
    ) -> list[Metered]:
        client = self.clients.get("cloudwatch", region)
        asked = [(model, name, metric) for model in models for name in _names(model) for metric in _METRICS]
        found: list[Metered] = []
        for start in range(0, len(asked), _QUERIES_AT_ONCE):
            some = asked[start : start + _QUERIES_AT_ONCE]
            queries = [self._query(f"q{n}", *one[1:]) for n, one in enumerate(some)]
            pages = client.get_paginator("get_metric_data").paginate(
                MetricDataQueries=queries, StartTime=since, EndTime=until
            )
            for page in pages:
                for result in page["MetricDataResults"]:
                    model, _, metric = some[int(result["Id"][1:])]
                    for at, value in zip(result["Timestamps"], result["Values"], strict=True):
                        day = at.astimezone(dt.UTC).date()
                        found.append(Metered(region=region, model_id=model, day=day, kind=_METRICS[metric], tokens=round(value)))  # fmt: skip
        return found

    def _query(self, name: str, model: str, metric: str) -> dict[str, Any]:
        return {
            "Id": name,
            "MetricStat": {
                "Metric": {
                    "Namespace": self.namespace,
                    "MetricName": metric,
                    "Dimensions": [{"Name": "ModelId", "Value": model}],
                },
                "Period": 86_400,
                "Stat": "Sum",
            },
            "ReturnData": True,
        }


def _names(model_id: str) -> list[str]:
    """Values of the dimension ModelId: the id, the last part of an ARN, and what ran latency-optimized."""
    plain = [model_id] + ([model_id.rpartition("/")[2]] if model_id.startswith("arn:") else [])
    return [*plain, *(f"{name}+latency-optimized" for name in plain)]
