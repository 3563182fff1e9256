import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.bedrock.metadata import METADATA_JSON_MAX, merged, stamp
from proxy.domain.ledger import Operation

OWN = (("tollhouse-attempt", "0193-abc"), ("tenant", "acme"))
HEADER = "x-amzn-bedrock-request-metadata"
pairs = st.dictionaries(
    st.text("abcdefgh-", min_size=1, max_size=256), st.text("xyz0123:/", max_size=256), max_size=16
).map(lambda value: tuple(value.items()))


@given(pairs)
def test_the_attempt_always_gets_in_and_the_limits_always_hold(client):
    result = orjson.loads(merged(OWN, client))
    assert result["tollhouse-attempt"] == "0193-abc"
    assert len(result) <= 16
    assert len(json.dumps(result, separators=(",", ":"))) <= METADATA_JSON_MAX
    kept = [pair for pair in client if result.get(pair[0]) == pair[1]]
    assert len(kept) >= min(len(client), 15) or len(json.dumps(client)) > METADATA_JSON_MAX - 200


def test_ours_win_a_name_and_the_rest_of_ours_yields():
    client = tuple((f"k{number}", "v") for number in range(16))
    assert list(orjson.loads(merged(OWN, client))) == [
        "tollhouse-attempt",
        *(f"k{number}" for number in range(15)),
    ]
    assert orjson.loads(merged(OWN, (("tollhouse-attempt", "forged"), ("tenant", "forged")))) == dict(OWN)
    with pytest.raises(ValueError, match="rules"):
        merged((("a", "ü"),), ())


@pytest.mark.parametrize("operation", [Operation.CONVERSE, Operation.CONVERSE_STREAM])
def test_converse_carries_it_in_the_body(operation):
    raw = b' {"messages": [{"role": "user", "content": [{"text": "Hi"}]}]}'
    body, headers = stamp(operation, raw, {"accept": "x"}, OWN)
    assert body == b' {"requestMetadata":{"tollhouse-attempt":"0193-abc","tenant":"acme"},' + raw[2:]
    assert headers == {"accept": "x"}
    there = json.dumps({"messages": [], "requestMetadata": {"team": "blue"}}).encode()
    body, _ = stamp(operation, there, {}, OWN, (("team", "blue"),))
    assert json.loads(body) == {"messages": [], "requestMetadata": {"team": "blue", **dict(OWN)}}


@pytest.mark.parametrize(
    "raw", [b'{"messages":[],"requestMetadata":{}}', b'{"messages":[],"request\\u004detadata":{}}']
)
def test_an_empty_one_is_replaced_and_never_doubled(raw):
    body, _ = stamp(Operation.CONVERSE, raw, {}, OWN)
    assert body.count(b"equest") == 1 and json.loads(body)["requestMetadata"] == dict(OWN)


def test_invocations_carry_it_in_a_header():
    raw = b'{"prompt":"x"}'
    body, headers = stamp(Operation.INVOKE_MODEL, raw, {HEADER: '{"team":"blue"}'}, OWN, (("team", "blue"),))
    assert body is raw
    assert json.loads(headers[HEADER]) == {"team": "blue", **dict(OWN)}


@pytest.mark.parametrize(
    "operation", [Operation.RESPONSES, Operation.COUNT_TOKENS, Operation.APPLY_GUARDRAIL]
)
def test_others_stay_as_they_are(operation):
    assert stamp(operation, b"{}", {"a": "b"}, OWN) == (b"{}", {"a": "b"})
