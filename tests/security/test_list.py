"""docs/security.md keeps its word: every line of the list names tests, and every test it names exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from proxy.keys import TOKEN_PATTERN, Keyring

REPOSITORY = Path(__file__).parents[2]
LINES = 55
_ROW = re.compile(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
_TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def rows() -> dict[int, str]:
    text = (REPOSITORY / "docs" / "security.md").read_text()
    return {int(number): tests for number, _, tests in _ROW.findall(text)}


@cache
def names_in(path: str) -> frozenset[str]:
    tree = ast.parse((REPOSITORY / path).read_text())
    return frozenset(
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def test_every_line_is_there_once() -> None:
    assert list(rows()) == list(range(1, LINES + 1))


@pytest.mark.parametrize("number", range(1, LINES + 1))
def test_a_line_names_tests_that_exist(number: int) -> None:
    named = _TEST.findall(rows()[number])
    assert named
    for path, name in named:
        assert name in names_in(path), f"{path} has no {name}"


def test_every_test_that_the_page_names_exists() -> None:
    for path, name in _TEST.findall((REPOSITORY / "docs" / "security.md").read_text()):
        assert (REPOSITORY / path).is_file()
        assert not name or name in names_in(path), f"{path} has no {name}"


def test_scanners_are_told_the_truth() -> None:
    text = (REPOSITORY / "SECURITY.md").read_text()
    patterns = re.findall(r"\| `(\\b[^`]+)` \|", text)
    keyring = Keyring(b"k" * 32)
    said = (keyring.mint_bearer().token, keyring.mint_admin().token, keyring.mint_access_key().id)
    assert len(patterns) == len(said)
    for pattern, secret in zip(patterns, said, strict=True):
        assert re.fullmatch(pattern, secret)
    assert all(re.fullmatch(TOKEN_PATTERN, secret) for secret in said[:2])
