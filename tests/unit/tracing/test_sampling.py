"""Which calls are traced: a share by the call's id, or what the client's trace context says."""

from __future__ import annotations

from itertools import pairwise

import pytest

from proxy.clock import uuid7
from proxy.tracing.sampling import Origin, Sampler

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"


def head(*values: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x"), *((b"traceparent", value.encode("latin-1")) for value in values)]


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.05, 400, 600), (0.5, 4800, 5200), (1.0, 10**4, 10**4)])  # fmt: skip
def test_about_a_share_of_the_calls(share, low, high):
    """Of 10,000 the bounds are further off than four standard deviations."""
    sampler = Sampler(share)
    assert low <= sum(sampler.origin(uuid7(), head()) is not None for _ in range(10_000)) <= high


def test_a_call_is_its_own_trace():
    call = uuid7()
    assert Sampler(1).origin(call, head()) == Origin(call.int, 0, True)


def test_who_is_taken_by_a_small_share_is_taken_by_every_larger_one():
    calls = [uuid7() for _ in range(2_000)]
    taken = [{c for c in calls if Sampler(share).origin(c, [])} for share in (0.01, 0.1, 0.6, 1)]
    assert all(less < more for less, more in pairwise(taken))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_client_decides_for_its_own_calls(share):
    sampler, call = Sampler(share), uuid7()
    assert sampler.origin(call, head(SAMPLED)) == Origin(int(TRACE, 16), int(SPAN, 16), bool(share))
    assert sampler.origin(call, head(NOT_SAMPLED)) is None


@pytest.mark.parametrize(
    "said",
    [
        f"cc-{TRACE}-{SPAN}-09-what-comes-later",  # a later version, another flag beside the one that is known
        f"cc-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-ff",
    ],
)
def test_later_versions_and_flags_are_understood(said):
    assert Sampler(0).origin(uuid7(), head(said)) == Origin(int(TRACE, 16), int(SPAN, 16), False)


@pytest.mark.parametrize(
    "values",
    [
        ("",), ("00",), (SAMPLED.upper(),), (f"ff-{TRACE}-{SPAN}-01",), (f"00-{'0' * 32}-{SPAN}-01",),
        (f"00-{TRACE}-{'0' * 16}-01",), (f"00-{TRACE}-{SPAN}-01-more",), (f"00-{TRACE}-{SPAN}-1",),
        (f"00-{TRACE}-{SPAN}-01\n",), (f" {SAMPLED}",), (f"00-{TRACE[:-1]}g-{SPAN}-01",), ("é" * 55,),
        (f"cc-{TRACE}-{SPAN}-01.more",), (SAMPLED, SAMPLED), (SAMPLED, ""),
    ],
)  # fmt: skip
def test_what_is_no_trace_context_is_as_if_it_were_not_there(values):
    call = uuid7()
    assert Sampler(1).origin(call, head(*values)) == Origin(call.int)
    assert Sampler(0).origin(call, head(*values)) is None
