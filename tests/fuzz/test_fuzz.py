"""The short form of the fuzzers: every file of the corpus, some thousand mutations of it, and what
Hypothesis makes up. `make fuzz` runs the long one."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

EXECUTIONS = {"requests": 600, "policies": 600, "fingerprints": 1000, "usage": 1000}


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_and_what_is_near_it(name: str) -> None:
    target, chance = TARGETS[name], random.Random(name)
    seeds = target.seeds()
    assert seeds
    for seed in seeds:
        target.run(seed)
    slowest = 0.0
    for _ in range(EXECUTIONS.get(name, 2000)):
        data = target.mutate(chance, seeds)
        began = time.thread_time()
        try:
            target.run(data)
        except Exception as error:
            raise AssertionError(f"{name} on {data!r}") from error
        slowest = max(slowest, time.thread_time() - began)
    assert slowest < 1.0


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes(name: str) -> None:
    target = TARGETS[name]

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        st.binary(max_size=400)
        | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
    )
    def run(data: bytes) -> None:
        target.run(data)

    run()
