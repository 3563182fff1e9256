"""What is counted of single calls names them."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from proxy import telemetry
from proxy.clock import uuid7
from proxy.domain.ledger import Outcome, Settled, Settlement, State, Why
from proxy.tally import Counter, Histogram


def named(metric: Counter | Histogram, **labels: str) -> list[tuple[UUID, float]]:
    """(call, value) of the exemplars of the samples with these labels."""
    return [
        (UUID(sample.exemplar.labels["call_id"]), sample.exemplar.value)
        for family in metric.collect()
        for sample in family.samples
        if sample.exemplar and labels.items() <= sample.labels.items()
    ]


def test_a_ceiling_and_an_overrun_name_their_call() -> None:
    cut = Settlement(attempt=uuid7(), state=State.CEILING, why=Why.CUT, call=uuid7())
    telemetry.settled(cut, Settled(outcome=Outcome.SETTLED, overrun=5))
    assert named(telemetry.CEILINGS, why="cut") == [(cut.call, 1)]
    assert named(telemetry.OVERRUN) == [(cut.call, 5)]
    silent = replace(cut, why=Why.SILENCE, call=uuid7())
    telemetry.moved_on(silent)
    assert named(telemetry.CEILINGS, why="silence") == [(silent.call, 1)]
    telemetry.settled(replace(cut, call=None), Settled(outcome=Outcome.SETTLED, overrun=7))
    assert named(telemetry.OVERRUN) == [(cut.call, 5)], "whose call is not known names nobody"


def test_a_sending_names_its_call_with_the_ledgers_latency() -> None:
    done = Settlement(attempt=uuid7(), state=State.POST, why=Why.USAGE, latency_ms=1234, call=uuid7())
    telemetry.finished("tenant", "model-of-its-own", "Converse", done)
    assert named(telemetry.UPSTREAM_SECONDS, model="model-of-its-own", le="1.6") == [(done.call, 1.234)]
    assert not named(telemetry.CALLS)
