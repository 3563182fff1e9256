"""A world of one exchange."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.testing_upstream import Scripted
from tests.support.exchanges import World


@pytest.fixture
def world(tmp_path: Path) -> Callable[..., World]:
    def make(*answers: Scripted, **options: Any) -> World:
        remaining = list(answers)
        return World(tmp_path, lambda _: remaining.pop(0), **options)

    return make
