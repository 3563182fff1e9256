"""Writes a folder of policies as values of the chart, after checking it.

python helm/policyvalues.py policies > policies.values.yaml
helm upgrade ... --values policies.values.yaml
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from proxy import policyfile

#: what a ConfigMap can hold, with room for its metadata
MOST_BYTES = 1_000_000


def values(folder: Path) -> dict[str, dict[str, dict[str, str]]]:
    """The values `policies.files` for a folder without errors. Raises `ValueError` naming every error."""
    problems = policyfile.check(folder)
    if problems:
        raise ValueError("\n".join(map(str, problems)))
    files = {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(folder.glob("*/*"))
        if path.suffix in {".yaml", ".yml"} and not path.name.startswith(".")
    }
    size = sum(len(text.encode()) for text in files.values())
    if size > MOST_BYTES:
        raise ValueError(f"{folder} has {size} bytes; a ConfigMap holds {MOST_BYTES}")
    return {"policies": {"files": files}}


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(yaml.safe_dump(values(Path(arguments[0])), sort_keys=True, allow_unicode=True), end="")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
