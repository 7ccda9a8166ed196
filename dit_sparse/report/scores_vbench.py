"""Dimensions of VBench (Huang et al. 2024, arXiv 2311.17982) without prompt suite, by its own package."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

MISSING = "the package 'vbench' is not installed: pip install vbench; it downloads its own weights"


def vbench_dimension(dimension: str, video: Path, device: torch.device) -> float:
    """One dimension of one encoded video, higher is better.

    Args:
        dimension: e.g. "imaging_quality".
        video: an mp4 file.
        device: where VBench runs its networks.

    Raises:
        ImportError: without the package.
        OSError: without its weights.
    """
    try:
        from vbench import VBench
    except ImportError as error:
        raise ImportError(MISSING) from error
    with tempfile.TemporaryDirectory() as folder:
        # Custom input reads no prompt suite: the file that lists it is asked for and not used.
        suite = Path(folder) / "none.json"
        suite.write_text("[]", encoding="utf-8")
        VBench(device, str(suite), folder).evaluate(
            videos_path=str(video), name="clip", dimension_list=[dimension], mode="custom_input"
        )
        results = json.loads((Path(folder) / "clip_eval_results.json").read_text(encoding="utf-8"))
    return float(results[dimension][0])
