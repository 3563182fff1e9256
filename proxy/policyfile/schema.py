"""Typed reading of strict nodes. Every mistake becomes a `Problem`; reading goes on to find them all."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from proxy.domain.rates import NANO
from proxy.policyfile.strict import Node, Problem, Row, Scalar, Table

_DECIMAL = re.compile(r"(0|[1-9][0-9]{0,11})(\.[0-9]+)?")
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,30}")
_GLOB = re.compile(r"[A-Za-z0-9_.:/+*@-]+")
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")
#: an AWS Region; it becomes part of a host name, so nothing else may pass
REGION = re.compile(r"[a-z]{2}(-[a-z]+){1,3}-[0-9]{1,2}")
_NULLS = frozenset({"", "~", "null"})
T = TypeVar("T")
MAX_PROBLEMS = 50
MAX_GLOB = 256
#: so that every amount in nano-dollars fits a BIGINT
MAX_USD = 4_000_000_000
MAX_STARS = 8


class Reader:
    """Reads one file's nodes. A reader method returns None after noting a problem."""

    def __init__(self, path: str, problems: list[Problem]) -> None:
        self.path = path
        self._problems = problems
        self.failures = 0

    def fail(self, node: Node, message: str) -> None:
        """Note a problem. A file with very many is only told about the first."""
        self.failures += 1
        if not message.isprintable():  # libraries repeat what stands in the file
            message = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
        if self.failures <= MAX_PROBLEMS:
            self._problems.append(Problem(self.path, node.line, node.column, message))
        elif self.failures == MAX_PROBLEMS + 1:
            self._problems.append(
                Problem(self.path, node.line, node.column, "there are more errors from here on")
            )

    def hint(self, word: str, known: Iterable[str]) -> str:
        """`; did you mean ...?` when something known is close, else nothing."""
        if self.failures > MAX_PROBLEMS:
            return ""
        names = list(known)
        close = difflib.get_close_matches(word[:128], names, 1, 0.7)
        close = close or [name for name in names if word and name.startswith(word)]
        return f"; did you mean {close[0]!r}?" if close else ""

    def table(self, node: Node | None, known: Iterable[str], required: Iterable[str] = ()) -> Table:
        """A mapping with no other keys than `known`. An empty one after a problem."""
        if not isinstance(node, Table):
            if node is not None:
                self.fail(
                    node, f"a mapping is expected here, with keys such as {', '.join(tuple(known)[:3])}"
                )
            return Table(getattr(node, "line", 1), getattr(node, "column", 1))
        names = set(known)
        for name, key in node.keys.items():
            if name not in names:
                self.fail(key, f"there is no key {name[:60]!r} here{self.hint(name, names)}")
        for name in required:
            if name not in node.items:
                self.fail(node, f"the key {name!r} is missing")
        return node

    def entries(self, node: Node | None) -> Iterator[tuple[Scalar, Node]]:
        """Key and value of a mapping whose keys are names of the file's own."""
        if isinstance(node, Table):
            for name, value in node.items.items():
                yield node.keys[name], value
        elif node is not None and not self.is_null(node):
            self.fail(node, "a mapping is expected here")

    def rows(self, node: Node | None) -> list[Node]:
        if node is None or self.is_null(node):
            return []
        if not isinstance(node, Row):
            self.fail(node, "a list is expected here")
            return []
        return node.items

    def is_null(self, node: Node | None) -> bool:
        return isinstance(node, Scalar) and node.plain and node.value in _NULLS

    def text(self, node: Node | None, longest: int = 1000) -> str | None:
        if node is None:
            return None
        if not isinstance(node, Scalar) or self.is_null(node):
            self.fail(node, "text is expected here")
            return None
        if len(node.value) > longest:
            self.fail(node, f"longer than {longest} characters")
            return None
        if any(ord(c) < 32 and c not in "\n\t" for c in node.value):
            self.fail(node, "control characters are not allowed")
            return None
        return node.value

    def name(self, node: Node | None) -> str | None:
        word = self.text(node, 64)
        if node is not None and word is not None and not _NAME.fullmatch(word):
            self.fail(node, f"{word!r} is no name: small letters, digits and . _ - are allowed")
            return None
        return word

    def integer(self, node: Node | None, least: int = 0, most: int = 2**53) -> int | None:
        if node is None or self.is_null(node):
            return None
        if not isinstance(node, Scalar) or not node.plain or not _INTEGER.fullmatch(node.value):
            self.fail(node, "a whole number is expected here, such as 4096")
            return None
        number = int(node.value)
        if not least <= number <= most:
            self.fail(node, f"{number} is outside {least} to {most}")
            return None
        return number

    def boolean(self, node: Node | None) -> bool | None:
        if node is None:
            return None
        if isinstance(node, Scalar) and node.plain and node.value in {"true", "false"}:
            return node.value == "true"
        shown = node.value[:40] if isinstance(node, Scalar) else "this"
        self.fail(node, f"true or false is expected here, not {shown!r}")
        return None

    def choice(self, node: Node | None, words: Iterable[str]) -> str | None:
        word = self.text(node, 64)
        if word is None or node is None:
            return None
        options = tuple(words)
        if word not in options:
            listed = f"is not one of {', '.join(options)}" if options else "is not listed in this file"
            self.fail(node, f"{word!r} {listed}{self.hint(word, options)}")
            return None
        return word

    def rate(self, node: Node | None, units: int = 1) -> int | None:
        """A quoted decimal in USD, as nano-dollars x `units`; exact, at most nine decimals."""
        if node is None or self.is_null(node):
            return None
        if not isinstance(node, Scalar):
            self.fail(node, 'an amount in USD is expected here, such as "2.40"')
            return None
        if node.plain:
            self.fail(node, f'money is written as a quoted decimal: "{node.value[:40]}"')
            return None
        if not _DECIMAL.fullmatch(node.value):
            self.fail(
                node,
                f"{node.value[:40]!r} is no amount in USD: digits, at most one point, no sign, no exponent",
            )
            return None
        whole, _, decimals = node.value.partition(".")
        if len(decimals) > 9:
            self.fail(
                node, f"{node.value[:40]} has more than nine decimals, which is less than a nano-dollar"
            )
            return None
        if int(whole) >= MAX_USD:
            self.fail(node, f"{node.value[:40]} is more than {MAX_USD:,} USD")
            return None
        return (int(whole) * NANO + int(decimals.ljust(9, "0"))) * units

    def region(self, node: Node | None) -> str | None:
        word = self.text(node, 40)
        if node is not None and word is not None and not REGION.fullmatch(word):
            self.fail(node, f"{word!r} is no Region, such as us-east-1")
            return None
        return word

    def glob(self, node: Node | None) -> str | None:
        """A pattern of model ids or ARNs: `*` is the only wildcard, so that matching stays linear."""
        word = self.text(node, MAX_GLOB)
        if word is None or node is None:
            return None
        if not _GLOB.fullmatch(word):
            self.fail(node, f"{word!r} is no pattern: letters, digits, . : / _ + @ - and * are allowed")
            return None
        if word.count("*") > MAX_STARS:
            self.fail(node, f"more than {MAX_STARS} * in one pattern")
            return None
        return word

    def many(self, node: Node | None, one: Callable[[Node], T | None]) -> tuple[T, ...]:
        return tuple(value for item in self.rows(node) if (value := one(item)) is not None)
