"""The simulator's application: which path is what. Framework-free, the same for HTTP/1.1 and HTTP/2."""

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any
from urllib.parse import unquote

import orjson

from proxy.simulator import guardrails, http2
from proxy.simulator.account import Account, Call, Seen
from proxy.simulator.catalog import Catalog
from proxy.simulator.config import Config
from proxy.simulator.control import Control
from proxy.simulator.controlplane import ControlPlane
from proxy.simulator.converse import Converse
from proxy.simulator.delivery import Delivery, refuse
from proxy.simulator.dialects import Chat, Dialect, Messages, Native
from proxy.simulator.errors import Refusal
from proxy.simulator.families import FAMILIES
from proxy.simulator.faults import Faults
from proxy.simulator.prices import Usage, cost_nanos, load
from proxy.simulator.responses import Responses
from proxy.simulator.runtime import Route, Runtime, parse_body, parse_metadata
from proxy.simulator.transport import Out, Request

JSON = "application/json"
_CONVERSE = Converse()
_CHAT = Chat()
_RESPONSES = Responses()
_MESSAGES = Messages()
_WHOLE = {name: Native(family, stream=False) for name, family in FAMILIES.items()}
_STREAM = {name: Native(family, stream=True) for name, family in FAMILIES.items()}
_COUNTABLE: Mapping[str, Dialect] = {**_WHOLE, "converse": _CONVERSE}
#: Last segment of ``/model/{id}/...`` to operation and whether it streams.
_OPERATIONS = {
    "invoke": ("InvokeModel", False),
    "invoke-with-response-stream": ("InvokeModelWithResponseStream", True),
    "converse": ("Converse", False),
    "converse-stream": ("ConverseStream", True),
}
_BODY_ROUTES: dict[str, tuple[str, Dialect]] = {
    "/openai/v1/chat/completions": ("ChatCompletions", _CHAT),
    "/openai/v1/responses": ("Responses", _RESPONSES),
    "/anthropic/v1/messages": ("Messages", _MESSAGES),
}


class Simulator:
    """Callable as ASGI; :meth:`handle` is the same thing without the protocol."""

    def __init__(self, config: Config) -> None:
        prices = load(config.prices)
        self.config = config
        self.account = Account(config)
        self.catalog = Catalog(config, prices)
        self.faults = Faults()
        self.runtime = Runtime(config, prices, self.catalog, self.account, self.faults)
        self.delivery = Delivery(config, self.account)
        self.control = Control(self.runtime, self.delivery)
        self.plane = ControlPlane(config, self.catalog)
        #: Set by the server: aborts the connection behind an inner HTTP/2 client address.
        self.cut: Callable[[object], None] = lambda _client: None

    async def __call__(
        self,
        scope: Mapping[str, Any],
        receive: Callable[[], Awaitable[Mapping[str, Any]]],
        send: Callable[[Mapping[str, Any]], Awaitable[None]],
    ) -> None:
        if scope["type"] == "http":
            await http2.serve_asgi(self.handle, scope, receive, send, lambda: self.cut(scope.get("client")))

    def handle(self, request: Request, out: Out) -> Coroutine[Any, Any, None] | None:
        """Answers at once, or returns what is left to be awaited."""
        path = request.path
        if path.startswith("/_"):
            self.control.answer(request, out)
            return None
        if request.method == "POST":
            route = self._route(path, request.body)
            if route is not None:
                return self._infer(request, out, route)
        self._other(request, out)
        return None

    def _route(self, path: str, body: bytes) -> Route | None:
        if path.startswith("/model/"):
            name, _, last = path[len("/model/") :].rpartition("/")
            operation = _OPERATIONS.get(last)
            if operation is None or not name:
                return None
            model = unquote(name)
            if operation[0].startswith("Converse"):
                return Route(operation[0], _CONVERSE, operation[1], model)
            dialects = _STREAM if operation[1] else _WHOLE
            return Route(operation[0], dialects[self.catalog.family(model)], operation[1], model)
        found = _BODY_ROUTES.get(path)
        if found is None:
            return None
        return Route(found[0], found[1], stream=_wants_stream(body))

    def _infer(self, request: Request, out: Out, route: Route) -> Coroutine[Any, Any, None] | None:
        seen = self.runtime.arrive(request)
        try:
            plan = self.runtime.plan(request, route, seen)
        except Refusal as refusal:
            self._refuse(out, seen, route.dialect, refusal)
            return None
        return self.delivery.send(plan, out)

    def _refuse(self, out: Out, seen: Seen, dialect: Dialect, refusal: Refusal) -> None:
        self.account.refuse(seen, refusal.name)
        refuse(out, seen, dialect, refusal)

    def _other(self, request: Request, out: Out) -> None:
        """Everything that generates nothing: counting, guardrails, the control plane."""
        seen = self.runtime.arrive(request)
        dialect: Dialect = _MESSAGES if request.path.startswith("/anthropic/") else _CONVERSE
        try:
            answer = self._answer_other(request, seen)
        except Refusal as refusal:
            self._refuse(out, seen, dialect, refusal)
            return
        seen.status = 200
        headers = [("x-amzn-RequestId", seen.request_id), ("Content-Type", JSON)]
        out.whole(200, headers, orjson.dumps(answer))

    def _answer_other(self, request: Request, seen: Seen) -> Any:
        parts = request.path.split("/")
        if request.method == "POST":
            if len(parts) >= 4 and parts[1] == "model" and parts[-1] == "count-tokens":
                route = Route("CountTokens", _CONVERSE, stream=False, model=unquote("/".join(parts[2:-1])))
                return {"inputTokens": self.runtime.count_tokens(request, route, seen, _COUNTABLE)}
            if request.path == "/anthropic/v1/messages/count_tokens":
                return self._count_messages(request, seen)
            if len(parts) == 6 and parts[1] == "guardrail" and parts[3] == "version" and parts[5] == "apply":
                return self._apply_guardrail(request, seen, unquote(parts[2]))
        if request.method == "GET":
            self.runtime.authenticate(request)
            answer = self.plane.answer(request.path, request.query, seen)
            if answer is not None:
                return answer
        raise Refusal("UnknownOperationException")

    def _count_messages(self, request: Request, seen: Seen) -> dict[str, int]:
        seen.operation = "CountMessages"
        region = self.runtime.authenticate(request)
        body = parse_body(request.body)
        model = self.catalog.resolve(str(body.get("model")), region)
        seen.model = model.requested
        ask = _MESSAGES.read({"max_tokens": 1, **body}, model)
        return {"input_tokens": ask.prompt.tokens}

    def _apply_guardrail(self, request: Request, seen: Seen, identifier: str) -> Any:
        seen.operation, seen.model = "ApplyGuardrail", identifier
        region = self.runtime.authenticate(request)
        seen.metadata = parse_metadata(request.headers.get("x-amzn-bedrock-request-metadata"))
        answer, units = guardrails.apply(parse_body(request.body), request.body)
        extra = guardrails.cost(units, self.runtime.prices.guardrail_units)
        call = Call(
            request_id=seen.request_id,
            operation="ApplyGuardrail",
            model=identifier,
            base_model="guardrail",
            price_id="guardrail",
            region=region,
            metadata=seen.metadata,
            usage=Usage(),
            tier="default",
            latency="standard",
            guardrail_units=units,
            cost_nanos=cost_nanos(Usage(), None, extra),
            started_at=seen.at,
        )
        self.account.charge(call)
        self.account.complete(call)
        return answer


def _wants_stream(body: bytes) -> bool:
    try:
        parsed = orjson.loads(body)
    except ValueError:
        return False
    return isinstance(parsed, dict) and parsed.get("stream") is True


def create_app(config: Config | None = None) -> Simulator:
    return Simulator(config or Config())
