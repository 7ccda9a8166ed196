"""The embedded model ``tiny-wan``: a text-to-video model small enough to ship, really trained.

Results on it are the tiny model's and must be labelled so; see its MODEL_CARD.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

NAME = "tiny-wan"

DEFAULTS = {"height": 128, "width": 128, "num_frames": 17, "steps": 25, "guidance": 4.0}
"""Colour and shape of held-out captions come out right at guidance 3, 5 and 7 alike (metrics.json)."""

CALIBRATION_PROMPTS = (
    "a large yellow triangle moving up and a small purple moon over green dots",
    "a green circle over a yellow gradient, the camera zooms in",
)
"""Captions of scenes that the model was trained on: profiles are made from them, and measured on others."""


def tiny_wan_path() -> Path:
    """Folder of the pipeline, for ``WanPipeline.from_pretrained``.

    Raises:
        FileNotFoundError: if the package was installed without its data.
    """
    path = Path(__file__).parent / "models" / "tiny_wan"
    if not (path / "model_index.json").is_file():
        raise FileNotFoundError(f"the embedded model is missing from {path}: reinstall dit-sparse")
    return path


def default_call(prompt: str, **changes: Any) -> dict[str, Any]:
    """Keyword arguments of the pipeline for one clip by :data:`DEFAULTS`, without the seed."""
    call = {key: DEFAULTS[key] for key in ("height", "width", "num_frames")}
    return {
        "prompt": prompt,
        **call,
        "num_inference_steps": DEFAULTS["steps"],
        "guidance_scale": DEFAULTS["guidance"],
        **changes,
    }


def heldout_prompts() -> list[str]:
    """Captions that were kept out of training, one per evaluation clip."""
    return (tiny_wan_path() / "heldout_prompts.txt").read_text(encoding="utf-8").splitlines()
