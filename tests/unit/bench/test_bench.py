"""What the benchmark's figures rest on: its frames, its arithmetic, its accounting and its verdicts."""

import json
import os
import time
from types import SimpleNamespace
from typing import Any

import pytest

from bench import growth, install, payloads, plot, processes, report
from bench.client import percentiles
from proxy.bedrock.dialects.llama import LLAMA


def test_the_canned_stream_is_one_that_the_proxy_meters_and_passes_on_unchanged():
    meter = LLAMA.meter({})
    sent = b"".join(event.at(1_234_567) for event in payloads.llama_stream(50))
    passed = meter.feed(sent)
    meter.finish()
    assert meter.usage is not None
    assert (meter.usage.input_tokens, meter.usage.output_tokens) == (payloads.INPUT_TOKENS, 50)
    assert passed + meter.held() == sent
    assert sent.count(b"T0000000001234567T") == 50


@pytest.mark.parametrize("stream", [payloads.converse_stream, payloads.chat_stream])
def test_every_event_that_counts_carries_its_moment(stream: Any):
    sent = b"".join(event.at(42) for event in stream(7))
    assert sent.count(b"T0000000000000042T") == 7
    assert payloads.MARK.encode() not in sent


def test_a_large_request_is_about_as_large_as_asked():
    assert abs(len(payloads.llama_request(100_000)) - 100_000) < 200
    json.loads(payloads.llama_request(100_000))


def test_cpu_time_of_a_tree_is_what_it_used():
    before, began = processes.cpu_us(os.getpid()), time.process_time()
    while time.process_time() - began < 0.2:
        pass
    used = processes.cpu_us(os.getpid()) - before
    assert 170_000 <= used <= 400_000
    assert processes.memory(os.getpid()).rss_largest > 5


@pytest.mark.parametrize(
    ("worked", "waits", "quiet"),
    [([0, 4], 1, True), ([0, 25, 50, 53], 3, True), ([0, *range(25, 2000, 25)], 8, False)],
)
def test_a_run_begins_when_the_one_before_has_really_ended(
    monkeypatch: pytest.MonkeyPatch, worked: list[int], waits: int, quiet: bool
):
    """Busy ticks of a core at each look, of 25 that passed between two."""
    now, looks = [0.0], [0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        looks[0] += 1

    monkeypatch.setattr(processes, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    monkeypatch.setattr(processes, "busy_ticks", lambda core: (worked[looks[0]], 25 * looks[0]))
    assert processes.quiet(0, seconds=2.0) is quiet
    assert looks[0] == waits


def test_percentiles_never_reach_past_the_last_value():
    assert percentiles([3.0], 1e3) == {"p50": 3000.0, "p95": 3000.0, "p99": 3000.0}
    assert percentiles([float(n) for n in range(100)], 1)["p95"] == 95.0
    assert percentiles([], 1) == {}


def results(ours: float = 300.0, *, wrong: int = 0) -> dict[str, Any]:
    def runs(**values: float) -> list[dict[str, Any]]:
        return [{"errors": 0, **values}] * 3

    mine = runs(cpu_us_proxy=ours, cpu_us_postgres=90, cpu_us_redis=40, p50=3.0, p95=4.0, p99=5.0, rate=2000)
    mine = [*mine[:2], {**mine[2], "errors": wrong}]
    c16 = {
        "direct": runs(cpu_us_proxy=0.0, p50=1.0, p95=1.0, p99=1.5, rate=60_000),
        "nginx": runs(cpu_us_proxy=15.0, p50=1.2, p95=1.3, p99=1.9, rate=40_000),
        "tollhouse": mine,
    }
    return {
        "began": "2026-01-02T03:04:05+00:00",
        "form": {"name": "smoke", "alternations": 3, "levels": [16], "streams": [], "open_rate": 300},
        "machine": {
            "cpu": "a processor", "cores": 2, "memory_mib": 4096, "kernel": "6", "python": "3.11",
            "fsync_us": {"p50": 100, "p99": 200}, "load_average": [0.1, 0.1, 0.1], "versions": {}, "cores_apart": True,
        },
        "contestants": {name: {"about": "", "version": ""} for name in c16} | {"gone": {"about": "", "absent": "why"}},
        "runs": {"c16": c16},
    }  # fmt: skip


def test_added_latency_is_the_median_difference_of_the_same_alternation():
    found = results()
    found["runs"]["c16"]["tollhouse"] = [{"p50": value} for value in (11.0, 5.0, 102.0)]
    found["runs"]["c16"]["direct"] = [{"p50": value} for value in (10.0, 1.0, 100.0)]
    assert report.added(found, "c16", "tollhouse", "p50") == 2.0
    assert report.added(found, "c16", "tollhouse", "p77") is None


def test_the_table_says_what_is_met_what_is_missed_and_who_is_absent():
    text = report.markdown(results())
    assert "| proxy CPU per whole call, c=16 | ≤ 350 µs | 220 µs | 300 µs | meets must |" in text
    assert "| Postgres and Redis CPU per call, c=16 | ≤ 250 µs | 140 µs | 130 µs | meets strive |" in text
    assert "| denials, c=16 | ≥ 5,000 /s | 12,000 /s | – | not measured |" in text
    assert "**gone** is absent: why" in text
    assert "+2 / +3 / +3.50" in text
    assert "**misses**" in report.figures_table(results(400.0))


@pytest.mark.parametrize(("ours", "wrong", "code"), [(300, 0, 0), (3000, 0, 1), (300, 1, 1)])
def test_the_smoke_form_fails_on_a_tenfold_slip_and_on_any_error(
    ours: float, wrong: int, code: int, capsys: pytest.CaptureFixture[str]
):
    assert report.verdict(results(ours, wrong=wrong)) == code
    assert ("FAILED" in capsys.readouterr().out) == bool(code)


def test_growth_installs_what_it_runs_and_does_not_begin_without(monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def none_of(names: list[str]) -> dict[str, bool]:
        asked.extend(names)
        return {"tools": False}

    monkeypatch.setattr(install, "all_of", none_of)
    monkeypatch.setattr("sys.argv", ["growth"])
    assert growth.main() == 1
    assert asked == ["tools", "tollhouse"]


def test_the_plot_is_drawn_with_the_values_it_was_given():
    drawn = plot.draw("title <1>", [("cost", "µs", [("a", 5.0), ("b", None), ("c", 0.0)])])
    assert "title &lt;1&gt;" in drawn
    assert "not measured" in drawn
    assert drawn.count("<rect") == 2


def test_the_documentation_has_its_markers():
    text = report.DOCS.read_text()
    assert text.count("<!-- measured: begin -->") == text.count("<!-- measured: end -->") == 1
