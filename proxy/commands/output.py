"""What a server said, as a table or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

_WIDE = 100


def show(body: Any, *, columns: Sequence[str] = (), as_json: bool = False) -> None:
    """One object as lines of name and value, a list as a table, text as it is."""
    if isinstance(body, str):
        sys.stdout.write(body)
    elif as_json:
        print(json.dumps(body, indent=2, ensure_ascii=False))
    elif isinstance(body, Mapping) and isinstance(body.get("items"), list):
        print(table(body["items"], columns))
        rest = {name: value for name, value in body.items() if name not in {"items", "next"}}
        if rest:
            print(pairs(rest))
    elif isinstance(body, Mapping):
        print(pairs(body))
    elif body is not None:
        print(json.dumps(body, ensure_ascii=False))


def table(items: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """Columns that no item has are left out; without `columns`, those of the items."""
    names = [name for name in columns or _names(items) if any(_has(item, name) for item in items)]
    if not names:
        return "none"
    rows = [[_cell(_value(item, name), _WIDE) for name in names] for item in items]
    numeric = [all(_number(row[place]) for row in rows) for place in range(len(names))]
    widths = [max(len(names[n]), *(len(row[n]) for row in rows)) for n in range(len(names))]
    lines = [names, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def pairs(body: Mapping[str, Any]) -> str:
    width = max((len(name) for name in body), default=0)
    lines = []
    for name, value in body.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            inner = "\n".join(f"  {line}" for line in table(value).splitlines())
            lines.append(f"{name}\n{inner}")
        elif (
            isinstance(value, list)
            and value
            and all(isinstance(one, str) for one in value)
            and len(value) > 1
        ):
            lines += [
                f"{name if place == 0 else '':<{width}}  {_cell(one)}" for place, one in enumerate(value)
            ]
        else:
            lines.append(f"{name:<{width}}  {_cell(value)}".rstrip())
    return "\n".join(lines)


def problem(status: int, body: Any) -> None:
    """To stderr: a sentence, and a line for every field that is wrong."""
    if isinstance(body, Mapping) and "detail" in body:
        print(
            f"{body.get('title', 'refused')} ({status}): {_printable(str(body['detail']))}", file=sys.stderr
        )
        for error in body.get("errors") or []:
            if error.get("message") != body["detail"]:
                print(f"  {error.get('field')}: {_printable(str(error.get('message')))}", file=sys.stderr)
    else:
        print(f"the server answered {status}: {_printable(str(body))[:500]}", file=sys.stderr)


def _names(items: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for item in items for name in item))


def _has(item: Mapping[str, Any], name: str) -> bool:
    return _value(item, name) is not None


def _value(item: Any, name: str) -> Any:
    """`usage.input_tokens` looks into `usage`."""
    for part in name.split("."):
        if not isinstance(item, Mapping):
            return None
        item = item.get(part)
    return item


def _cell(value: Any, widest: int | None = None) -> str:
    if value is None:
        text = ""
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, list) and all(isinstance(one, str | int) for one in value):
        text = ", ".join(map(str, value))
    elif isinstance(value, Mapping | list):
        text = json.dumps(value, ensure_ascii=False)
    else:
        text = str(value)
    text = _printable(text)
    return text if widest is None or len(text) <= widest else f"{text[: widest - 1]}…"


def _printable(text: str) -> str:
    """Names come from other people: nothing in them may steer the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _number(text: str) -> bool:
    return text == "" or text.removeprefix("-").replace(".", "", 1).isdigit()
