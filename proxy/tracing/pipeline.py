"""The pipeline of a worker that traces: some calls are watched on their way, the others go as ever."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from proxy.call import Call
from proxy.domain.tenant import Caller
from proxy.errors import Refusal
from proxy.pipeline import Pipeline, RefusalLog, Request, Sharers
from proxy.ports import Sink
from proxy.sharing import Lead
from proxy.tracing.sampling import Origin, Sampler
from proxy.tracing.spans import Trace, trace_of
from proxy.tracing.trail import Trail

log = logging.getLogger("tollhouse.tracing")


@dataclass(slots=True, kw_only=True)
class TracedPipeline(Pipeline):
    sampler: Sampler
    #: takes a finished trace; must neither wait nor raise
    export: Callable[[Trace], None]
    #: host and port of Bedrock in a region
    address: Callable[[str], tuple[str, int]]

    def handle(self, request: Request, sink: Sink) -> Coroutine[Any, Any, None]:
        """As `Pipeline.handle`; for a call that is not traced it is just that."""
        origin = self.sampler.origin(request.id, request.raw_headers)
        if origin is None:
            return Pipeline.handle(self, request, sink)
        return self._watched(request, sink, origin)

    async def _watched(self, request: Request, sink: Sink, origin: Origin) -> None:
        trail = Trail(
            origin=origin, call_id=request.id, operation=request.endpoint.operation, began=request.began,
            told=self._tell, sink=sink,
        )  # fmt: skip
        own = copy.copy(self)
        own.kit = trail.watched(self.kit)
        own.sharing = _Sharing(self.sharing, trail)
        own.refusals = _Refusals(self.refusals, trail)
        trail.enter()
        try:
            await Pipeline.handle(own, request, sink)
        except Exception as error:
            if not isinstance(error, Refusal):
                trail.failure = type(error).__name__
            raise
        finally:
            trail.leave()

    def _tell(self, trail: Trail) -> None:
        """Whatever goes wrong in telling must not become the call's. Who proves nothing cannot have
        himself traced either.
        """
        if trail.caller is None and not trail.origin.own:
            return
        try:
            self.export(trace_of(trail, self.address))
        except Exception:
            log.exception("call %s could not be traced", trail.call_id)


@dataclass(slots=True)
class _Sharing:
    inner: Sharers
    trail: Trail

    async def enter(self, call: Call, sink: Sink) -> Lead | None:
        trail, lead = self.trail, None
        trail.call = call
        trail.enter()
        began = time.monotonic()
        try:
            lead = await self.inner.enter(call, sink)
            trail.given = lead is None
        finally:
            trail.step("cache", began)
            if lead is None:
                trail.leave()
        if lead is not None:
            _tell_both(call, trail)
        return lead

    def landed(self, lead: Lead) -> None:
        self.inner.landed(lead)
        self.trail.leave()


def _tell_both(call: Call, trail: Trail) -> None:
    others = call.concluded
    if others is None:
        call.concluded = trail.concluded
        return

    def concluded(ending: Any, leg: Any) -> None:
        trail.concluded(ending, leg)
        others(ending, leg)

    call.concluded = concluded


@dataclass(slots=True)
class _Refusals:
    """Told of every caller and every refusal."""

    inner: RefusalLog
    trail: Trail

    def count(
        self, caller: Caller | None, model: str | None, refusal: Refusal, call: UUID | None = None
    ) -> None:
        trail = self.trail
        trail.caller, trail.refusal = caller, refusal
        trail.model = model or trail.model
        self.inner.count(caller, model, refusal, call)

    def label(self, caller: Caller | None) -> str:
        self.trail.caller = caller
        return self.inner.label(caller)
