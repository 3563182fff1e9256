"""A cache, and workers that share by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.testing_cache import MemoryCache
from proxy.testing_upstream import Scripted
from tests.support.exchanges import World
from tests.support.sharers import Worker


@pytest.fixture
def cache() -> MemoryCache:
    return MemoryCache()


@pytest.fixture
def worker(tmp_path: Path, cache: MemoryCache) -> Callable[..., Worker]:
    def make(*answers: Scripted, **options: Any) -> Worker:
        remaining = list(answers)
        return Worker(World(tmp_path, lambda _: remaining.pop(0)), cache, **options)

    return make
