"""What Bedrock says a call used, by kind.

Token kinds never overlap: `input_tokens` excludes what was read from or written to the prompt
cache (the convention of Converse and of the token-count headers).
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Units of one attempt. `exact` is False when any figure is ours and not Bedrock's."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    #: generated images, priced apiece
    images: int = 0
    #: guardrail text units, summed over the guardrail's policies
    guardrail_units: int = 0
    #: the same by policy (`GuardrailUsage` member), where they are told; not kept in the ledger
    guardrail: tuple[tuple[str, int], ...] = field(default=(), compare=False)
    #: size and quality of the images, as the price book names them; not kept in the ledger
    image_variant: str | None = field(default=None, compare=False)
    exact: bool = True

    @property
    def cache_write_tokens(self) -> int:
        return self.cache_write_5m_tokens + self.cache_write_1h_tokens


NOTHING = Usage()
