"""A tokenizer and a text generator of the simulator's own.

The rule: up to four printable ASCII bytes of one word are a token, every byte outside ASCII and every
control byte is a token of its own, blanks are free. So a text never has more tokens than UTF-8 bytes,
and text in other scripts reaches that bound, as it does with byte-level BPE on scripts it never learnt.
"""

import re
from hashlib import blake2b

#: Hidden tokens, at most, that the tool-use system prompt adds once a request has tools.
TOOL_PROMPT_TOKENS = 346
#: Tokens added for each message, and once for each request of a chat.
MESSAGE_TOKENS = 3
REQUEST_TOKENS = 3
#: What one image costs (Claude: width x height / 750, at most about this).
IMAGE_TOKENS = 1_600
MEAN_OUTPUT_TOKENS = 60

_TOKEN = re.compile(rb"[!-~]{1,4}|[^ -~\t-\r]")

# fmt: off
_WORDS = (
    "river", "stone", "light", "paper", "garden", "winter", "engine", "coffee", "window", "market",
    "silver", "basket", "harbour", "lantern", "copper", "meadow", "signal", "thread", "ladder",
    "mirror", "cotton", "anchor", "marble", "violet", "between", "under", "across", "beyond", "within",
    "along", "before", "after", "around", "until", "toward", "among", "carries", "follows", "measures",
    "gathers", "answers", "returns", "balances", "collects", "explains", "prepares", "reaches",
    "settles", "quiet", "steady", "narrow", "gentle", "bright", "patient", "careful", "distant",
    "familiar", "useful", "honest", "plain",
)
# fmt: on


def count(text: str) -> int:
    """Tokens of a text; never more than its UTF-8 bytes."""
    return len(_TOKEN.findall(text.encode("utf-8", "surrogatepass")))


def count_bytes(text: bytes) -> int:
    return len(_TOKEN.findall(text))


def seed_of(*parts: bytes) -> int:
    """A number that depends on every byte of the parts and on nothing else."""
    return int.from_bytes(blake2b(b"\x00".join(parts), digest_size=8).digest(), "big")


def drawn_length(seed: int) -> int:
    """Output length when nobody asked for one: 20 to 100 tokens, 60 on average, fixed by the prompt."""
    return 20 + seed % (2 * (MEAN_OUTPUT_TOKENS - 20) + 1)


def words(seed: int, amount: int) -> list[str]:
    """``amount`` words, one output token each, every one after the first with its leading blank."""
    size = len(_WORDS)
    step = 1 + 2 * (seed >> 16) % size
    step = step if size % step else step + 1
    start = seed % size
    drawn = [" " + _WORDS[(start + step * place + (place * place >> 3)) % size] for place in range(amount)]
    if drawn:
        drawn[0] = drawn[0][1:].capitalize()
    return drawn
