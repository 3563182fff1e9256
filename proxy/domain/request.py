"""A request as governance sees it: what it could cost at most, and nothing of what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CacheTtl = Literal["5m", "1h"]


@dataclass(slots=True, kw_only=True)
class Bound:
    """Upper bounds read off a request body by its dialect. All are >= 0.

    A dialect that cannot bound a body raises `UnboundedCost` instead of returning one.
    """

    #: tokens; a byte bound, not yet capped by the model's context
    input_tokens: int
    #: the limit the request names for ONE choice, None when it names none
    output_limit: int | None
    #: completions asked for (`n`); the output bound is limit x choices
    choices: int = 1
    #: dearest prompt-cache write the request may cause, None when it places no cache points
    cache_ttl: CacheTtl | None = None
    images: int = 0
    #: size and quality of the images, as the price book names them; None counts as the dearest
    image_variant: str | None = None
    guardrail: bool = False
    #: guardrail identifier as named by the request
    guardrail_id: str | None = None
    tier: str = "default"
    latency: str = "standard"
    #: client's own request metadata (Bedrock `requestMetadata`), to be merged and forwarded
    metadata: tuple[tuple[str, str], ...] = ()
    #: ARNs named inside the body (guardrails, s3 sources); each must be on the allow-list
    arns: tuple[str, ...] = ()
    #: the request names tools, so its answer may act
    tools: bool = False
    #: temperature is exactly 0 (or the model has none)
    deterministic: bool = False
    #: the body itself asks for a streamed answer (OpenAI and Anthropic routes)
    stream: bool = False
