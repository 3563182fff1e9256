"""Turn the rows of a trace into requests: who sends what, to which model, by which operation."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from proxy.replay.trace import Row

Operation = Literal["invoke", "invoke-stream", "converse", "converse-stream"]
OPERATIONS: tuple[Operation, ...] = ("invoke", "invoke-stream", "converse", "converse-stream")
MODELS = ("meta.llama3-1-405b-instruct-v1:0", "anthropic.claude-3-haiku-20240307-v1:0")
#: the most output that both of them give (Bedrock's model cards); longer answers of a trace are cut to it
OUTPUT_TOKENS_MAX = 4_096
#: the largest `max_gen_len` of a Llama's own body (Bedrock user guide, Meta Llama model parameters)
LLAMA_TOKENS_MAX = 2_048
#: three letters, so four bytes with the blank, and one token for most tokenizers
_WORDS = tuple(a + b + c for a in "bdgmp" for b in "aeiou" for c in "nrtx")
_BYTES_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """One request to send, everything but its text, which is made when it is sent."""

    #: seconds after the start of the run
    due_s: float
    #: which of the run's tenants sends it, from 0
    tenant: int
    model: str
    operation: Operation
    #: what the text is made from: equal seeds make equal texts
    seed: str
    input_tokens: int
    output_tokens: int
    #: the trace asked for a longer answer than the model gives
    cut: bool = False

    @property
    def text(self) -> str:
        """A text of about `input_tokens` tokens at four bytes each.

        It holds the simulator's directive for the length of the answer, which is mere text to any
        other model.
        """
        head = f"{self.seed} [[tokens={self.output_tokens}]] "
        head += "." * (-len(head) % _BYTES_PER_TOKEN)
        words = max(0, self.input_tokens - len(head) // _BYTES_PER_TOKEN)
        return head + " ".join(random.Random(self.seed).choices(_WORDS, k=words))


def shapes(
    rows: Sequence[Row], *, run: str, tenants: int, models: Sequence[str], speed: float
) -> Iterator[Shape]:
    """One shape per row, in the order of time; `speed` is trace seconds per second.

    A client of the trace always belongs to the same tenant; where the trace names none, rows go to
    the tenants in turn. The trace's models are mapped onto `models` in the order in which they
    appear; where it names none, every model meets every operation. Rows with the same prompt id
    are identical in everything that a cache looks at: the first of them decides.
    """
    clients: dict[str, int] = {}
    named: dict[str, str] = {}
    prompts: dict[str, Shape] = {}
    for place, row in enumerate(rows):
        tenant = clients.setdefault(row.client, len(clients)) if row.client else place
        model = models[place // len(OPERATIONS) % len(models)]
        if row.model:
            model = named.setdefault(row.model, models[len(named) % len(models)])
        operation = OPERATIONS[place % len(OPERATIONS)]
        wanted, most = max(1, row.output_tokens), _most(model, operation)
        shape = Shape(
            due_s=row.at_s / speed,
            tenant=tenant % tenants,
            model=model,
            operation=operation,
            seed=f"replay {run} prompt {row.prompt_id}" if row.prompt_id else f"replay {run} request {place}",
            input_tokens=row.input_tokens,
            output_tokens=min(wanted, most),
            cut=wanted > most,
        )
        if row.prompt_id:
            first = prompts.setdefault(row.prompt_id, shape)
            shape = Shape(
                shape.due_s, shape.tenant, first.model, first.operation, first.seed, first.input_tokens,
                first.output_tokens, first.cut,
            )  # fmt: skip
        yield shape


def _most(model: str, operation: Operation) -> int:
    native = operation.startswith("invoke")
    return LLAMA_TOKENS_MAX if native and "meta.llama" in model else OUTPUT_TOKENS_MAX
