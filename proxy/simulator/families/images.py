"""Picture models, billed per image: Nova Canvas and Titan Image, and Stability."""
# ruff: noqa: ARG002 - one signature for every dialect

from typing import Any

from proxy.simulator.catalog import Model
from proxy.simulator.errors import invalid
from proxy.simulator.families.base import Ask, Family, Json, Prompt, Reply, integer, malformed
from proxy.simulator.prices import Usage

#: A one-pixel transparent PNG.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
_MOST_IMAGES = 5


class AmazonImage(Family):
    """``taskType`` and ``imageGenerationConfig``: 1 to 5 images, 1024 x 1024 and standard unless told."""

    count_headers = "none"
    chats = False

    def read(self, body: Json, model: Model) -> Ask:
        if not isinstance(body.get("taskType"), str):
            raise malformed("", "required key [taskType] not found")
        settings: Any = body.get("imageGenerationConfig") or {}
        if not isinstance(settings, dict):
            raise malformed("/imageGenerationConfig", "expected type: JSONObject")
        amount = integer(settings, "numberOfImages", high=_MOST_IMAGES) or 1
        width = integer(settings, "width", low=320, high=4_096) or 1_024
        height = integer(settings, "height", low=320, high=4_096) or 1_024
        quality = settings.get("quality", "standard")
        if quality not in {"standard", "premium"}:
            raise malformed("/imageGenerationConfig/quality", "is not a valid enum value")
        prompt = Prompt()
        prompt.add(str({key: value for key, value in body.items() if key.endswith("Params")}))
        return Ask(prompt, 0, silent=True, image=(width, height, quality, amount))

    def whole(self, ask: Ask, reply: Reply, usage: Usage | None) -> Json:
        assert ask.image is not None  # noqa: S101 - set by read
        return {"images": [PIXEL] * ask.image[3], "error": None}


class Stability(Family):
    """One image a call."""

    count_headers = "none"
    chats = False

    def read(self, body: Json, model: Model) -> Ask:
        if not any(key in body for key in ("prompt", "image", "text_prompts", "init_image")):
            raise invalid("prompt: is required")
        prompt = Prompt()
        prompt.add(str(body.get("prompt", body.get("text_prompts", "")))[:10_000])
        return Ask(prompt, 0, silent=True, image=(1_024, 1_024, "standard", 1))

    def whole(self, ask: Ask, reply: Reply, usage: Usage | None) -> Json:
        return {"seeds": [reply.seed % 2**32], "finish_reasons": [None], "images": [PIXEL]}
