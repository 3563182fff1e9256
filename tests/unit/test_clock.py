"""Ids sort by the order in which one process made them, and carry the time."""

import time
from uuid import RFC_4122

from proxy.clock import uuid7


def test_ids_are_version_7_unique_and_rising():
    ids = [uuid7() for _ in range(20_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert {(i.version, i.variant) for i in ids} == {(7, RFC_4122)}


def test_an_id_carries_its_millisecond():
    before = time.time_ns() // 1_000_000
    made = uuid7().int >> 80
    assert before - 20 <= made <= time.time_ns() // 1_000_000 + 20
