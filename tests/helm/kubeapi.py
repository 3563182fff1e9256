"""A stand-in for a Kubernetes API server: enough of it for helm to install, upgrade, roll back and uninstall.

It is no cluster: it runs no pods, and a Job is complete as soon as it is made. It keeps objects, remembers
the order of writes, and refuses changes of fields that a real server refuses to change.
"""

from __future__ import annotations

import contextlib
import json
import re
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]

#: group and version -> plural -> kind
RESOURCES: dict[str, dict[str, str]] = {
    "v1": {
        "namespaces": "Namespace", "services": "Service", "serviceaccounts": "ServiceAccount", "pods": "Pod",
        "configmaps": "ConfigMap", "secrets": "Secret",
    },
    "apps/v1": {"deployments": "Deployment"},
    "batch/v1": {"jobs": "Job"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy", "ingresses": "Ingress"},
    "autoscaling/v2": {"horizontalpodautoscalers": "HorizontalPodAutoscaler"},
    "monitoring.coreos.com/v1": {
        "servicemonitors": "ServiceMonitor", "podmonitors": "PodMonitor", "prometheusrules": "PrometheusRule",
    },
    "gateway.networking.k8s.io/v1": {"httproutes": "HTTPRoute"},
}  # fmt: skip
_PATH = re.compile(
    r"/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+/[^/]+))/namespaces/[^/]+/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+))?"
)
#: until a client asks again
_WATCH_SECONDS = 1.0
_UNCHANGING = {
    "Deployment": ("selector",),
    "Job": ("selector", "template", "completions"),
    "Service": ("clusterIP",),
}


class Api:
    """What the server holds: `objects` by (kind, name), `writes` as "METHOD Kind/name" in their order."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Object] = {}
        self.writes: list[str] = []
        self.url = ""
        self._lock = threading.Lock()
        self._version = 0

    def find(self, kind: str, name: str) -> Object:
        return self.objects[kind, name]

    def stored(self, kind: str, name: str, made: Object) -> Object:
        """Keep it, with what a server and its controllers would add."""
        with self._lock:
            self._version += 1
            made["metadata"] |= {"uid": f"{kind}-{name}", "resourceVersion": str(self._version)}
            made["metadata"].setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
            if kind == "Job":
                done = {"type": "Complete", "status": "True"}
                made["status"] = {"succeeded": 1, "conditions": [done]}
            self.objects[kind, name] = made
        return made


def _merged(old: Any, patch: Any) -> Any:
    """A strategic merge, as far as charts need it: lists of named things merge by name, others are replaced."""
    if isinstance(old, dict) and isinstance(patch, dict):
        out = dict(old)
        for key, value in patch.items():
            if key.startswith("$"):
                continue
            if value is None:
                out.pop(key, None)
            else:
                out[key] = _merged(out.get(key), value)
        return out
    if (
        isinstance(old, list)
        and isinstance(patch, list)
        and all(isinstance(x, dict) and "name" in x for x in old + patch)
    ):
        named = {x["name"]: x for x in old}
        for x in patch:
            if x.get("$patch") == "delete":
                named.pop(x["name"], None)
            else:
                named[x["name"]] = _merged(named.get(x["name"]), x)
        return list(named.values())
    return patch


def _place(version: str) -> str:
    return f"apis/{version}" if "/" in version else f"api/{version}"


def _described(place: str) -> Object:
    """That objects of this version may be sent with `fieldValidation`: helm then leaves validation to the server."""
    group, _, version = place.partition("/")[2].rpartition("/")
    paths = {}
    for plural, kind in RESOURCES[place.partition("/")[2]].items():
        patch = {
            "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}],
            "responses": {},
            "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
        }
        paths[f"/{place}/namespaces/{{namespace}}/{plural}/{{name}}"] = {"patch": patch}
    return {"openapi": "3.0.0", "info": {"title": "stand-in", "version": "1"}, "paths": paths}


class _Handler(BaseHTTPRequestHandler):
    api: ClassVar[Api]
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet, or each answer waits for the client's acknowledgement

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, body: Object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _no(self, code: int, reason: str, message: str) -> None:
        self._answer(
            code,
            {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "code": code,
                "reason": reason,
                "message": message,
            },
        )

    def _body(self) -> Object:
        found: Object = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        return found

    def _target(self) -> tuple[str, str, str] | None:
        """(API version, kind, name or "") of the path."""
        found = _PATH.fullmatch(urlsplit(self.path).path)
        if found is None:
            return None
        version = found["core"] or found["group"]
        kind = RESOURCES.get(version, {}).get(found["plural"])
        return None if kind is None else (version, kind, found["name"] or "")

    def do_GET(self) -> None:
        target, path = self._target(), urlsplit(self.path).path
        if target is None:
            self._discovery(path.strip("/"))
        elif target[2]:
            held = self.api.objects.get(target[1:])
            self._answer(200, held) if held else self._no(
                404, "NotFound", f"{target[1]} {target[2]} not found"
            )
        else:
            self._list(*target[:2])

    def _list(self, version: str, kind: str) -> None:
        query = parse_qs(urlsplit(self.path).query)
        only = re.search(r"metadata\.name=([^,]+)", query.get("fieldSelector", [""])[0])
        items = [
            o for (k, name), o in self.api.objects.items() if k == kind and (only is None or only[1] == name)
        ]
        if query.get("watch"):
            self._watch(version, kind, items, initial=query.get("sendInitialEvents") == ["true"])
            return
        self._answer(
            200,
            {
                "kind": f"{kind}List",
                "apiVersion": version,
                "metadata": {"resourceVersion": "1"},
                "items": items,
            },
        )

    def _watch(self, version: str, kind: str, items: list[Object], *, initial: bool) -> None:
        """Nothing changes by itself here: what there is when it is asked for, and then silence for a while."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        events = [{"type": "ADDED", "object": o} for o in items] if initial else []
        if initial:
            marked = {"resourceVersion": "1", "annotations": {"k8s.io/initial-events-end": "true"}}
            events.append(
                {"type": "BOOKMARK", "object": {"kind": kind, "apiVersion": version, "metadata": marked}}
            )
        with contextlib.suppress(OSError):
            self.wfile.write(b"".join(json.dumps(event).encode() + b"\n" for event in events))
            self.wfile.flush()
            select.select([self.connection], [], [], _WATCH_SECONDS)

    def _discovery(self, path: str) -> None:
        groups = [version for version in RESOURCES if "/" in version]
        if path == "version":
            self._answer(200, {"major": "1", "minor": "33", "gitVersion": "v1.33.0"})
        elif path == "api":
            self._answer(200, {"kind": "APIVersions", "versions": ["v1"]})
        elif path == "apis":
            named = [{"groupVersion": v, "version": v.partition("/")[2]} for v in groups]
            self._answer(200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": [
                {"name": v["groupVersion"].partition("/")[0], "versions": [v], "preferredVersion": v} for v in named]})  # fmt: skip
        elif (version := path.partition("/")[2]) in RESOURCES:
            self._answer(200, {"kind": "APIResourceList", "groupVersion": version, "resources": [
                {"name": plural, "kind": kind, "namespaced": plural != "namespaces", "singularName": kind.lower(),
                 "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"]}
                for plural, kind in RESOURCES[version].items()]})  # fmt: skip
        elif path == "openapi/v3":
            paths = {
                _place(version): {"serverRelativeURL": f"/openapi/v3/{_place(version)}"}
                for version in RESOURCES
            }
            self._answer(200, {"paths": paths})
        elif path.startswith("openapi/v3/"):
            self._answer(200, _described(path.removeprefix("openapi/v3/")))
        elif path.startswith("api/v1/namespaces/"):
            self._answer(
                200, {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": path.rpartition("/")[2]}}
            )
        else:
            self._no(404, "NotFound", path)

    def do_POST(self) -> None:
        target, made = self._target(), self._body()
        if target is None:
            self._no(404, "NotFound", self.path)
            return
        name = made["metadata"]["name"]
        if (target[1], name) in self.api.objects:
            self._no(409, "AlreadyExists", f"{target[1]} {name} already exists")
            return
        self.api.writes.append(f"POST {target[1]}/{name}")
        self._answer(201, self.api.stored(target[1], name, made))

    def do_PATCH(self) -> None:
        self._change(merge=True)

    def do_PUT(self) -> None:
        self._change(merge=False)

    def _change(self, *, merge: bool) -> None:
        target, body = self._target(), self._body()
        held = None if target is None else self.api.objects.get(target[1:])
        if target is None or held is None:
            self._no(404, "NotFound", self.path)
            return
        made = _merged(held, body) if merge else body
        for name in _UNCHANGING.get(target[1], ()):
            if held["spec"].get(name) != made["spec"].get(name):
                self._no(422, "Invalid", f"{target[1]} {target[2]}: spec.{name}: field is immutable")
                return
        self.api.writes.append(f"{self.command} {target[1]}/{target[2]}")
        self._answer(200, self.api.stored(target[1], target[2], made))

    def do_DELETE(self) -> None:
        target = self._target()
        self._body()
        held = None if target is None else self.api.objects.pop(target[1:], None)
        if target is None or held is None:
            self._no(404, "NotFound", self.path)
            return
        self.api.writes.append(f"DELETE {target[1]}/{target[2]}")
        self._answer(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})


@contextmanager
def serving() -> Iterator[Api]:
    api = Api()
    handler = type("Handler", (_Handler,), {"api": api})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
