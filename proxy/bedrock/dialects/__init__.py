"""Wire dialects: what a body may cost, what an answer used, one small file per family or route.

`native(family)` is the dialect of a family's own body on InvokeModel; `CONVERSE` serves every family,
and the three routes speak OpenAI's and Anthropic's words to every model that has them.
"""

from __future__ import annotations

from proxy.bedrock.dialects.ai21 import JAMBA, JURASSIC
from proxy.bedrock.dialects.anthropic import ANTHROPIC, ANTHROPIC_TEXT
from proxy.bedrock.dialects.cohere import COMMAND, COMMAND_TEXT, EMBED
from proxy.bedrock.dialects.converse import Converse
from proxy.bedrock.dialects.counts import Served
from proxy.bedrock.dialects.deepseek import DEEPSEEK
from proxy.bedrock.dialects.dialect import NativeDialect
from proxy.bedrock.dialects.images import NOVA_CANVAS, STABILITY, TITAN_IMAGE
from proxy.bedrock.dialects.json import parse
from proxy.bedrock.dialects.llama import LLAMA
from proxy.bedrock.dialects.mistral import MISTRAL, MISTRAL_TEXT
from proxy.bedrock.dialects.nova import NOVA
from proxy.bedrock.dialects.openai import OPENAI, OPENAI_COMPATIBLE
from proxy.bedrock.dialects.routes import CHAT_COMPLETIONS, MESSAGES, RESPONSES
from proxy.bedrock.dialects.titan import NOVA_EMBED, TITAN_EMBED, TITAN_TEXT
from proxy.errors import UnknownModel

__all__ = [
    "CHAT_COMPLETIONS",
    "CONVERSE",
    "FAMILIES",
    "MESSAGES",
    "RESPONSES",
    "NativeDialect",
    "Served",
    "native",
    "parse",
]

#: by `Model.family`; families that are missing (speech, video, rerank) cannot be bounded
FAMILIES: dict[str, NativeDialect] = {
    dialect.name: dialect
    for dialect in (
        LLAMA, ANTHROPIC, ANTHROPIC_TEXT, NOVA, NOVA_CANVAS, NOVA_EMBED, TITAN_TEXT, TITAN_EMBED, TITAN_IMAGE,
        MISTRAL, MISTRAL_TEXT, COMMAND, COMMAND_TEXT, EMBED, JAMBA, JURASSIC, DEEPSEEK, OPENAI,
        OPENAI_COMPATIBLE, STABILITY,
    )
}  # fmt: skip


def native(family: str) -> NativeDialect:
    """The dialect of a family's native body. Raises `UnknownModel` for a family without one."""
    try:
        return FAMILIES[family]
    except KeyError:
        raise UnknownModel(f"Models of the family {family!r} cannot be bounded by this proxy.") from None


CONVERSE = Converse(native, FAMILIES.values())
