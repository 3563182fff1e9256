"""YAML read strictly: plain data with a line and column on every node, or a problem that has one.

Works on the parser's event stream, so nothing is built before it was checked: anchors, aliases, tags,
second documents, duplicate keys, deep nesting and endless files are refused. Scalars stay strings; the
schema decides what they mean, so `NO` is never False and `1e3` never a number by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 2_000_000
MAX_NODES = 60_000
MAX_DEPTH = 24
MAX_KEY = 256

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """What is wrong with a policy file and where; lines and columns count from 1."""

    path: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}: {self.message}"


class BrokenFileError(Exception):
    """The file cannot be read any further."""

    def __init__(self, line: int, column: int, message: str) -> None:
        super().__init__(message)
        self.line, self.column = line, column


class Scalar:
    """A scalar as written. `plain` is False when it was quoted or a block."""

    __slots__ = ("column", "line", "plain", "value")

    def __init__(self, value: str, line: int, column: int, *, plain: bool) -> None:
        self.value, self.line, self.column, self.plain = value, line, column, plain


class Table:
    """A mapping: its keys are strings, each with the scalar it was written as."""

    __slots__ = ("column", "items", "keys", "line")

    def __init__(self, line: int, column: int) -> None:
        self.line, self.column = line, column
        self.items: dict[str, Node] = {}
        self.keys: dict[str, Scalar] = {}


class Row:
    """A sequence."""

    __slots__ = ("column", "items", "line")

    def __init__(self, line: int, column: int) -> None:
        self.line, self.column = line, column
        self.items: list[Node] = []


Node = Scalar | Table | Row


def read(path: Path, shown: str, problems: list[Problem]) -> Node | None:
    """The document in a file, or None after adding to `problems` why there is none."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        node = parse(raw)
        if node is None:
            problems.append(Problem(shown, 1, 1, "the file is empty"))
        return node
    except BrokenFileError as broken:
        problems.append(Problem(shown, broken.line, broken.column, str(broken)))
    except OSError as error:
        problems.append(Problem(shown, 1, 1, f"cannot be read: {error.strerror}"))
    return None


def parse(raw: bytes) -> Node | None:
    """The document in `raw`, None when it is empty. Raises `BrokenFileError`."""
    if len(raw) > MAX_BYTES:
        raise BrokenFileError(1, 1, f"the file is larger than {MAX_BYTES:,} bytes")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise BrokenFileError(line, 1, "the file is not UTF-8") from None
    try:
        return _document(_events(text))
    except yaml.MarkedYAMLError as error:
        mark: Any = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise BrokenFileError(line, column, f"this is not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        place = text.count("\n", 0, getattr(error, "position", 0) or 0) + 1
        reason = getattr(error, "reason", None) or "unreadable"
        raise BrokenFileError(place, 1, f"this is not YAML: {reason}") from None


def _events(text: str) -> Iterator[Any]:
    loader = _Loader(text)
    try:
        while loader.check_event():
            yield loader.get_event()
    finally:
        loader.dispose()


def _refuse(event: Any) -> None:
    line, column = event.start_mark.line + 1, event.start_mark.column + 1
    if isinstance(event, yaml.AliasEvent):
        raise BrokenFileError(line, column, "aliases are not allowed; write the value out")
    if getattr(event, "anchor", None):
        raise BrokenFileError(line, column, "anchors are not allowed; write the value out where it is used")
    if getattr(event, "tag", None):
        raise BrokenFileError(line, column, f"tags are not allowed: {event.tag[:60]}")


def _document(events: Iterator[Any]) -> Node | None:
    stack: list[Table | Row] = []
    pending: list[Scalar | None] = []  # the key waiting for its value, one per open table
    root: Node | None = None
    documents = nodes = 0
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                start: Any = event.start_mark
                raise BrokenFileError(start.line + 1, 1, "only one document per file")
            continue
        if isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            stack.pop()
            pending.pop()
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        _refuse(event)
        nodes += 1
        node = _node(event)
        if nodes > MAX_NODES:
            raise BrokenFileError(node.line, node.column, f"the file has more than {MAX_NODES:,} values")
        if stack:
            _attach(stack[-1], pending, node)
        else:
            root = node
        if not isinstance(node, Scalar):
            if len(stack) >= MAX_DEPTH:
                raise BrokenFileError(node.line, node.column, f"nested deeper than {MAX_DEPTH} levels")
            stack.append(node)
            pending.append(None)
    return root


def _node(event: Any) -> Node:
    line, column = event.start_mark.line + 1, event.start_mark.column + 1
    if isinstance(event, yaml.ScalarEvent):
        return Scalar(event.value, line, column, plain=bool(event.implicit[0]))
    return Table(line, column) if isinstance(event, yaml.MappingStartEvent) else Row(line, column)


def _attach(parent: Table | Row, pending: list[Scalar | None], node: Node) -> None:
    if isinstance(parent, Row):
        parent.items.append(node)
        return
    key = pending[-1]
    if key is None:
        if not isinstance(node, Scalar):
            raise BrokenFileError(node.line, node.column, "a key must be a word, not a list or a mapping")
        if len(node.value) > MAX_KEY:
            raise BrokenFileError(node.line, node.column, f"a key is longer than {MAX_KEY} characters")
        if node.value in parent.keys:
            first = parent.keys[node.value].line
            raise BrokenFileError(
                node.line, node.column, f"the key {node.value!r} is here twice; it was first on line {first}"
            )
        parent.keys[node.value] = node
        pending[-1] = node
        return
    parent.items[key.value] = node
    pending[-1] = None
