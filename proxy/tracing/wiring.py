"""Which pipeline a worker runs: the plain one, or one that traces where there is a collector to tell."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from proxy.pipeline import Pipeline
from proxy.tracing.collector import collector
from proxy.tracing.pipeline import TracedPipeline
from proxy.tracing.sampling import Sampler

if TYPE_CHECKING:
    from proxy.tracing.otlp import Exporter


def exporter(endpoint: str, headers: str) -> Exporter | None:
    """None without an endpoint. Raises `ConfigurationError`."""
    named = collector(endpoint, headers)
    if named is None:
        return None
    # 7 MB of a worker, for those who want it
    from proxy.tracing.otlp import Exporter  # noqa: PLC0415

    return Exporter(named)


def pipeline_of(
    traces: Exporter | None, share: float, address: Callable[[str], tuple[str, int]]
) -> Callable[..., Pipeline]:
    """What makes the worker's pipeline. `share` of the calls are traced, 0 to 1; `address` is host and port of
    Bedrock in a region.
    """
    if traces is None:
        return Pipeline
    return partial(TracedPipeline, sampler=Sampler(share), export=traces.take, address=address)
