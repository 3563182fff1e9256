"""The control plane's REST: `/admin/v1` for administrators, `/me` for issued keys.

A controller names routes and shapes; its desk does the work, in one transaction that ends with an
audit record; `proxy.postgres` knows the tables. Nothing here is on the path of a call.
"""

from __future__ import annotations

from proxy.web.admin.routing import (
    AdminDeps,
    admin_routes,
    check_settings,
    on_error,
    openapi_document,
    problems_or,
)

__all__ = ["AdminDeps", "admin_routes", "check_settings", "on_error", "openapi_document", "problems_or"]
