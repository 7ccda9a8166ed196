"""How well frames and prompt agree, by CLIP (Radford et al. 2021, arXiv 2103.00020), through transformers."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from dit_sparse.report.metrics import Frames
from dit_sparse.report.video import to_uint8

WEIGHTS = "openai/clip-vit-base-patch32"
FRAMES_PER_BATCH = 16


@lru_cache(maxsize=1)
def _network(device: str) -> tuple[Any, Any]:
    """Model and processor, loaded once per process."""
    from transformers import CLIPModel, CLIPProcessor

    try:
        model: Any = CLIPModel.from_pretrained(WEIGHTS)
        return model.to(device).eval(), CLIPProcessor.from_pretrained(WEIGHTS)
    except OSError as error:
        raise OSError(
            f"no CLIP weights: {WEIGHTS} is neither in the cache nor can it be downloaded; "
            f"huggingface-cli download {WEIGHTS} gets them"
        ) from error


@torch.no_grad()
def clip_similarity(frames: Frames, prompt: str, device: torch.device) -> float:
    """Mean over frames of the cosine between image and text embedding, in [-1, 1].

    Args:
        frames: float ``[F, H, W, 3]`` in [0, 1].
        prompt: cut off at CLIP's 77 tokens.
        device: where the network runs.

    Raises:
        OSError: without the weights.
    """
    model, processor = _network(str(device))
    given = processor(text=[prompt], return_tensors="pt", truncation=True, padding=True).to(device)
    cosines: list[float] = []
    for start in range(0, len(frames), FRAMES_PER_BATCH):
        images = [to_uint8(image) for image in frames[start : start + FRAMES_PER_BATCH]]
        pixels = processor(images=images, return_tensors="pt")["pixel_values"].to(device)
        seen = model(pixel_values=pixels, **given)
        cosines += torch.cosine_similarity(seen.image_embeds, seen.text_embeds).tolist()
    return sum(cosines) / len(cosines)
