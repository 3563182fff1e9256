"""Charges that nobody could measure, lowered to what Bedrock's invocation log says they were.

A round asks for the attempts that are charged their ceiling, reads the log around them, and settles what is
proven as the late usage report that it is: the bank writes a REFUND entry (reason LOG) for the difference.
The audit trail is written first, so that there is no refund without its record. Everything may be done
again, by this worker or by another: a cost that is charged already changes nothing.

What the log does not have, or not completely, proves nothing.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from proxy import telemetry
from proxy.domain.catalogue import Model, Route, Target
from proxy.domain.denial import usd
from proxy.domain.evidence import EvidenceAwayError, LogLine, Proof, Unproven, joined, prove
from proxy.domain.ledger import Outcome, Settled, Settlement, State, Why
from proxy.domain.pricing import Priced
from proxy.errors import Refusal
from proxy.ports import PRICE, Labels

log = logging.getLogger("tollhouse.evidence")

#: questions of one round; the rest waits for the next
MOST = 5_000
ACTION = "call.refund"


class LogReader(Protocol):
    """One place in which Bedrock logs invocations."""

    async def lines(self, region: str, questions: Sequence[Unproven]) -> list[LogLine]:
        """Every line of these attempts that it has. Raises `EvidenceAwayError`."""
        ...


class Store(Protocol):
    """Raises `BankAway`."""

    async def unproven(self, since: dt.datetime, until: dt.datetime, most: int) -> list[Unproven]: ...

    async def audit(
        self, action: str, thing: str, before: Mapping[str, Any], after: Mapping[str, Any]
    ) -> None: ...


class Settling(Protocol):
    async def settle(self, settlement: Settlement) -> Settled: ...


class Book(Protocol):
    """The policies in force: `ids` are all names that resolve."""

    @property
    def ids(self) -> tuple[str, ...]: ...

    def resolve(self, name: str) -> Route: ...

    def priced(self, model: Model, target: Target) -> Priced: ...


@dataclass(slots=True)
class Round:
    """What one round came to: attempts, and nano-dollars that went back."""

    asked: int = 0
    refunded: int = 0
    returned: int = 0
    #: no line yet
    missing: int = 0
    #: lines that do not tell the cost, or a target that the policies do not know any more
    untold: int = 0
    #: the ceiling was what it cost, or another worker was first
    even: int = 0


@dataclass(slots=True)
class Investigator:
    """One per worker process. `days`: how long a missing line is waited for."""

    store: Store
    bank: Settling
    logs: Sequence[LogReader]
    book: Callable[[], Book]
    labels: Labels
    days: int
    clock: Callable[[], dt.datetime] = field(default=lambda: dt.datetime.now(dt.UTC))

    async def round(self) -> Round:
        """Raises `BankAway`, and `EvidenceAwayError` when no log could be read at all."""
        now = self.clock()
        questions = await self.store.unproven(now - dt.timedelta(days=self.days), now, MOST)
        result = Round(asked=len(questions))
        regions: dict[str, list[Unproven]] = defaultdict(list)
        for question in questions:
            regions[question.region].append(question)
        places = _Places(self.book()) if questions else None
        for region, some in regions.items():
            lines = await self._read(region, some)
            for question in some:
                await self._judge(question, joined(question, lines), places, result)
        telemetry.UNPROVEN.set(result.missing + result.untold)
        return result

    async def _read(self, region: str, questions: Sequence[Unproven]) -> list[LogLine]:
        """What all logs have together. One that is away is done without if another answers: what is read
        twice is the same request, and what one misses the other may have.
        """
        lines: list[LogLine] = []
        failures: list[EvidenceAwayError] = []
        for reader in self.logs:
            try:
                lines += await reader.lines(region, questions)
            except EvidenceAwayError as error:
                failures.append(error)
        if failures and len(failures) == len(self.logs):
            raise failures[0]
        for failure in failures:
            log.warning("evidence: %s", failure)
        return lines

    async def _judge(
        self, question: Unproven, lines: tuple[LogLine, ...], places: _Places | None, result: Round
    ) -> None:
        if not lines:
            result.missing += 1
            return
        found = places.find(question) if places is not None else None
        proof = None
        if found is not None:
            model, priced = found
            proof = prove(lines, model.family, priced, question.admitted_at)
        if found is None or proof is None:
            result.untold += 1
            log.info("the log does not tell what attempt %s cost", question.attempt)
            return
        if proof.cost == question.ceiling:
            result.even += 1
            return
        await self._refund(question, proof, found[1], result)

    async def _refund(self, question: Unproven, proof: Proof, priced: Priced, result: Round) -> None:
        evidence = [f"log:{line.request_id}" for line in proof.lines]
        before = {"charged_usd": usd(question.ceiling)}
        after = {
            "charged_usd": usd(proof.cost),
            "evidence": evidence,
            "sources": sorted({line.source for line in proof.lines}),
            "price_version": proof.price_version,
        }
        await self.store.audit(ACTION, f"call:{question.attempt}", before, after)
        settlement = Settlement(
            attempt=question.attempt,
            state=State.POST,
            why=Why.LOG,
            cost=proof.cost,
            upstream_cost=0 if priced.upstream_free else proof.cost,
            usage=proof.usage,
            price=await self.labels.intern(PRICE, proof.price_version),
            upstream_request_id=proof.lines[0].request_id[:64],
            status=question.status,
            latency_ms=question.latency_ms,
            first_byte_ms=question.first_byte_ms,
        )
        settled = await self.bank.settle(settlement)
        telemetry.settled(settlement, settled)
        if settled.outcome is not Outcome.REFUNDED:
            result.even += 1
            return
        returned = max(0, question.ceiling - proof.cost)
        result.refunded += 1
        result.returned += returned
        telemetry.REFUNDED.inc()
        telemetry.REFUNDED_MONEY.inc(returned)
        log.info("attempt %s: %s USD went back (%s)", question.attempt, usd(returned), ", ".join(evidence))


class _Places:
    """The targets of every route that the policies have, by their label in the ledger."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._by_label: dict[str, list[tuple[Model, Target]]] | None = None

    def find(self, question: Unproven) -> tuple[Model, Priced] | None:
        """The model and the prices of the place an attempt was sent to; None when the policies do not say
        them (any more), or say them twice.
        """
        try:
            model, target = self._target(question)
            return model, self._book.priced(model, target)
        except (Refusal, LookupError):
            return None

    def _target(self, question: Unproven) -> tuple[Model, Target]:
        """Raises `LookupError` or `Refusal`."""
        if self._by_label is None:
            self._by_label = self._all()
        known = {
            (target.kind, target.prefix, target.rates): (model, target)
            for model, target in self._by_label.get(question.target, ())
            if model.id == question.model
        }
        if len(known) == 1:
            return next(iter(known.values()))
        if known:
            raise LookupError(question.target)
        route = self._book.resolve(question.model_id)
        if route.model.id != question.model:
            raise LookupError(question.target)
        return route.model, replace(route.targets[0], region=question.region)

    def _all(self) -> dict[str, list[tuple[Model, Target]]]:
        found: dict[str, list[tuple[Model, Target]]] = defaultdict(list)
        for name in self._book.ids:
            try:
                route = self._book.resolve(name)
            except Refusal:
                continue
            for target in route.targets:
                found[target.label].append((route.model, target))
        return found
