"""The OpenAPI 3.1 document of the control plane, made from the routes and told with our errors."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Litestar, Router
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Components, SecurityScheme

from proxy import __version__
from proxy.web.admin.problems import MEDIA_TYPE
from proxy.web.schemas import In, ProblemOut

_REF = "#/components/schemas/{name}"
_ABOUT = (
    "Tenants, keys, limits, budgets and the ledger. Money is decimal strings in USD, times are RFC 3339 in "
    "UTC. Fields and parameters that are not listed are refused."
)
_KEY = SecurityScheme(
    type="http", scheme="bearer", description="an admin key; under /me an issued key, or its signature"
)


def document(*routers: Router) -> dict[str, Any]:
    """Takes a good part of a second, so that it is made once."""
    config = OpenAPIConfig(
        title="Tollhouse admin",
        version=__version__,
        description=_ABOUT,
        components=Components(security_schemes={"key": _KEY}),
        security=[{"key": []}],
    )
    made: dict[str, Any] = Litestar(
        route_handlers=list(routers), openapi_config=config
    ).openapi_schema.to_schema()
    schemas = made["components"]["schemas"]
    for name in [name for name in schemas if name.startswith("Page_")]:
        schemas[_page(name)] = schemas.pop(name) | {"title": _page(name)}
    # msgspec reads the bodies, so it knows best what they may be: what is refused, items of lists included
    bodies = [body for body in In.__subclasses__() if body.__name__ in schemas]
    _, ours = msgspec.json.schema_components([ProblemOut, *bodies], ref_template=_REF)
    schemas.update(ours)
    result: dict[str, Any] = _renamed(made)
    for operations in result["paths"].values():
        for method, operation in operations.items():
            _tell_errors(operation["responses"])
            _tell_files(operation)
            if "requestBody" in operation:
                _tell_body(operation, method, result["components"]["schemas"])
    return result


def _page(name: str) -> str:
    """`Page_proxy.web.schemas.KeyOut_` is an accident of generics; `KeyPage` is a name."""
    return name.rstrip("_").rsplit(".", 1)[-1].removesuffix("Out") + "Page"


def _renamed(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _reference(value) if key == "$ref" else _renamed(value) for key, value in node.items()}
    return [_renamed(item) for item in node] if isinstance(node, list) else node


def _reference(target: str) -> str:
    head, _, name = target.rpartition("/")
    return f"{head}/{_page(name)}" if name.startswith("Page_") else target


def _tell_files(operation: dict[str, Any]) -> None:
    """Whatever takes a `format` answers with files too."""
    if any(parameter["name"] == "format" for parameter in operation.get("parameters", [])):
        operation["responses"]["200"]["content"]["text/csv"] = {"schema": {"type": "string"}}


def _tell_body(operation: dict[str, Any], method: str, schemas: dict[str, Any]) -> None:
    """An absent body is `{}`; a change names something."""
    body = operation["requestBody"]
    schema = schemas[body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]]
    body["required"] = bool(schema.get("required")) or method == "patch"
    if method == "patch":
        schema["minProperties"] = 1


def _tell_errors(responses: dict[str, Any]) -> None:
    for status in [status for status in responses if status >= "400"]:
        del responses[status]
    body = {MEDIA_TYPE: {"schema": {"$ref": _REF.format(name="ProblemOut")}}}
    responses["default"] = {"description": "a problem (RFC 9457)", "content": body}
