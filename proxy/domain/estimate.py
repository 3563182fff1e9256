"""How many tokens a request will probably use: bytes per token, learned per model.

Rate limits charge this estimate up front and correct it at the end; budgets never use it.
"""

from __future__ import annotations

from collections.abc import Callable

from proxy.domain.usage import Usage

#: what English text has in common tokenizers, before anything is learned
START = 4.0
_WEIGHT = 0.1
_LEAST, _MOST = 1.0, 16.0


class Estimator:
    """Bounded by the catalogue: one figure per base model."""

    def __init__(self) -> None:
        self._bytes_per_token: dict[str, float] = {}

    def tokens(self, model: str, input_bytes: int) -> int:
        """Estimated input tokens of a request of so many bytes."""
        return int(input_bytes / self._bytes_per_token.get(model, START)) + 1

    def lesson(self, model: str, input_bytes: int) -> Callable[[Usage], None]:
        """A function that learns from the usage of a request of so many bytes."""

        def learn(usage: Usage) -> None:
            seen = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
            if seen > 0 and input_bytes > 0:
                ratio = min(max(input_bytes / seen, _LEAST), _MOST)
                old = self._bytes_per_token.get(model, START)
                self._bytes_per_token[model] = old + _WEIGHT * (ratio - old)

        return learn
