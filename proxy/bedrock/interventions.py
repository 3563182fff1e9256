"""Did a guardrail step into an answer? Read off the bytes, whole or streamed.

Converse says `stopReason: guardrail_intervened`, InvokeModel
`amazon-bedrock-guardrailAction: INTERVENED` (user guide, "Test and view results of your guardrail"),
Chat Completions `finish_reason: content_filter`. A streamed InvokeModel answer hides it in base64. A text that quotes one of the words looks the same;
such an answer is only treated with more care than it needs.
"""

from __future__ import annotations

from proxy.bedrock.dialects.meters import needles

_MARKS = (
    b"guardrail_intervened",
    b'"content_filter"',  # the same on Chat Completions
    b'"INTERVENED"',
    b'"content_filter"',
    *needles('"INTERVENED"'),
    *needles("guardrail_intervened"),
)


def intervened(body: bytes) -> bool:
    """2 ms for a body of 1 MB."""
    return any(mark in body for mark in _MARKS)
