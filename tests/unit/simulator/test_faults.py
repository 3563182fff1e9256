"""Directives and rules: what they match and how often they strike."""

from typing import Any

import pytest

from proxy.simulator.faults import Fault, Faults, parse


def orders(faults: Faults, body: bytes = b"{}", **given: Any):
    values: dict[str, Any] = {
        "prompt": "",
        "seed": 1,
        "names": ("model",),
        "operation": "Converse",
        "metadata": {},
    } | given
    return faults.orders(body, **values)


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ("throttle", Fault("throttle")),
        ("throttle:2", Fault("throttle", ("2",))),
        ("error:ModelErrorException:1", Fault("error", ("ModelErrorException", "1"))),
        ("exception:internalServerException:4", Fault("exception", ("internalServerException", "4"))),
        ("usage:negative", Fault("usage", ("negative",))),
    ],
)
def test_parse(spec, fault):
    assert parse(spec) == fault


@pytest.mark.parametrize("spec", ["", "explode", "reset:x", "delay", "usage:odd", "throttle:1:2"])
def test_parse_refuses(spec):
    with pytest.raises(ValueError):
        parse(spec)


def test_directives_of_one_prompt():
    found = orders(
        Faults(), b'"x [[tokens=7]] [[delay_ms=20]] [[fault=reset:3]] [[cached=5]] [[cache_write=2]]"'
    )
    assert found.output_tokens == 7
    assert found.delay_ms == 20
    assert found.faults == [Fault("reset", ("3",))]
    assert (found.cached_tokens, found.written_tokens) == (5, 2)
    assert found.of("reset", "close") == Fault("reset", ("3",))


def test_directives_that_mean_nothing_are_text():
    assert orders(Faults(), b'"[[fault=explode]] [[tokens=many]] [[x]] [[[["').faults == []


def test_a_counted_directive_strikes_so_often_per_prompt():
    faults = Faults()
    struck = [bool(orders(faults, b"[[fault=throttle:2]]", seed=5).faults) for _ in range(4)]
    assert struck == [True, True, False, False]
    assert orders(faults, b"[[fault=throttle:2]]", seed=6).faults
    faults.reset()
    assert orders(faults, b"[[fault=throttle:2]]", seed=5).faults


def test_a_rule_strikes_where_everything_matches():
    faults = Faults()
    faults.add(
        {"fault": "silence", "model": "model", "operation": "Converse", "prompt": "now", "tenant": "acme"}
    )
    matching: dict[str, Any] = {"prompt": "do it now", "metadata": {"who": "acme"}}
    assert orders(faults, **matching).faults == [Fault("silence")]
    assert not orders(faults, **(matching | {"names": ("other",)})).faults
    assert not orders(faults, **(matching | {"operation": "InvokeModel"})).faults
    assert not orders(faults, **(matching | {"prompt": "later"})).faults
    assert not orders(faults, **(matching | {"metadata": {"who": "else"}})).faults


def test_a_rule_is_used_up():
    faults = Faults()
    faults.add({"fault": "throttle", "times": 2, "metadata": {"key": "k"}})
    assert not orders(faults).faults
    assert [len(orders(faults, metadata={"key": "k"}).faults) for _ in range(3)] == [1, 1, 0]
    assert faults.listed() == [{"fault": "throttle", "left": 0, "metadata": {"key": "k"}}]


@pytest.mark.parametrize("rule", [{}, {"fault": 1}, {"fault": "reset", "modle": "x"}, "reset"])
def test_rules_that_cannot_be_understood(rule):
    with pytest.raises(ValueError):
        Faults().add(rule)
