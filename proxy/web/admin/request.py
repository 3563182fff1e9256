"""Request bodies of the admin REST, decoded strictly: `"60"` is no number, `1` is no string."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from litestar import Request
from litestar.datastructures import State

from proxy.web.admin.problems import Problem, from_validation

T = TypeVar("T")

BODY_BYTES_MAX = 262_144


class StrictRequest(Request[Any, Any, State]):
    """Litestar asks `json` for the handler's `data`; it gets the typed value, or raises a 400.

    An absent body counts as `{}`.
    """

    async def body(self) -> bytes:
        return await super().body() or b"{}"

    async def json(self) -> Any:
        field = self.route_handler.parsed_data_field
        kind: Any = Any if field is None else field.annotation
        return decode(await self.body(), kind)


def decode(body: bytes, kind: type[T]) -> T:
    """One JSON document as `kind`. Raises a 400 `Problem`."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise from_validation(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(400, "invalid", f"the body is not JSON: {str(error)[:200]}") from None
    except RecursionError:
        raise Problem(400, "invalid", "the body is nested too deeply") from None
