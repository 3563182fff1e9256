"""DeepSeek R1: `prompt` in, `choices` out, no usage in the body.

Source: user guide, "DeepSeek models".
"""

from __future__ import annotations

from proxy.bedrock.dialects.bounds import Allowance
from proxy.bedrock.dialects.mistral import Mistral


class DeepSeek(Mistral):
    """The same fields as Mistral's; later DeepSeek models take messages."""

    name = "deepseek"
    known = frozenset(
        {
            "prompt", "messages", "max_tokens", "temperature", "top_p", "stop", "n", "tools", "tool_choice",
            "response_format", "amazon-bedrock-guardrailConfig",
        }
    )  # fmt: skip
    allowance = Allowance(request=256, tools=2048)


DEEPSEEK = DeepSeek()
