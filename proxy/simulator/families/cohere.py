"""Cohere: Command R, the older Command, Embed and Rerank."""
# ruff: noqa: ARG002 - one signature for every dialect

import orjson

from proxy.simulator import tokens
from proxy.simulator.catalog import Model
from proxy.simulator.errors import invalid
from proxy.simulator.families.base import Ask, Family, Json, Prompt, Reply, array, integer, string
from proxy.simulator.prices import Usage

_STOPS = {"end": "COMPLETE", "length": "MAX_TOKENS", "tool": "COMPLETE", "guardrail": "ERROR_TOXIC"}
_DOCUMENTS_PER_QUERY = 100
_EMBEDDING_SIZE = 1_024
_MOST_TEXTS = 96


class CommandR(Family):
    """``message`` and ``chat_history``; ``meta.billed_units`` only at the end of a stream."""

    def read(self, body: Json, model: Model) -> Ask:
        prompt = Prompt(overhead_tokens=tokens.REQUEST_TOKENS)
        for turn in body.get("chat_history") or []:
            if not isinstance(turn, dict):
                raise invalid("chat_history: expected objects")
            prompt.tokens += tokens.MESSAGE_TOKENS
            prompt.add(str(turn.get("message", "")))
        prompt.add(str(body.get("preamble") or ""))
        for document in body.get("documents") or []:
            prompt.add(document if isinstance(document, str) else orjson.dumps(document).decode())
        prompt.add(string(body, "message"))
        limit = integer(body, "max_tokens") or model.default_output_tokens
        return Ask(prompt, min(limit, model.max_output_tokens))

    def _answer(self, reply: Reply) -> Json:
        return {
            "response_id": reply.call_id,
            "text": reply.first.text,
            "generation_id": f"{reply.seed:016x}",
            "chat_history": [],
            "finish_reason": _STOPS[reply.first.stop],
        }

    def whole(self, ask: Ask, reply: Reply, usage: Usage | None) -> Json:
        return self._answer(reply)

    def events(self, ask: Ask, reply: Reply, usage: Usage | None) -> list[Json]:
        events: list[Json] = [
            {"is_finished": False, "event_type": "text-generation", "text": text}
            for text, _ in reply.pieces(reply.first)
        ]
        response = self._answer(reply)
        if usage is not None:
            units = {"input_tokens": usage.prompt, "output_tokens": usage.output}
            response["meta"] = {"api_version": {"version": "1"}, "billed_units": units}
        events.append(
            {
                "is_finished": True,
                "event_type": "stream-end",
                "response": response,
                "finish_reason": _STOPS[reply.first.stop],
            }
        )
        return events


class Command(Family):
    """``prompt``, ``num_generations`` of it."""

    def read(self, body: Json, model: Model) -> Ask:
        prompt = Prompt(overhead_tokens=1)
        prompt.add(string(body, "prompt"))
        limit = integer(body, "max_tokens") or model.default_output_tokens
        choices = integer(body, "num_generations", high=5) or 1
        return Ask(prompt, min(limit, model.max_output_tokens), choices=choices)

    def whole(self, ask: Ask, reply: Reply, usage: Usage | None) -> Json:
        generations = [
            {"id": f"{reply.seed:016x}-{place}", "text": choice.text, "finish_reason": _STOPS[choice.stop]}
            for place, choice in enumerate(reply.choices)
        ]
        return {"id": reply.call_id, "prompt": "", "generations": generations}

    def events(self, ask: Ask, reply: Reply, usage: Usage | None) -> list[Json]:
        events: list[Json] = [
            {"index": place, "is_finished": False, "text": text}
            for place, choice in enumerate(reply.choices)
            for text, _ in reply.pieces(choice)
        ]
        events.append({"is_finished": True, "finish_reason": _STOPS[reply.first.stop]})
        return events


class Embed(Family):
    """``texts``; no token count in the body, the input header has it."""

    count_headers = "input"
    chats = False

    def read(self, body: Json, model: Model) -> Ask:
        prompt = Prompt()
        texts = array(body, "texts")
        if len(texts) > _MOST_TEXTS or not all(isinstance(text, str) for text in texts):
            raise invalid(f"texts: at most {_MOST_TEXTS} strings")
        for text in texts:
            prompt.add(text)
        string(body, "input_type")
        return Ask(prompt, 0, silent=True, extra={"texts": texts})

    def whole(self, ask: Ask, reply: Reply, usage: Usage | None) -> Json:
        texts = ask.extra["texts"]
        vectors = [reply.vector(_EMBEDDING_SIZE, place) for place in range(len(texts))]
        return {
            "id": reply.call_id,
            "texts": texts,
            "embeddings": vectors,
            "response_type": "embeddings_floats",
        }


class Rerank(Family):
    """Billed per query of up to 100 documents."""

    count_headers = "none"
    chats = False

    def read(self, body: Json, model: Model) -> Ask:
        prompt = Prompt()
        prompt.add(string(body, "query"))
        documents = array(body, "documents")
        for document in documents:
            prompt.add(document if isinstance(document, str) else orjson.dumps(document).decode())
        queries = -(-len(documents) // _DOCUMENTS_PER_QUERY)
        top = integer(body, "top_n") or len(documents)
        return Ask(prompt, 0, silent=True, queries=queries, extra={"amount": min(top, len(documents))})

    def whole(self, ask: Ask, reply: Reply, usage: Usage | None) -> Json:
        amount = ask.extra["amount"]
        results = [
            {"index": place, "relevance_score": (amount - place) / (amount + 1)} for place in range(amount)
        ]
        return {"results": results}
