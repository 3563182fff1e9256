"""Equal requests meet, different ones never do."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.domain.fingerprint import canonical, fingerprint, promise_key, retry_key
from proxy.domain.ledger import Operation

TENANT = UUID(int=1)
BODY = {"prompt": "Hello", "max_gen_len": 64, "temperature": 0.5}


def named(raw: bytes | dict[str, Any] = b"{}", **changed: Any) -> bytes:
    raw = raw if isinstance(raw, bytes) else orjson.dumps(raw)
    fields = {
        "tenant": TENANT, "policy_version": "v", "operation": Operation.INVOKE_MODEL, "model": "m",
        "targets": ("us-east-1/m",), "limit": 512, "headers": {},
    } | changed  # fmt: skip
    return fingerprint(body=orjson.loads(raw), raw=raw, **fields)  # type: ignore[arg-type]


# ---- what differs --------------------------------------------------------------------------------

DIFFERENT = [
    ("ligature", b'{"prompt":"\xef\xac\x81"}', b'{"prompt":"fi"}'),
    ("kelvin sign", '{"prompt":"\u212a"}'.encode(), b'{"prompt":"K"}'),
    ("composed and decomposed", '{"prompt":"\u00e9"}'.encode(), '{"prompt":"e\u0301"}'.encode()),
    ("case", b'{"prompt":"a"}', b'{"prompt":"A"}'),
    ("blank", b'{"prompt":"a"}', b'{"prompt":"a "}'),
    ("nul", b'{"prompt":"a\\u0000"}', b'{"prompt":"a"}'),
    ("number and string", b'{"a":1}', b'{"a":"1"}'),
    ("number and boolean", b'{"a":1}', b'{"a":true}'),
    ("null and absent", b'{"a":null}', b"{}"),
    ("null and word", b'{"a":null}', b'{"a":"null"}'),
    ("empty containers", b'{"a":[]}', b'{"a":{}}'),
    ("order in a list", b'{"a":[1,2]}', b'{"a":[2,1]}'),
    ("nesting", b'{"a":{"b":1},"c":2}', b'{"a":{"b":1,"c":2}}'),
    ("integers beyond a double", b'{"a":9007199254740993}', b'{"a":9007199254740992}'),
    ("integers beyond 64 bits", b'{"a":18446744073709551617}', b'{"a":18446744073709551616}'),
    ("digits beyond a double", b'{"a":0.1}', b'{"a":0.1000000000000000055511}'),
    ("close fractions", b'{"a":0.30000000000000001}', b'{"a":0.30000000000000002}'),
    ("underflow", b'{"a":1e-400}', b'{"a":0.0}'),
    ("two underflows", b'{"a":1E-400}', b'{"a":1e-401}'),
    ("minus zero", b'{"a":-0}', b'{"a":0}'),
    ("minus zero, spaced", b'{"a": -0 }', b'{"a": 0 }'),
    ("minus zero as a float", b'{"a":-0.0}', b'{"a":0.0}'),
    ("a number where text has long digits", b'{"a":-0,"b":"1234567890123456"}', b'{"a":0,"b":"1234567890123456"}'),
    ("an object that looks like a number", b'{"a":12345678901234567}', b'{"a":["12345678901234567"]}'),
    ("default left out", b'{"temperature":0.5}', b"{}"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), [d[1:] for d in DIFFERENT], ids=[d[0] for d in DIFFERENT])
def test_different_bodies_do_not_collide(one, other):
    assert named(one) != named(other)


@pytest.mark.parametrize(
    "changed",
    [
        {"tenant": UUID(int=2)}, {"policy_version": "w"}, {"operation": Operation.CONVERSE}, {"model": "n"},
        {"operation": Operation.INVOKE_MODEL_WITH_RESPONSE_STREAM}, {"targets": ("eu-west-1/m",)},
        {"targets": ("us-east-1/m", "us-west-2/m")}, {"targets": ()}, {"limit": 513},
        {"model": "", "targets": ("m", "us-east-1/m")}, {"policy_version": "", "model": "vm"},
        {"headers": {"accept": "image/png"}},
        {"headers": {"content-type": "text/plain"}},
        {"headers": {"x-amzn-bedrock-guardrailidentifier": "g"}},
        {"headers": {"x-amzn-bedrock-performanceconfig-latency": "optimized"}},
        {"headers": {"anthropic-beta": "b"}}, {"headers": {"anthropic-version": "2023-06-01"}},
    ],
    ids=str,
)  # fmt: skip
def test_everything_that_may_change_the_answer_counts(changed):
    assert named(BODY, **changed) != named(BODY)


def test_headers_cannot_be_told_into_each_other():
    one = {"x-amzn-bedrock-a": "1", "x-amzn-bedrock-b": "2"}
    other = {"x-amzn-bedrock-a": "1h18:x-amzn-bedrock-b=2"}
    assert named(BODY, headers=one) != named(BODY, headers=other)


# ---- what is equal -------------------------------------------------------------------------------

EQUAL = [
    ("whitespace", b'{"a":1,"b":[1,2]}', b'{ "a" : 1,\n\t"b": [1, 2] }'),
    ("order of keys", b'{"a":1,"b":{"c":1,"d":2}}', b'{"b":{"d":2,"c":1},"a":1}'),
    ("escapes", '{"a":"\u00e9/"}'.encode(), b'{"a":"\\u00e9\\/"}'),
    ("surrogate pairs", '{"a":"\U0001f600"}'.encode(), b'{"a":"\\ud83d\\ude00"}'),
    ("order beside long numbers", b'{"a":12345678901234567,"b":2}', b'{"b": 2, "a": 12345678901234567}'),
    ("metadata", b'{"a":1,"metadata":{"user_id":"x"}}', b'{"a":1}'),
    ("user", b'{"a":1,"user":"x"}', b'{"user":"y","a":1}'),
    ("metadata beside long numbers", b'{"a":12345678901234567,"user":"x"}', b'{"a":12345678901234567}'),
]


@pytest.mark.parametrize(("one", "other"), [e[1:] for e in EQUAL], ids=[e[0] for e in EQUAL])
def test_equal_bodies_meet(one, other):
    assert named(one) == named(other)


@pytest.mark.parametrize(
    "headers",
    [
        {"accept": "*/*"}, {"accept": "application/json"}, {"content-type": "application/json"},
        {"user-agent": "boto3"}, {"amz-sdk-invocation-id": "x"}, {"x-stainless-retry-count": "1"},
        {"authorization": "Bearer x"}, {"x-amzn-bedrock-request-metadata": '{"a":"b"}'},
        {"cache-control": "max-age=5"}, {"traceparent": "00-1-1-01"},
    ],
    ids=str,
)  # fmt: skip
def test_what_sdks_add_does_not_count(headers):
    assert named(BODY, headers=headers) == named(BODY)


def test_fields_that_label_a_request_are_those_of_its_operation():
    other: dict[str, Any] = {"messages": []}
    one = other | {"metadata": {"a": "b"}}
    for operation in (Operation.MESSAGES, Operation.CHAT_COMPLETIONS):
        assert named(one, operation=operation) == named(other, operation=operation)
    for operation in (Operation.RESPONSES, Operation.CONVERSE):
        assert named(one, operation=operation) != named(other, operation=operation)
    labelled = other | {"requestMetadata": {"a": "b"}}
    assert named(labelled, operation=Operation.CONVERSE_STREAM) == named(
        other, operation=Operation.CONVERSE_STREAM
    )


def test_a_label_further_down_counts():
    assert named({"a": {"user": "x"}}) != named({"a": {"user": "y"}})


# ---- any JSON at all -----------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.decimals(allow_nan=False, allow_infinity=False, min_value=-1000, max_value=1000, places=19),
    st.sampled_from([Decimal("1E-400"), Decimal("1E+300"), Decimal("-0"), Decimal("1.50"), Decimal("0.10")]),
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=8,
)
BODIES = st.dictionaries(TEXT, VALUES, max_size=4)


def spelled(value: Any) -> Any:
    """What JSON says, with numbers by their exact value and kind: the meaning two bodies must share."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return (type(value).__name__, value)
    if isinstance(value, dict):
        return ("object", tuple(sorted((k, spelled(v)) for k, v in value.items())))
    if isinstance(value, list):
        return ("list", tuple(spelled(v) for v in value))
    return ("number", *value)


def meaning(raw: bytes) -> Any:
    def number(literal: str) -> tuple[Any, ...]:
        whole = literal.lstrip("-").isdigit()
        return (whole, Decimal(literal).normalize(), literal.startswith("-"))

    return spelled(json.loads(raw, parse_int=number, parse_float=number))


def written(value: Any, chance: random.Random) -> str:
    """The value as JSON in a random but equivalent spelling."""
    gap = chance.choice(["", " ", "\n\t"])
    if isinstance(value, dict):
        items = list(value.items())
        chance.shuffle(items)
        inner = f",{gap}".join(f"{written(k, chance)}{gap}:{gap}{written(v, chance)}" for k, v in items)
        return f"{{{gap}{inner}{gap}}}"
    if isinstance(value, list):
        return "[" + f"{gap},".join(written(v, chance) for v in value) + gap + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=chance.random() < 0.5)
    if isinstance(value, Decimal):
        return str(value)
    return json.dumps(value)


@settings(max_examples=100, deadline=None)
@given(BODIES, st.integers(0, 2**32))
def test_any_body_meets_itself_in_another_spelling(body, seed):
    chance = random.Random(seed)
    one, other = (written(body, chance).encode() for _ in range(2))
    assert named(one) == named(other)


@settings(max_examples=200, deadline=None)
@given(BODIES, BODIES, st.integers(0, 2**32))
def test_bodies_that_mean_different_things_never_collide(one, other, seed):
    chance = random.Random(seed)
    first, second = written(one, chance).encode(), written(other, chance).encode()
    if meaning(first) != meaning(second):
        assert canonical(orjson.loads(first), first) != canonical(orjson.loads(second), second)


@settings(max_examples=200, deadline=None)
@given(NUMBERS, NUMBERS)
def test_numbers_that_differ_never_collide(one, other):
    first, second = (b'{"a":' + written(n, random.Random(0)).encode() + b"}" for n in (one, other))
    if meaning(first) != meaning(second):
        assert named(first) != named(second)


@settings(max_examples=100, deadline=None)
@given(BODIES)
def test_the_canonical_form_means_what_the_body_means(body):
    raw = written(body, random.Random(1)).encode()
    assert meaning(canonical(orjson.loads(raw), raw)) == meaning(raw)


def test_keys_of_retries_and_promises_tell_callers_and_tokens_apart():
    a, b = UUID(int=1), UUID(int=2)
    keys = {
        retry_key(named(), a, "t"), retry_key(named(), b, "t"), retry_key(named(), a, "u"),
        promise_key(a, a, "t"), promise_key(b, a, "t"), promise_key(a, b, "t"), promise_key(a, a, "u"),
    }  # fmt: skip
    assert len(keys) == 7
