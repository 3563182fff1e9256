"""Leaving in two steps: the first SIGTERM turns readiness off, everything else ends at once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from proxy.server import _granian, _Server
from proxy.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=str(tmp_path / "state"), leave_seconds=1, port=0)


@pytest.fixture
def server(settings: Settings) -> _Server:
    return _granian(settings)


def test_sigterm_says_so_first_and_ends_later(server: _Server, settings: Settings) -> None:
    mark = settings.leaving_mark(os.getpid())
    assert not mark.exists()
    server.signal_handler_interrupt(signal.SIGTERM, None)
    assert mark.exists() and not server.interrupt_signal
    assert server.main_loop_interrupt.wait(5) and server.interrupt_signal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_a_second_sigterm_end_at_once(server: _Server, number: int) -> None:
    if number == signal.SIGTERM:
        server.signal_handler_interrupt(signal.SIGTERM, None)
    server.signal_handler_interrupt(number, None)
    assert server.interrupt_signal


def test_a_mark_that_cannot_be_made_keeps_nobody_here(server: _Server, tmp_path: Path) -> None:
    """A full or read-only disk: then who balances learns it from the closed port."""
    server._leaving = tmp_path / "gone" / "leaving"
    server.signal_handler_interrupt(signal.SIGTERM, None)
    assert server.interrupt_signal
