"""Meta Llama: ``prompt``, ``max_gen_len`` (512 by default), ``generation`` and its token counts."""
# ruff: noqa: ARG002 - one signature for every dialect

from proxy.simulator.catalog import Model
from proxy.simulator.families.base import Ask, Family, Json, Prompt, Reply, integer, malformed, number, string
from proxy.simulator.prices import Usage

DOCUMENTED_MAX = 2_048
_KEYS = {"prompt", "temperature", "top_p", "max_gen_len", "images"}
_STOPS = {"end": "stop", "length": "length", "tool": "stop", "guardrail": "stop"}


class Llama(Family):
    def read(self, body: Json, model: Model) -> Ask:
        prompt = Prompt(overhead_tokens=1)
        text = string(body, "prompt")
        for key in body:
            if key not in _KEYS and not key.startswith("amazon-bedrock-"):
                raise malformed("", f"extraneous key [{key}] is not permitted")
        if not text:
            raise malformed("/prompt", "expected minLength: 1, actual: 0")
        prompt.add(text)
        images = body.get("images") or []
        if not isinstance(images, list):
            raise malformed("/images", "expected type: JSONArray")
        for image in images:
            prompt.add_image(str(image)[:200])
        number(body, "temperature")
        number(body, "top_p")
        limit = integer(body, "max_gen_len") or model.default_output_tokens
        return Ask(prompt, min(limit, model.max_output_tokens))

    def whole(self, ask: Ask, reply: Reply, usage: Usage | None) -> Json:
        answer: Json = {"generation": reply.first.text}
        if usage is not None:
            answer["prompt_token_count"] = usage.prompt
            answer["generation_token_count"] = usage.output
        answer["stop_reason"] = _STOPS[reply.first.stop]
        return answer

    def events(self, ask: Ask, reply: Reply, usage: Usage | None) -> list[Json]:
        first = None if usage is None else usage.prompt
        events: list[Json] = []
        for text, said in reply.pieces(reply.first):
            events.append(
                {
                    "generation": text,
                    "prompt_token_count": None if events else first,
                    "generation_token_count": said,
                    "stop_reason": None,
                }
            )
        events.append(
            {
                "generation": "",
                "prompt_token_count": None if events else first,
                "generation_token_count": len(reply.first.words) if usage is None else usage.output,
                "stop_reason": _STOPS[reply.first.stop],
            }
        )
        return events
