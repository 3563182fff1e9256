"""Records of the model invocation log, as they are published and as they must not be trusted."""

from __future__ import annotations

import gzip
import json
from uuid import UUID, uuid4

import pytest

from proxy.bedrock.evidence import _hours, _pattern, _records, parse
from proxy.domain.evidence import USUAL, Unproven

ATTEMPT = "0193a1b2-0000-7000-8000-000000000001"


def record(**fields):
    return {
        "schemaType": "ModelInvocationLog", "schemaVersion": "1.0", "timestamp": "2026-11-24T10:00:00Z",
        "accountId": "123456789012", "region": "us-east-1", "requestId": "r-1", "operation": "ConverseStream",
        "modelId": "amazon.nova-lite-v1:0", "requestMetadata": {"tollhouse-attempt": ATTEMPT},
        "input": {"inputContentType": "application/json", "inputTokenCount": 4, "cacheReadInputTokenCount": 1,
                  "cacheWriteInputTokenCount": 2},
        "output": {"outputContentType": "application/json", "outputTokenCount": 38},
    } | fields  # fmt: skip


def question(admitted_at: float = 1_795_000_000.0, request: str | None = "r-1") -> Unproven:
    return Unproven(
        attempt=uuid4(), tenant=uuid4(), model="m", target="us-east-1/m", ceiling=1, upstream_request_id=request,
        admitted_at=admitted_at, finished_at=admitted_at + 10, status=0, latency_ms=0, first_byte_ms=0,
    )  # fmt: skip


def test_a_record_is_read():
    line = parse(json.dumps(record()), "here")
    assert line is not None
    assert (line.request_id, line.attempt, line.terms, line.source) == ("r-1", UUID(ATTEMPT), USUAL, "here")
    counts = (line.input_tokens, line.output_tokens, line.cache_read_tokens, line.cache_write_tokens)
    assert counts == (4, 38, 1, 2)
    assert line.error is None


@pytest.mark.parametrize(
    "text",
    ["", "not json", "[]", "{}", json.dumps(record(schemaType="Other")), json.dumps(record(requestId=7))],
)
def test_what_is_no_record_is_none(text):
    assert parse(text, "here") is None


@pytest.mark.parametrize("count", [None, "4", -1, 1.5, True])
def test_a_count_that_is_no_count_is_not_told(count):
    line = parse(json.dumps(record(input={"inputTokenCount": count}, output=None)), "here")
    assert line is not None
    assert (line.input_tokens, line.output_tokens, line.cache_read_tokens) == (None, None, None)


def test_metadata_of_others_names_no_attempt():
    for metadata in (None, {}, {"tollhouse-attempt": "nonsense"}, {"tollhouse-attempt": 7}, "text"):
        line = parse(json.dumps(record(requestMetadata=metadata)), "here")
        assert line is not None
        assert line.attempt is None


def test_a_failed_invocation_says_so():
    line = parse(json.dumps(record(errorCode="ThrottlingException")), "here")
    assert line is not None
    assert line.error == "ThrottlingException"


def test_a_pattern_keeps_within_what_cloudwatch_takes_and_quotes_nothing_it_cannot():
    some = [question(request="0193a1b2-0000-7000-8000-000000000001") for _ in range(7)]
    assert len(_pattern(some)) <= 1024
    assert '"r-1"' in _pattern([question()])
    assert "requestId" not in _pattern([question(request='x") || ($.a = "b')])


def test_objects_are_lines_compressed_or_not():
    text = b'{"a":1}\n{"b":2}\n'
    assert _records(text) == _records(gzip.compress(text)) == [b'{"a":1}', b'{"b":2}']


def test_the_hours_of_an_attempt_reach_past_its_end():
    hours = [f"{at:%H:%M}" for at in _hours([question(1_795_000_000.0)])]
    assert hours == sorted(set(hours))
    assert len(hours) in {2, 3}
