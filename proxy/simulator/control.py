"""The paths that begin with an underscore: what a test or an operator tells the simulator and asks of it."""

from typing import Any
from urllib.parse import parse_qs

import orjson

from proxy.simulator.config import Quota
from proxy.simulator.delivery import Delivery
from proxy.simulator.runtime import Runtime
from proxy.simulator.transport import Out, Request

JSON = "application/json"


class Control:
    def __init__(self, runtime: Runtime, delivery: Delivery) -> None:
        self._runtime = runtime
        self._delivery = delivery

    def answer(self, request: Request, out: Out) -> None:
        status = 200
        try:
            answer = self._act(request.method, request.path, request.query, request.body)
            if answer is None:
                status, answer = 404, {"message": f"{request.method} {request.path} is not known"}
        except (ValueError, TypeError) as error:
            status, answer = 400, {"message": str(error)}
        out.whole(status, [("Content-Type", JSON)], orjson.dumps(answer))

    def _act(self, method: str, path: str, query: str, body: bytes) -> Any:
        """None for a path that does not exist. Raises ValueError or TypeError for what makes no sense."""
        account, faults = self._runtime.account, self._runtime.faults
        since = _number(query, "since")
        match method, path:
            case "GET", "/_health":
                return {"status": "ok"}
            case "GET", "/_bill":
                if _number(query, "summary"):
                    return account.summary()
                return account.bill(since, _number(query, "refused_since"))
            case "DELETE", "/_bill":
                account.clear_bill()
                return account.summary()
            case "GET", "/_requests":
                return {
                    "requests": [seen.item() for seen in list(account.seen)[since:]],
                    "next": len(account.seen),
                }
            case "DELETE", "/_requests":
                account.seen.clear()
                return {"requests": [], "next": 0}
            case "GET", "/_log":
                return {"records": account.invocation_log(since), "next": len(account.calls)}
            case "GET", "/_barrier":
                return {"hold": self._delivery.barrier.held, "waiting": self._delivery.barrier.waiting}
            case "POST", "/_barrier":
                self._delivery.barrier.hold(hold=_object(body).get("hold") is True)
                return {"hold": self._delivery.barrier.held, "waiting": self._delivery.barrier.waiting}
            case "GET", "/_control":
                return {"rules": faults.listed()}
            case "POST", "/_control":
                return self._add_rules(orjson.loads(body))
            case "DELETE", "/_control":
                faults.reset()
                self._runtime.cache.clear()
                self._runtime.quotas.reset()
                return {"rules": []}
            case "POST", "/_catalog":
                self._runtime.catalog.add(_object(body))
                return {"arns": list(self._runtime.catalog.entries)}
            case "POST", "/_quotas":
                self._runtime.quotas.quotas = {name: Quota(**quota) for name, quota in _object(body).items()}
                return {"models": list(self._runtime.quotas.quotas)}
        return None

    def _add_rules(self, rules: Any) -> Any:
        for rule in rules if isinstance(rules, list) else [rules]:
            self._runtime.faults.add(rule)
        return {"rules": self._runtime.faults.listed()}


def _number(query: str, name: str) -> int:
    values = parse_qs(query).get(name, ["0"])
    return int(values[-1])


def _object(body: bytes) -> dict[str, Any]:
    parsed = orjson.loads(body)
    if not isinstance(parsed, dict):
        raise TypeError("a JSON object is expected")
    return parsed
