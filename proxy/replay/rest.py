"""Plain JSON over HTTP: the admin REST of the proxy, and the simulator's account."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from proxy.errors import ConfigurationError

_SECONDS = 60.0
_PAGE = 200


class Rest:
    """One kept-alive connection; not for use by several threads at once."""

    def __init__(self, url: str, key: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigurationError(f"{url!r} is no http or https address")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname, parts.port, timeout=_SECONDS)
        self._url = url.rstrip("/")
        self._base = parts.path.rstrip("/")
        self._headers = {"Accept": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, Any]:
        """Status and JSON answer (None if it is not JSON). Raises `ConfigurationError` when the
        server cannot be reached; a reading is tried once more on a fresh connection, a change never.
        """
        for last in (method != "GET", True):
            try:
                return self._once(method, path, body)
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                if last:
                    raise ConfigurationError(f"{self._url} cannot be reached: {error!r}") from None
        raise AssertionError("the second try raises or returns")

    def _once(self, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[int, Any]:
        headers = dict(self._headers)
        if body is not None:
            headers["Content-Type"] = "application/json"
        sent = None if body is None else json.dumps(body)
        self._connection.request(method, self._base + path, sent, headers)
        response = self._connection.getresponse()
        data = response.read()
        try:
            return response.status, json.loads(data)
        except ValueError:
            return response.status, None

    def want(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The answer of a call that must succeed. Raises `ConfigurationError` with the server's reason."""
        status, answer = self.ask(method, path, body)
        if not 200 <= status < 300:
            detail = answer.get("detail") or answer.get("message") if isinstance(answer, dict) else None
            raise ConfigurationError(f"{method} {self._url}{path}: {status} {detail or ''}".rstrip())
        return answer

    def every(self, path: str, **query: str) -> Iterator[dict[str, Any]]:
        """The items of all pages of a list."""
        asked = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
        cursor = ""
        while True:
            page = self.want("GET", f"{path}?limit={_PAGE}&{asked}{cursor}")
            yield from page["items"]
            if not page.get("next"):
                return
            cursor = f"&cursor={quote(str(page['next']), safe='')}"

    def close(self) -> None:
        self._connection.close()
