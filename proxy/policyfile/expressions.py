"""Conditions of rules: CEL, the Common Expression Language, typed when it is compiled.

The only module that knows the library. A condition sees the variables below and nothing else; it has no
loops but over its own lists, and its regular expressions run in linear time. Its language:
https://github.com/google/cel-spec.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

#: longest condition, characters
MAX_LENGTH = 2_000
#: variable -> (type in CEL, what it is)
VARIABLES: Mapping[str, tuple[str, str]] = {
    "request.model": ("STRING", "base model id that the request resolves to"),
    "request.name": ("STRING", "the model name as the client wrote it"),
    "request.family": ("STRING", "family of the model, such as llama or anthropic"),
    "request.operation": ("STRING", "such as Converse or ChatCompletions"),
    "request.output_limit": ("INT", "output tokens of one choice, defaults applied"),
    "request.input_bytes": ("INT", "size of the body"),
    "request.stream": ("BOOL", "a streamed answer is asked for"),
    "request.tools": ("BOOL", "the request names tools"),
    "request.tier": ("STRING", "service tier asked for"),
    "request.latency": ("STRING", "standard or optimized"),
    "request.guardrail": ("STRING", "guardrail that the request names, empty for none"),
    "request.tags": ("TAGS", "request metadata, a map of strings"),
    "tenant": ("STRING", "slug of the tenant"),
    "project": ("STRING", "slug of the project, empty for none"),
    "key": ("STRING", "id of the key"),
    "key.name": ("STRING", "name of the key"),
    "plan": ("STRING", "plan of the tenant"),
    "budget.used": ("DOUBLE", "largest spent share of the budgets that apply, 0.0 to 1.0 and above"),
    "time": ("TIMESTAMP", "now"),
}
_PLACE = re.compile(r"<input>:(\d+):(\d+): (.*)")


class ConditionError(ValueError):
    """A condition that cannot be compiled, or has no answer. `line` and `column` count from 1."""

    def __init__(self, message: str, line: int = 1, column: int = 1) -> None:
        super().__init__(message)
        self.line, self.column = line, column


class Condition:
    """A compiled condition. Calling it takes a few microseconds and no I/O."""

    __slots__ = ("_compiled", "_error", "_library", "reads", "text")

    def __init__(self, text: str) -> None:
        """Raises `ConditionError`."""
        if len(text) > MAX_LENGTH:
            raise ConditionError(f"longer than {MAX_LENGTH:,} characters")
        self._library, environment = _environment()
        try:
            self._compiled = environment.compile(text)
        except RuntimeError as error:
            raise _told(str(error)) from None
        if self._compiled.return_type() != self._library.Type.BOOL:
            raise ConditionError(
                f"a condition is true or false; this is {self._compiled.return_type().name()}"
            )
        self._error = self._library.Type.ERROR
        self.text = text
        squeezed = "".join(text.split())
        self.reads = frozenset(name for name in VARIABLES if name in squeezed)

    def __call__(self, values: Mapping[str, Any]) -> bool:
        """Raises `ConditionError` when there is no answer: a division by zero, a missing tag or variable."""
        result = self._compiled.eval(data=values)
        if result.type() == self._error:
            raise ConditionError(str(result.value())[:200])
        return result.value() is True


@cache
def _environment() -> tuple[Any, Any]:
    """The library and what conditions may name. Loaded when the first rule is read."""
    try:
        from cel_expr_python import cel  # noqa: PLC0415 (15 MB that deployments without rules never load)
    except ImportError:
        raise ConditionError("rules need the package cel-expr-python") from None
    kinds = {name: getattr(cel.Type, name) for name in ("STRING", "INT", "BOOL", "DOUBLE", "TIMESTAMP")}
    kinds["TAGS"] = cel.Type.Map(cel.Type.STRING, cel.Type.STRING)
    return cel, cel.NewEnv(variables={name: kinds[kind] for name, (kind, _) in VARIABLES.items()})


def _told(message: str) -> ConditionError:
    found = _PLACE.search(message)
    if found is None:
        return ConditionError(message.splitlines()[0][:300])
    return ConditionError(found[3][:300], int(found[1]), int(found[2]) + 1)
