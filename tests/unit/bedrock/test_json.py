import json
import string

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.bedrock.dialects import parse
from proxy.errors import Invalid

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)
bodies = st.dictionaries(st.text(), values, max_size=6)


@given(bodies, st.booleans(), st.sampled_from([None, 1, 4]))
def test_any_honest_body_parses_to_itself(body, ascii_only, indent):
    raw = json.dumps(body, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    try:
        orjson.loads(raw)
    except orjson.JSONDecodeError:
        return  # a lone surrogate
    assert parse(raw) == orjson.loads(raw)


@given(bodies, st.text(min_size=1), values, values, st.booleans())
def test_a_key_given_twice_is_refused_wherever_it_is(body, key, first, second, ascii_only):
    def dumps(value):
        return json.dumps(value, ensure_ascii=ascii_only)

    inner = "{" + f"{dumps(key)}: {dumps(first)}, {dumps(key)}: {dumps(second)}" + "}"
    for text in (
        inner,
        '{"a": [' + inner + "]}",
        dumps(body)[:-1] + (", " if body else "") + '"\\u0078y": ' + inner + "}",
    ):
        raw = text.encode("utf-8", "surrogatepass")
        with pytest.raises(Invalid):
            parse(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"max_gen_len": 1, "max_gen_len": 2000}',
        b'{"max_gen_len": 1, "max\\u005fgen_len": 2000}',
        b'{"a": "\\u003a", "b": 1, "b": 2}',
        b'{"a": "\\\\\\u003a\\":", "b": {"c": 1, "c": 2}}',
        b'{"a:": "x:y", "a:": ""}',
    ],
)
def test_keys_given_twice_in_disguise(raw):
    with pytest.raises(Invalid, match="twice"):
        parse(raw)


@pytest.mark.parametrize(
    "raw", [b'{"a":"\\u003a\\\\","b:":"\\"","c":[":","\\":"]}', b'{"a":{"b":1},"c":{"b":1}}']
)
def test_colons_and_quotes_in_strings_are_no_members(raw):
    assert parse(raw) == json.loads(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"null",
        b'"x"',
        b"{",
        b'{"a":1}x',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":1e999}',
        b'{"a":' + b"9" * 400 + b"}",
        b'{"a":' + b"9" * 1_000_000 + b"}",
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        "{}".encode("utf-16-le"),
        b'{"a":"\xff"}',
        b'{"a":"\\ud800"}',
        b'{"a":01}',
        b'{"a":+1}',
        b"{'a':1}",
        b'{"a":1,}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a":' + b"[" * 65 + b"]" * 65 + b"}",
        b"{" + b",".join(b'"k%d":1' % number for number in range(60_000)) + b"}",
        b'{"a":[' + b"0," * 600_000 + b"0]}",
    ],
)
def test_what_parsers_may_read_differently_or_choke_on_is_refused(raw):
    with pytest.raises(Invalid) as refused:
        parse(raw)
    assert refused.value.reason == "invalid_json"


def test_64_levels_are_served_and_many_shallow_brackets_too():
    assert parse(b'{"a":' + b"[" * 63 + b"]" * 63 + b"}")
    assert parse(b'{"a":[' + b",".join([b"[{}]"] * 5000) + b"]}")
    assert parse(b'{"a":"' + b"[{" * 5000 + b'"}')


@given(
    st.binary(max_size=200)
    | st.text(string.punctuation + "0123456789nulltruefs", max_size=80).map(str.encode)
)
def test_garbage_raises_nothing_but_invalid(raw):
    try:
        assert type(parse(raw)) is dict
    except Invalid:
        pass
