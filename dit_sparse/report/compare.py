"""From a pipeline to a folder that shows what sparse attention did: the entry point of the room.

Example::

    pair = generate_pair(pipe, {"prompt": prompt}, {"method": "svg2", "density": 0.25}, seed=0)
    context = Context(prompt, seed=0, model=describe_model(pipe, "Wan-AI/..."), config=pair.method)
    report = write_comparison(Path("out"), pair, context, fps=16)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from dit_sparse.report.atomic import write_text
from dit_sparse.report.density import density_section
from dit_sparse.report.environment import describe_device, package_versions
from dit_sparse.report.floor import NOT_ASKED, WITHOUT_DENSE, floor_section
from dit_sparse.report.generation import Run
from dit_sparse.report.html import write_html
from dit_sparse.report.measure import compare_frames
from dit_sparse.report.metrics import amplified_difference
from dit_sparse.report.pair import Observer, Pair, generate_pair
from dit_sparse.report.player import write_player
from dit_sparse.report.schema import (
    Density,
    Files,
    Floor,
    Memory,
    Metrics,
    ModelInfo,
    Report,
    VideoInfo,
)
from dit_sparse.report.times import time_section
from dit_sparse.report.video import write_side_by_side, write_video

__all__ = ["Context", "Observer", "Pair", "build_report", "generate_pair", "write_comparison"]

DIFFERENCE_GAIN = 4.0
OUTPUT_NAMES = (
    "report.json",
    "report.html",
    "sparse.mp4",
    "dense.mp4",
    "side_by_side.mp4",
    "difference.mp4",
    "player.webp",
    "player.mp4",
)


@dataclass(frozen=True)
class Context:
    """What the report must say beside the measurements.

    Args:
        prompt, negative_prompt, seed: of the generation.
        model: from :func:`dit_sparse.report.environment.describe_model`.
        command: command line, if there was one.
        config: method fields, schedule and generation options; JSON values.
    """

    prompt: str
    seed: int
    model: ModelInfo
    negative_prompt: str | None = None
    command: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


def write_comparison(
    output: Path,
    pair: Pair,
    context: Context,
    *,
    fps: float,
    lpips_weights: Path | None = None,
    floor: Floor | None = None,
) -> Report:
    """Write videos, ``report.html`` and, last of all, ``report.json`` into ``output``; return the report.

    Files of an earlier run are removed first: a ``report.json`` always belongs to its neighbours.

    Args:
        output: folder; made if it is missing.
        pair, context: what was measured, and what must be said beside it.
        fps: of the video files.
        lpips_weights: see :func:`~dit_sparse.report.measure.compare_frames`.
        floor: measured before, for a pair that comes without its own.

    Raises:
        ValueError: when the two videos cannot be compared.
        MissingExtraError: when a package of the ``report`` extra is missing.
    """
    metrics = measure(pair, lpips_weights)
    if floor is not None:
        metrics = metrics.model_copy(update={"floor": floor, "floor_unmeasured": None})
    output.mkdir(parents=True, exist_ok=True)
    for name in OUTPUT_NAMES:
        (output / name).unlink(missing_ok=True)
    files = write_videos(output, pair, fps)
    report = build_report(pair, context, metrics, files, fps)
    write_html(output / "report.html", report)
    write_text(output / "report.json", report.model_dump_json(indent=2) + "\n")
    return report


def measure(pair: Pair, lpips_weights: Path | None = None) -> Metrics:
    """Metrics of the sparse video against the dense one, and of the floor where it was run."""
    if pair.dense is None:
        return Metrics(floor_unmeasured=WITHOUT_DENSE)
    metrics = compare_frames(pair.dense.frames, pair.sparse.frames, lpips_weights)
    if pair.floor is None:
        return metrics.model_copy(update={"floor_unmeasured": NOT_ASKED})
    second = compare_frames(pair.dense.frames, pair.floor.frames, lpips_weights)
    section = floor_section(second, pair.floor.kernel, pair.floor.denoise_s)
    return metrics.model_copy(update={"floor": section})


def write_videos(output: Path, pair: Pair, fps: float) -> Files:
    """Encode the videos of a pair and say which files they are in."""
    write_video(output / "sparse.mp4", pair.sparse.frames, fps)
    if pair.dense is None:
        player = write_player(output, {"sparse": pair.sparse.frames}, fps)
        return Files(sparse="sparse.mp4", player=player)
    dense, sparse = pair.dense.frames, pair.sparse.frames
    write_video(output / "dense.mp4", dense, fps)
    difference = amplified_difference(dense, sparse, DIFFERENCE_GAIN)
    write_video(output / "difference.mp4", difference, fps)
    write_side_by_side(output / "side_by_side.mp4", {"dense": dense, "sparse": sparse}, fps)
    player = write_player(output, {"dense": dense, "sparse": sparse, "difference": difference}, fps)
    return Files(
        sparse="sparse.mp4",
        dense="dense.mp4",
        side_by_side="side_by_side.mp4",
        difference="difference.mp4",
        difference_gain=DIFFERENCE_GAIN,
        player=player,
    )


def build_report(pair: Pair, context: Context, metrics: Metrics, files: Files, fps: float) -> Report:
    """Assemble the report from measurements and context; writes nothing."""
    sparse, dense = pair.sparse, pair.dense
    frames, height, width, _ = sparse.frames.shape
    stats = sparse.stats
    return Report(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=context.command,
        prompt=context.prompt,
        negative_prompt=context.negative_prompt,
        seed=context.seed,
        model=context.model,
        video=VideoInfo(frames=frames, height=height, width=width, fps=fps),
        files=files,
        metrics=metrics,
        density=(
            density_section(stats, pair.recall, pair.recall_unmeasured, sparse.choices)
            if stats is not None
            else Density()
        ),
        time=time_section(sparse, dense, pair.warmup),
        memory=_memory_section(sparse, dense, pair.device),
        backend=sparse.kernel,
        fallbacks=list(stats.fallbacks) if stats is not None else [],
        config=dict(context.config),
        device=describe_device(pair.device),
        versions=package_versions(),
    )


def _memory_section(sparse: Run, dense: Run | None, device: torch.device) -> Memory:
    measured = sparse.peak_memory_bytes is not None
    return Memory(
        measure=("GPU allocator" if device.type == "cuda" else "resident set of the process")
        if measured
        else None,
        dense_peak_bytes=dense.peak_memory_bytes if dense else None,
        sparse_peak_bytes=sparse.peak_memory_bytes,
        state_bytes=sparse.stats.state_bytes if sparse.stats is not None else None,
    )
