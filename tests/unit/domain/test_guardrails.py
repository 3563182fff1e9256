"""What guardrails cost: by policy when they are told, at most what was held when they are not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.bedrock.dialects import counts
from proxy.bedrock.dialects.guardrail import GUARDRAIL
from proxy.domain.guardrails import GuardrailRates, guardrail_route, text_units
from proxy.domain.request import Bound
from proxy.domain.usage import Usage
from proxy.errors import Invalid, UnboundedCost

#: nano-dollars per million units
RATES = GuardrailRates(
    {
        "contentPolicyUnits": 150_000_000_000,
        "sensitiveInformationPolicyUnits": 100_000_000_000,
        "wordPolicyUnits": 0,
        "contentPolicyImageUnits": 750_000_000_000,
    }
)


def test_every_policy_has_its_own_rate():
    told = counts.guarded(
        Usage(), {"contentPolicyUnits": 2, "wordPolicyUnits": 9, "sensitiveInformationPolicyUnits": 3}
    )
    assert told.guardrail_units == 14
    assert RATES.charge(told) == 2 * 150_000_000_000 + 3 * 100_000_000_000
    assert RATES.charge(Usage(guardrail_units=3)) == 3 * 150_000_000_000
    unknown = counts.guarded(Usage(), {"newPolicyUnits": 1})
    assert RATES.charge(unknown) == 150_000_000_000


def test_zero_that_is_told_is_zero():
    told = counts.guarded(Usage(), {"contentPolicyUnits": 0})
    assert told.guardrail and told.guardrail_units == 0 and RATES.charge(told) == 0


@given(
    chars=st.integers(0, 100_000), output=st.integers(0, 5_000), images=st.integers(0, 5), said=st.integers(0, 5_000)
)  # fmt: skip
def test_what_is_assumed_is_never_more_than_what_was_held(chars, output, images, said):
    bound = Bound(input_tokens=chars, output_limit=output, guardrail=True, images=images)
    said = min(said, output)
    usage = RATES.assumed(Usage(output_tokens=said), bound, images)
    assert not usage.exact
    held = text_units(bound, output) * RATES.text + images * RATES.image
    assert RATES.charge(usage) <= held
    # as many units as a guardrail with every priced policy can have counted
    most = -(-chars // 1000) + -(-said // 1000)
    assert RATES.charge(usage) >= most * (150_000_000_000 + 100_000_000_000) + images * 750_000_000_000


def test_where_a_guardrail_runs():
    route = guardrail_route("gr1", "DRAFT", "us-east-1")
    assert (route.model.id, route.targets[0].label) == ("guardrail", "us-east-1/gr1:DRAFT")
    arn = "arn:aws:bedrock:eu-west-1:123456789012:guardrail/x"
    assert guardrail_route(arn, "1", "us-east-1").targets[0].region == "eu-west-1"


def bound(body):
    return GUARDRAIL.bound(body, b"", guardrail_route("gr1", "1", "us-east-1").model, {})


def test_the_bound_of_a_guardrail_call():
    content = [
        {"text": {"text": "ä" * 1000}},
        {"text": {"text": "x", "qualifiers": ["query"]}},
        {"image": {}},
    ]
    found = bound({"source": "OUTPUT", "content": content, "outputScope": "FULL"})
    assert (found.input_tokens, found.choices, found.images, found.arns) == (2001, 3, 1, ("gr1",))
    assert found.guardrail and found.output_limit == 0


@pytest.mark.parametrize(
    "body",
    [
        {"source": "INPUT"},
        {"source": "BOTH", "content": []},
        {"source": "INPUT", "content": [{}]},
        {"source": "INPUT", "content": [{"text": "x"}]},
        {"source": "INPUT", "content": [{"video": {}}]},
        {"source": "INPUT", "content": [{"text": {"text": "x", "odd": 1}}]},
        {"source": "INPUT", "content": [], "odd": 1},
    ],
)
def test_what_has_no_bound_is_refused(body):
    with pytest.raises((Invalid, UnboundedCost)):
        bound(body)


def test_a_report_that_is_no_report_charges_the_ceiling():
    assert GUARDRAIL.usage({}, b"{}") is None
    usage = GUARDRAIL.usage({}, b'{"usage":{"topicPolicyUnits":2,"wordPolicyUnits":-1,"odd":3}}')
    assert usage is not None and usage.guardrail == (("topicPolicyUnits", 2),)
