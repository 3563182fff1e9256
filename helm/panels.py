"""Grafana's dashboard JSON from a few typed values. Plain dictionaries: no library of Grafana's is needed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

Json = dict[str, Any]
Kind = Literal["timeseries", "stat", "bargauge", "table"]

#: Grafana's grid is 24 columns wide
COLUMNS = 24
DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
_METRIC = re.compile(r"\btollhouse_[a-z0-9_]+")
_HEIGHTS: dict[Kind, int] = {"stat": 4, "timeseries": 8, "bargauge": 8, "table": 8}
SCHEMA_VERSION = 39


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    expr: str
    #: Grafana's legend, such as "{{model}}"
    legend: str = ""
    #: also show the calls that its series name as exemplars
    exemplars: bool = False

    @property
    def metrics(self) -> set[str]:
        """Names of the series it reads."""
        return set(_METRIC.findall(self.expr))


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    title: str
    #: what it shows and how to read it
    about: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Kind = "timeseries"
    width: int = 12
    #: value from which it is shown in red; None for no such value
    red_from: float | None = None
    #: value below which it is shown in red, for what must not run out; instead of `red_from`
    red_below: float | None = None
    #: name of a file in docs/runbooks, without .md
    runbook: str = ""
    stacked: bool = False
    decimals: int | None = None
    maximum: float | None = None

    @property
    def metrics(self) -> set[str]:
        return {name for query in self.queries for name in query.metrics}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A drop-down filled from a label's values; "All" also matches series without the label."""

    name: str
    label: str
    metric: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    uid: str
    title: str
    about: str
    panels: tuple[Panel, ...]
    variables: tuple[Variable, ...] = ()
    #: uid and title of the others, for the links at the top
    others: tuple[tuple[str, str], ...] = field(default=())


def dashboard(spec: Dashboard) -> Json:
    """The JSON that Grafana imports. A panel's id is its place, which alerts link to: add at the end."""
    return {
        "uid": spec.uid,
        "title": spec.title,
        "description": spec.about,
        "tags": ["tollhouse"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "",
        "templating": {"list": [_datasource(), *map(_variable, spec.variables)]},
        "links": [_link(uid, title) for uid, title in spec.others if uid != spec.uid],
        "panels": _placed(spec.panels),
        "annotations": {"list": []},
        "version": 1,
    }


def _placed(panels: tuple[Panel, ...]) -> list[Json]:
    """Rows filled from the left; a panel that does not fit begins the next row."""
    out, x, y, row = [], 0, 0, 0
    for number, panel in enumerate(panels, 1):
        height = _HEIGHTS[panel.kind]
        if x + panel.width > COLUMNS or (row and row != height):
            x, y, row = 0, y + row, 0
        out.append(_panel(panel, number) | {"gridPos": {"x": x, "y": y, "w": panel.width, "h": height}})
        x, row = x + panel.width, height
    return out


def _panel(panel: Panel, number: int) -> Json:
    instant = panel.kind in {"bargauge", "table"}
    targets = [
        {
            "refId": chr(ord("A") + at),
            "datasource": DATASOURCE,
            "expr": query.expr,
            "legendFormat": query.legend or "__auto",
            "instant": instant,
            "range": not instant,
            **({"format": "table"} if panel.kind == "table" else {}),
            **({"exemplar": True} if query.exemplars else {}),
        }
        for at, query in enumerate(panel.queries)
    ]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": DATASOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel),
        **({"links": [_runbook(panel.runbook)]} if panel.runbook else {}),
        **({"transformations": [_readable_table()]} if panel.kind == "table" else {}),
    }


def _defaults(panel: Panel) -> Json:
    steps: list[Json] = [{"color": "green", "value": None}]
    if panel.red_from is not None:
        steps.append({"color": "red", "value": panel.red_from})
    if panel.red_below is not None:
        steps = [{"color": "red", "value": None}, {"color": "green", "value": panel.red_below}]
    custom: Json = {}
    if panel.kind == "timeseries":
        custom = {"lineWidth": 1, "fillOpacity": 25 if panel.stacked else 5, "showPoints": "never"}
        custom["stacking"] = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        if panel.red_from is not None or panel.red_below is not None:
            custom["thresholdsStyle"] = {"mode": "line"}
    found: Json = {
        "unit": panel.unit,
        "min": 0,
        "thresholds": {"mode": "absolute", "steps": steps},
        "custom": custom,
        "noValue": "none",
    }
    if panel.decimals is not None:
        found["decimals"] = panel.decimals
    if panel.maximum is not None:
        found["max"] = panel.maximum
    return found


def _options(panel: Panel) -> Json:
    if panel.kind == "timeseries":
        legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
        return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    if panel.kind == "table":
        return {"showHeader": True, "cellHeight": "sm"}
    reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    if panel.kind == "bargauge":
        return {
            "displayMode": "basic",
            "orientation": "horizontal",
            "reduceOptions": reduce,
            "showUnfilled": True,
        }
    return {"colorMode": "value", "graphMode": "area", "reduceOptions": reduce, "textMode": "auto"}


def _readable_table() -> Json:
    hidden = {"Time": True, "__name__": True, "instance": True, "job": True, "namespace": True, "pod": True}
    return {"id": "organize", "options": {"excludeByName": hidden, "indexByName": {}, "renameByName": {}}}


def _datasource() -> Json:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "hide": 0,
        "refresh": 1,
        "regex": "",
        "options": [],
    }


def _variable(variable: Variable) -> Json:
    query = f"label_values({variable.metric}, {variable.name})"
    return {
        "name": variable.name,
        "label": variable.label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": "Variable"},
        "definition": query,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "regex": "",
        "options": [],
    }


def _link(uid: str, title: str) -> Json:
    return {
        "title": title.removeprefix("Tollhouse / "),
        "type": "link",
        "url": f"/d/{uid}",
        "keepTime": True,
        "includeVars": False,
        "targetBlank": False,
        "icon": "dashboard",
        "tags": [],
        "asDropdown": False,
        "tooltip": "",
    }


def _runbook(name: str) -> Json:
    """The chart puts the address of the runbooks where RUNBOOKS stands."""
    return {"title": f"Runbook: {name}", "url": f"RUNBOOKS/{name}.md", "targetBlank": True}
