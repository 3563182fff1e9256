"""Native bodies of the model families, one small file each."""

from proxy.simulator.families.amazon import Nova, Titan, TitanEmbed
from proxy.simulator.families.base import Family
from proxy.simulator.families.claude import Claude, ClaudeText
from proxy.simulator.families.cohere import Command, CommandR, Embed, Rerank
from proxy.simulator.families.images import AmazonImage, Stability
from proxy.simulator.families.llama import Llama
from proxy.simulator.families.mistral import DeepSeek, MistralChat, MistralText
from proxy.simulator.families.openai import Jamba, OpenAIChat

FAMILIES: dict[str, Family] = {
    "amazon_image": AmazonImage(),
    "claude": Claude(),
    "claude_text": ClaudeText(),
    "cohere_embed": Embed(),
    "cohere_rerank": Rerank(),
    "command": Command(),
    "command_r": CommandR(),
    "deepseek": DeepSeek(),
    "jamba": Jamba(),
    "llama": Llama(),
    "mistral": MistralChat(),
    "mistral_text": MistralText(),
    "nova": Nova(),
    "openai": OpenAIChat(),
    "stability": Stability(),
    "titan": Titan(),
    "titan_embed": TitanEmbed(),
}
