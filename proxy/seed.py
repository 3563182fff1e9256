"""The demo tenant of `tollhouse run`: one tenant on plan `default`, one key whose secrets a file keeps.

Made over the admin REST, like any other tenant.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from proxy.adminclient import Access
from proxy.errors import ConfigurationError

TENANT = "demo"
_CONFLICT = 409


@dataclass(frozen=True, slots=True)
class DemoKey:
    """The demo key with its secrets, which only the file keeps."""

    id: str
    bearer_token: str
    aws_access_key_id: str
    aws_secret_access_key: str


def seed_demo(access: Access, path: Path) -> DemoKey:
    """The kept key when it is still good on this server, else a new one. Raises `ConfigurationError`."""
    status, answer = access.post("/admin/v1/tenants", {"id": TENANT, "name": "Demo"})
    if status not in {201, _CONFLICT}:
        raise ConfigurationError(f"the demo tenant was refused: {answer}")
    if path.is_file():
        kept = DemoKey(**json.loads(path.read_text(encoding="utf-8")))
        status, answer = access.get(f"/admin/v1/keys/{kept.id}")
        if status == 200 and answer["status"] == "active":
            return kept
    status, answer = access.post("/admin/v1/keys", {"tenant": TENANT, "name": "demo"})
    if status != 201:
        raise ConfigurationError(f"the demo key was refused: {answer}")
    demo = DemoKey(
        answer["id"], answer["bearer_token"], answer["aws_access_key_id"], answer["aws_secret_access_key"]
    )
    write_private(path, json.dumps(asdict(demo)))
    return demo


def write_private(path: Path, text: str) -> None:
    """Write a file of mode 600 as a whole or not at all."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(temporary).replace(path)
