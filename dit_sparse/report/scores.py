"""What a clip can be scored by: the registry that ``dit-sparse eval`` and its page read.

A new score is one entry here, and one small file where it needs a package of its own. A score that cannot be
had (package or weights missing) says so once and is left out; nothing else stops for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from dit_sparse.report.lpips import NETWORK
from dit_sparse.report.metrics import Frames, capped_mean_psnr
from dit_sparse.report.schema import Metrics
from dit_sparse.report.scores_clip import clip_similarity
from dit_sparse.report.scores_vbench import vbench_dimension

Better = Literal["higher", "lower", "neither"]


class ScoreUnavailableError(Exception):
    """A score cannot be computed here; the message says why and what would help."""


@dataclass(frozen=True)
class ScoredClip:
    """What a score is computed from.

    Args:
        prompt: of the clip.
        frames: of the sparse video, float ``[F, H, W, 3]`` in [0, 1].
        metrics: of the sparse video against the dense one.
        video: the encoded sparse video.
        device: where a network may run.
    """

    prompt: str
    frames: Frames
    metrics: Metrics
    video: Path
    device: torch.device


@dataclass(frozen=True)
class Score:
    """One number per clip.

    Args:
        name: key in ``evaluation.json`` and on the command line.
        title, unit, decimals: how it is shown.
        better: which end is better; "neither" where a value only describes.
        about: settings and source, one sentence.
        compute: the value; raises :class:`ScoreUnavailableError`.
    """

    name: str
    title: str
    unit: str
    decimals: int
    better: Better
    about: str
    compute: Callable[[ScoredClip], float | None]


def _lpips(clip: ScoredClip) -> float | None:
    if clip.metrics.lpips is None:
        raise ScoreUnavailableError(clip.metrics.lpips_unavailable or "LPIPS gave no value")
    return clip.metrics.lpips


def _psnr(clip: ScoredClip) -> float | None:
    return None if clip.metrics.per_frame is None else capped_mean_psnr(clip.metrics.per_frame.psnr)


def _added_flicker(clip: ScoredClip) -> float | None:
    sparse, dense = clip.metrics.flicker_sparse, clip.metrics.flicker_dense
    if sparse is None or dense is None:
        raise ScoreUnavailableError("flicker needs videos of at least three frames")
    return sparse - dense


def _clip(clip: ScoredClip) -> float:
    return _optional(lambda: clip_similarity(clip.frames, clip.prompt, clip.device))


def _vbench(dimension: str) -> Callable[[ScoredClip], float]:
    return lambda clip: _optional(lambda: vbench_dimension(dimension, clip.video, clip.device))


def _optional(compute: Callable[[], float]) -> float:
    """Run a score that needs a package and weights; a missing one is no failure of the clip."""
    try:
        return compute()
    except (ImportError, OSError) as error:
        raise ScoreUnavailableError(" ".join(str(error).split())) from error


VBENCH = ("subject_consistency", "background_consistency", "motion_smoothness", "imaging_quality")
DEFAULT = ("psnr", "ssim", "lpips", "flicker")
REGISTRY: dict[str, Score] = {
    score.name: score
    for score in (
        Score(
            "psnr", "PSNR", "dB", 2, "higher",
            "Against dense, peak 1, mean over frames; an identical frame counts as 100 dB.", _psnr,
        ),
        Score(
            "ssim", "SSIM", "", 4, "higher",
            "Against dense, Wang et al. 2004, settings in every clip's report.",
            lambda clip: clip.metrics.ssim,
        ),
        Score("lpips", "LPIPS", "", 4, "lower", f"Against dense, {NETWORK} (Zhang et al. 2018).", _lpips),
        Score(
            "flicker", "Added flicker", "levels", 2, "neither",
            "Second difference over time of the sparse video minus that of the dense one, in grey levels of "
            "255; 0 flickers like dense.", _added_flicker,
        ),
        Score(
            "clip", "CLIP", "", 4, "higher",
            "Cosine of prompt and frames of the sparse video, CLIP ViT-B/32, mean over frames "
            "(Hessel et al. 2021, arXiv 2104.08718, without its factor and clipping).", _clip,
        ),
        *(
            Score(
                f"vbench_{dimension}", f"VBench {dimension.replace('_', ' ')}", "", 4, "higher",
                "VBench (Huang et al. 2024, arXiv 2311.17982) of the encoded sparse video, custom input.",
                _vbench(dimension),
            )
            for dimension in VBENCH
        ),
    )
}  # fmt: skip


def select_scores(names: Iterable[str]) -> list[Score]:
    """Scores by name, the default ones first; "vbench" stands for all its dimensions.

    Raises:
        ValueError: for a name that is none; the message lists them.
    """
    wanted = dict.fromkeys(DEFAULT)
    for name in names:
        found = [known for known in REGISTRY if known == name or known.startswith(f"{name}_")]
        if not found:
            raise ValueError(f"no score {name!r}: use one of {', '.join(REGISTRY)} or vbench")
        wanted.update(dict.fromkeys(found))
    return [REGISTRY[name] for name in wanted]


def score_clip(clip: ScoredClip, scores: Iterable[Score]) -> tuple[dict[str, float | None], dict[str, str]]:
    """Value by score, and the reason for every one that could not be had."""
    values: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for score in scores:
        try:
            values[score.name] = score.compute(clip)
        except ScoreUnavailableError as error:
            values[score.name], reasons[score.name] = None, str(error)
    return values, reasons
