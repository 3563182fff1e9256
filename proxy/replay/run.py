"""One run: its tenants and keys, the calls, and what ledger and bill say at the end."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from proxy.errors import ConfigurationError
from proxy.replay import plan, report
from proxy.replay.drive import LATE_S, Driver, Sender, Tally
from proxy.replay.rest import Rest
from proxy.replay.trace import read

T = TypeVar("T")
Output = Callable[[str], Any]

_KEY_SECONDS = 15.0
_SETTLED_SECONDS = 60.0
_ROLLUP_SECONDS = 15.0
_PAUSE_S = 0.25
_BEYOND = 1_000_000_000
#: how far the clocks of this machine and of the ledger may be apart
_SKEW_SECONDS = 600.0


def main(
    trace: Path,
    *,
    proxy_url: str,
    admin_key: str,
    simulator_url: str | None,
    tenants: int,
    speed: float,
    limit: int | None,
    concurrency: int,
    models: list[str],
    output: Output,
) -> int:
    """Replay `trace`; 0 when ledger and bill agree on every call, else 1.

    `speed` is trace seconds per second, `limit` the most requests (None: all), `models` Bedrock
    model ids (empty: Llama 3.1 405B and Claude 3 Haiku). Without a simulator there is no bill and
    only the ledger is shown. `output` gets whole lines. Raises `ConfigurationError` for a trace that
    makes no sense, arguments that do not, and a server that cannot be reached or refuses the admin.
    """
    if tenants < 1 or concurrency < 1 or not 0 < speed < float("inf") or (limit is not None and limit < 1):
        raise ConfigurationError("tenants, concurrency, speed and limit must be above 0")
    rows = read(trace, limit)
    run = secrets.token_hex(3)
    shapes = list(plan.shapes(rows, run=run, tenants=tenants, models=models or plan.MODELS, speed=speed))
    admin = Rest(proxy_url, admin_key)
    simulator = Rest(simulator_url) if simulator_url else None
    replay = _Replay(run, admin, simulator, output)
    output(
        f"replay {run}: {len(shapes)} requests of {trace.name}, {rows[-1].at_s:.0f} s at {speed:g} times the "
        f"speed, {tenants} tenants, at most {concurrency} at once, SDK retries off"
    )
    cut = sum(shape.cut for shape in shapes)
    if cut:
        output(
            f"{cut} answers are cut to {plan.LLAMA_TOKENS_MAX} or {plan.OUTPUT_TOKENS_MAX} tokens, the most there is"
        )
    try:
        return replay.run(shapes, proxy_url, tenants, concurrency)
    finally:
        replay.close()


@dataclass(slots=True)
class _Key:
    id: str
    sender: Sender


class _Replay:
    """One run: its tenants and keys, and what is asked at its end."""

    def __init__(self, run: str, admin: Rest, simulator: Rest | None, output: Output) -> None:
        self._run = run
        self._admin = admin
        self._simulator = simulator
        self._output = output
        self._keys: list[_Key] = []
        self._since = time.time() - _SKEW_SECONDS

    def run(self, shapes: Sequence[plan.Shape], proxy_url: str, tenants: int, concurrency: int) -> int:
        billed_before = self._billed(_BEYOND)[0]
        for number in range(1, tenants + 1):
            self._open(f"replay-{self._run}-{number}", proxy_url)
        senders = [key.sender for key in self._keys]
        tally = Driver(proxy_url, senders, concurrency, self._output).run(shapes)
        names = [sender.tenant for sender in senders]
        self._settled(names)
        entries = [e for name in names for e in self._entries(tenant=name)]
        return self._report(names, tally, entries, billed_before)

    def close(self) -> None:
        """Revoke the run's keys; its tenants stay, as the ledger's rows do."""
        for key in self._keys:
            with suppress(ConfigurationError):
                self._admin.ask("POST", f"/admin/v1/keys/{key.id}/revoke", {})
        self._admin.close()
        if self._simulator is not None:
            self._simulator.close()

    def _open(self, tenant: str, proxy_url: str) -> None:
        """A tenant with a key that the proxy already knows."""
        self._admin.want("POST", "/admin/v1/tenants", {"id": tenant, "name": f"Replay {self._run}"})
        issued = self._admin.want("POST", "/admin/v1/keys", {"tenant": tenant, "name": "replay"})
        sender = Sender(tenant, issued["aws_access_key_id"], issued["aws_secret_access_key"])
        self._keys.append(_Key(issued["id"], sender))
        own = Rest(proxy_url, issued["bearer_token"])
        try:
            if not _until(lambda: own.ask("GET", "/me")[0] not in {401, 403}, _KEY_SECONDS):
                raise ConfigurationError(
                    f"{proxy_url} does not know a key that it issued {_KEY_SECONDS:.0f} s ago"
                )
        finally:
            own.close()

    def _settled(self, tenants: Sequence[str]) -> None:
        """Wait until no call of the run is open, at most `_SETTLED_SECONDS`."""

        def none_open() -> bool:
            pages = (
                self._admin.want("GET", f"/admin/v1/calls?tenant={t}&outcome=OPEN&limit=1") for t in tenants
            )
            return not any(page["items"] for page in pages)

        if not _until(none_open, _SETTLED_SECONDS):
            self._output(f"calls are still open after {_SETTLED_SECONDS:.0f} s")

    def _billed(self, since: int) -> tuple[int, list[report.Billed]]:
        """The place after the bill's last call, and its calls from `since` on."""
        if self._simulator is None:
            return 0, []
        bill = self._simulator.want("GET", f"/_bill?since={since}")
        calls = [_parsed(report.billed, call) for call in bill["calls"]]
        return bill.get("next", len(calls)), calls

    def _entries(self, **query: str) -> list[report.Entry]:
        return [_parsed(report.entry, item) for item in self._admin.every("/admin/v1/calls", **query)]

    def _report(
        self, tenants: list[str], tally: Tally, entries: list[report.Entry], billed_before: int
    ) -> int:
        differences = report.unrecorded(tally.calls, entries)
        compared = billed_nano = None
        if self._simulator is not None:
            after, bill = self._billed(billed_before)
            if after < billed_before:
                raise ConfigurationError("the simulator's bill was cleared while the run went on")
            compared = report.compare(entries, self._ours(bill, entries))
            differences += compared.differences
            billed_nano = compared.billed_nano
        else:
            differences += [d for d in report.compare(entries, ()).differences if d.kind == "still open"]
        counts = {
            name: {
                "answered": tally.answered[name],
                "refused": sum(n for (tenant, _), n in tally.refused.items() if tenant == name),
                "failed": sum(n for (tenant, _), n in tally.failed.items() if tenant == name),
            }
            for name in tenants
        }
        self._lines("", *report.ledger_table(tenants, counts, entries, billed_nano))
        self._reasons(tenants, tally)
        if tally.late_max_s > LATE_S:
            self._output(
                f"fell behind by up to {tally.late_max_s:.1f} s: less load than asked for; "
                "raise --concurrency or lower --speed"
            )
        return self._verdict(compared, differences)

    def _verdict(self, compared: report.Comparison | None, differences: list[report.Difference]) -> int:
        if differences:
            self._lines("", "DIFFERENCES", *report.difference_lines(differences))
            return 1
        if compared is not None and compared.compared == 0:
            self._output("no call came as far as the bill: nothing was compared")
            return 1
        if compared is None:
            self._output("no simulator: the ledger was compared with no bill")
        else:
            self._output(f"zero difference: {compared.compared} calls, equal in request id, tokens and cost")
        return 0

    def _ours(self, bill: list[report.Billed], entries: Sequence[report.Entry]) -> list[report.Billed]:
        """The bill without what the ledger has under other tenants: this proxy may have other users."""
        requests, attempts = {e.request_id for e in entries}, {e.attempt for e in entries}
        strange = [b for b in bill if b.request_id not in requests and b.attempt not in attempts]
        if not strange:
            return bill
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._since))
        others = self._entries(since=since)
        theirs = {e.attempt for e in others} | {e.request_id for e in others if e.request_id}
        theirs -= requests | attempts
        return [b for b in bill if b.request_id not in theirs and b.attempt not in theirs]

    def _reasons(self, tenants: list[str], tally: Tally) -> None:
        """Refusals as the clients saw them, and the proxy's own reasons once its roll-up has them."""
        for title, counter in (("failed", tally.failed), ("refused", tally.refused)):
            kinds: dict[str, int] = {}
            for (_, kind), count in counter.items():
                kinds[kind] = kinds.get(kind, 0) + count
            self._lines(*(f"{count} {title}: {kind}" for kind, count in sorted(kinds.items())))
        refused = tally.refused.total()
        if not refused:
            return
        reasons: dict[str, int] = {}

        def counted() -> bool:
            reasons.clear()
            for tenant in tenants:
                for item in self._admin.every("/admin/v1/refusals", tenant=tenant, group_by="reason"):
                    reasons[item["reason"]] = reasons.get(item["reason"], 0) + item["count"]
            return sum(reasons.values()) >= refused

        _until(counted, _ROLLUP_SECONDS)
        self._lines(
            *(f"{count} by the proxy's reason: {reason}" for reason, count in sorted(reasons.items()))
        )

    def _lines(self, *lines: str) -> None:
        for line in lines:
            self._output(line)


def _parsed(parse: Callable[[dict[str, Any]], T], item: dict[str, Any]) -> T:
    try:
        return parse(item)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"not of the shape of a call: {error!r} in {item}") from None


def _until(true: Callable[[], bool], seconds: float) -> bool:
    """Ask until it is true, at most so long; the last answer."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() >= end:
            return False
        time.sleep(_PAUSE_S)
    return True
