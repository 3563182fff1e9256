"""The admin REST from the command line: where the server is, and plain JSON calls."""

from __future__ import annotations

import http.client
import json
import ssl
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from proxy.errors import ConfigurationError
from proxy.settings import client_environment

_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Access:
    """A running Tollhouse and a key: an admin key from the environment or `.run/admin.env`, or an issued one."""

    url: str
    key: str
    simulator_url: str | None
    #: whom an https server may be signed by; None for those the system trusts
    context: ssl.SSLContext | None = None

    @classmethod
    def find(cls) -> Access:
        """Raises `ConfigurationError` when neither names a server."""
        return cls._named("TOLLHOUSE_ADMIN_KEY", ".run/admin.env")

    @classmethod
    def of_issued_key(cls) -> Access:
        """As `find`, with an issued key: from the environment, else from `.run/client.env`."""
        return cls._named("TOLLHOUSE_API_KEY", ".run/client.env")

    @classmethod
    def _named(cls, secret: str, file: str) -> Access:
        named = client_environment()
        if not named.get("TOLLHOUSE_URL") or not named.get(secret):
            named = _from_file(Path(file)) | {k: v for k, v in named.items() if v}
        url, key = named.get("TOLLHOUSE_URL"), named.get(secret)
        if not url or not key:
            raise ConfigurationError(f"no server: set TOLLHOUSE_URL and {secret}, or source {file}")
        ca = named.get("SSL_CERT_FILE")
        context = ssl.create_default_context(cafile=ca) if ca and Path(ca).is_file() else None
        return cls(url, key, named.get("TOLLHOUSE_SIMULATOR_URL") or None, context)

    def get(self, path: str) -> tuple[int, Any]:
        return self.request("GET", path)

    def post(self, path: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        return self.request("POST", path, body)

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Any]:
        """Status and decoded body. Raises `ConfigurationError` when the server cannot be reached."""
        parts = urlsplit(self.url)
        host = parts.hostname or ""
        connection = http.client.HTTPConnection(host, parts.port, timeout=_SECONDS)
        if parts.scheme == "https":
            connection = http.client.HTTPSConnection(host, parts.port, timeout=_SECONDS, context=self.context)
        sent = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json", **(headers or {})}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), sent)
            response = connection.getresponse()
            data = response.read()
        except OSError as error:
            raise ConfigurationError(f"{self.url} cannot be reached: {error}") from None
        finally:
            connection.close()
        if "json" in (response.getheader("content-type") or ""):
            return response.status, json.loads(data) if data else None
        return response.status, data.decode(errors="replace")


def _from_file(path: Path) -> dict[str, str]:
    import shlex  # noqa: PLC0415 (only when the file is there)

    values: dict[str, str] = {}
    if path.is_file():
        for word in shlex.split(path.read_text(encoding="utf-8"), comments=True):
            name, equals, value = word.partition("=")
            if equals:
                values[name] = value
    return values


def show(answer: tuple[int, Any]) -> int:
    """Print an answer; the exit code says whether it was a success."""
    status, body = answer
    good = 200 <= status < 300
    print(
        json.dumps(body, indent=2) if not isinstance(body, str) else body,
        file=sys.stdout if good else sys.stderr,
    )
    return 0 if good else 1
