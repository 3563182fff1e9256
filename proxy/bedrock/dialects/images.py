"""Image models: priced per image made, and the answer's images are counted.

Source: Nova user guide, "Image generation request and response structure" (1 to 5 images, unsure);
user guide, "Stability AI models" (one image a call) and "Titan Image Generator".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from proxy.bedrock.dialects import counts
from proxy.bedrock.dialects.bounds import Allowance, Tally, known_only, limit_of, object_of
from proxy.bedrock.dialects.dialect import NativeDialect
from proxy.domain.catalogue import Model
from proxy.domain.request import Bound
from proxy.domain.usage import Usage

_CONFIG = frozenset({"numberOfImages", "width", "height", "quality", "cfgScale", "seed", "size"})
#: tasks whose images have the size that is asked for; of the others it is that of the image given
_SIZED = ("TEXT_IMAGE", "COLOR_GUIDED_GENERATION", "IMAGE_VARIATION")
#: more than any model makes in a call
IMAGES_MAX = 10


class ImageDialect(NativeDialect):
    """What image models share: no output tokens, and the answer shows what it is billed for."""

    generates = False
    allowance = Allowance(request=0)

    def usage(self, headers: Mapping[str, str], body: bytes) -> Usage | None:
        answer = counts.answer_of(body)
        if answer is None:
            return None
        reported = counts.from_headers(headers, output=False)
        return counts.with_guardrail(counts.combined(reported, self.body_usage(answer)), answer)

    def body_usage(self, answer: Mapping[str, Any]) -> Usage | None:
        for name in ("images", "artifacts"):
            made = answer.get(name)
            if type(made) is list:
                return Usage(images=len(made))
        return None


class AmazonImage(ImageDialect):
    """Nova Canvas and Titan Image Generator: `taskType` and its parameters."""

    name = "nova-canvas"
    known = frozenset(
        {
            "schemaVersion", "taskType", "imageGenerationConfig", "textToImageParams", "inPaintingParams",
            "outPaintingParams", "imageVariationParams", "colorGuidedGenerationParams",
            "backgroundRemovalParams", "virtualTryOnParams", "amazon-bedrock-guardrailConfig",
        }
    )  # fmt: skip

    def content(self, body: dict[str, Any], model: Model, tally: Tally) -> None:
        tally.images = 1
        config = body.get("imageGenerationConfig")
        if config is not None:
            known_only(object_of(config, "imageGenerationConfig"), _CONFIG, "imageGenerationConfig")
            if "numberOfImages" in config:
                tally.images = limit_of(config["numberOfImages"], "numberOfImages", IMAGES_MAX)
        tally.tokens = model.context_tokens

    def bound(self, body: dict[str, Any], raw: bytes, model: Model, headers: Mapping[str, str]) -> Bound:
        found = super().bound(body, raw, model, headers)
        variant = _variant(body) if body.get("taskType") in _SIZED else None
        return dataclasses.replace(found, image_variant=variant)


def _variant(body: Mapping[str, Any]) -> str | None:
    """Size and quality, by which Nova Canvas is priced; 1024 x 1024 and standard unless said."""
    config = body.get("imageGenerationConfig") or {}
    width, height = config.get("width", 1024), config.get("height", 1024)
    if type(width) is not int or type(height) is not int or "size" in config:
        return None
    size = "1024x1024" if max(width, height) <= 1024 else "2048x2048"
    return f"up-to-{size}/{'premium' if config.get('quality', 'standard') == 'premium' else 'standard'}"


class TitanImage(AmazonImage):
    name = "titan-image"


class Stability(ImageDialect):
    """Stable Image, SD3 and SDXL (whose `samples` multiplied), and the editing services."""

    name = "stability"
    known = frozenset(
        {
            "prompt", "negative_prompt", "mode", "image", "strength", "aspect_ratio", "output_format", "seed",
            "text_prompts", "cfg_scale", "clip_guidance_preset", "sampler", "samples", "steps",
            "style_preset", "extras", "height", "width", "init_image", "init_image_mode",
            "image_strength", "mask_image", "mask_source", "mask", "grow_mask", "control_strength",
            "search_prompt", "select_prompt", "creativity", "left", "right", "up", "down", "fidelity",
            "style_image", "style_strength", "composition_fidelity", "change_strength", "init_style",
            "amazon-bedrock-guardrailConfig",
        }
    )  # fmt: skip

    def content(self, body: dict[str, Any], model: Model, tally: Tally) -> None:
        tally.images = limit_of(body.get("samples", 1), "samples", IMAGES_MAX)
        tally.tokens = model.context_tokens


NOVA_CANVAS = AmazonImage()
TITAN_IMAGE = TitanImage()
STABILITY = Stability()
