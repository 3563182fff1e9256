"""Settings are read once, typed, and a typo is an error."""

import pytest

from proxy.errors import ConfigurationError
from proxy.settings import CLIENT_NAMES, Settings, describe, load


def test_defaults_need_no_environment():
    assert load({}) == Settings()


def test_values_are_typed():
    loaded = load(
        {"TOLLHOUSE_PORT": "9000", "TOLLHOUSE_REQUIRE_DURABLE": "false", "TOLLHOUSE_UPSTREAM": "aws"}
    )
    assert (loaded.port, loaded.require_durable, loaded.upstream) == (9000, False, "aws")


def test_shares_end_at_one_and_seconds_do_not():
    loaded = load({"TOLLHOUSE_TRACE_SAMPLE": "0.5", "TOLLHOUSE_INVARIANTS_SECONDS": "60"})
    assert (loaded.trace_sample, loaded.invariants_seconds) == (0.5, 60)
    with pytest.raises(ConfigurationError, match="expected a share"):
        load({"TOLLHOUSE_TRACE_SAMPLE": "2"})


@pytest.mark.parametrize("name", ["TOLLHOUSE_PROT", "TOLLHOUSE_", "TOLLHOUSE_DATABASE"])
def test_an_unknown_name_is_an_error(name):
    with pytest.raises(ConfigurationError, match=f"{name} is not a setting"):
        load({name: "1"})


def test_every_problem_is_named_at_once():
    with pytest.raises(ConfigurationError) as caught:
        load({"TOLLHOUSE_PORT": "x", "TOLLHOUSE_WORKERS": "-1", "TOLLHOUSE_NOPE": ""})
    assert all(
        name in str(caught.value) for name in ("TOLLHOUSE_PORT", "TOLLHOUSE_WORKERS", "TOLLHOUSE_NOPE")
    )


@pytest.mark.parametrize(
    "name", [*sorted(CLIENT_NAMES), "TOLLHOUSE_SERVICE_HOST", "TOLLHOUSE_SERVICE_PORT", "TOLLHOUSE_PORT_8080_TCP", "TOLLHOUSE_PORT",
             "TOLLHOUSE_PORT_8080_TCP_ADDR", "TOLLHOUSE_SERVICE_PORT_HTTP"],
)  # fmt: skip
def test_names_of_clients_and_of_kubernetes_are_let_be(name):
    assert load({name: "tcp://10.0.0.1:8080"}) == Settings()


def test_every_setting_says_what_it_is():
    assert all(about for _, _, about in describe())
