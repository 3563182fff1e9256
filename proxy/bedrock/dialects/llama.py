"""Meta Llama: `prompt` in, `generation` out.

Source: user guide, "Meta Llama models" (fields, `max_gen_len` 1..2048, default 512); images from
Llama 3.2 on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxy.bedrock.dialects import counts
from proxy.bedrock.dialects.bounds import Allowance, Tally, list_of, number_of
from proxy.bedrock.dialects.dialect import NativeDialect
from proxy.domain.catalogue import Model
from proxy.domain.usage import Usage


class Llama(NativeDialect):
    name = "llama"
    known = frozenset(
        {
            "prompt", "max_gen_len", "temperature", "top_p", "images",
            "amazon-bedrock-guardrailConfig",
        }
    )  # fmt: skip
    limits = (("max_gen_len",),)
    #: the prompt is taken as it is; only the begin-of-text token comes on top. Converse's template
    #: adds two dates and the role headers.
    allowance = Allowance(request=64)

    def check(self, body: dict[str, Any], model: Model) -> None:  # noqa: ARG002
        if "temperature" in body:
            number_of(body["temperature"], "temperature", 1)
        if "top_p" in body:
            number_of(body["top_p"], "top_p", 1)

    def content(self, body: dict[str, Any], model: Model, tally: Tally) -> None:  # noqa: ARG002
        tally.text(body.get("prompt"), "prompt")
        if body.get("images") is not None and list_of(body["images"], "images"):
            tally.context()

    def body_usage(self, answer: Mapping[str, Any]) -> Usage | None:
        try:
            return Usage(
                input_tokens=counts.count(answer.get("prompt_token_count")),
                output_tokens=counts.count(answer.get("generation_token_count")),
            )
        except counts.NonsenseError:
            return None


LLAMA = Llama()
