"""From a pipeline to a folder that shows what sparse attention did: the entry point of the room.

Example::

    pair = generate_pair(pipe, {"prompt": prompt}, {"method": "svg2", "density": 0.25}, seed=0)
    context = Context(prompt, seed=0, model=describe_model(pipe, "Wan-AI/..."), config=pair.method)
    report = write_comparison(Path("out"), pair, context, fps=16)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from dataclasses import fields as dataclass_fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from dit_sparse.report.atomic import write_text
from dit_sparse.report.density import density_section
from dit_sparse.report.environment import describe_device, package_versions
from dit_sparse.report.generation import Run, timed_run
from dit_sparse.report.html import write_html
from dit_sparse.report.measure import compare_frames
from dit_sparse.report.metrics import amplified_difference
from dit_sparse.report.schema import (
    Density,
    Files,
    Memory,
    Metrics,
    ModelInfo,
    Report,
    RunTime,
    Time,
    VideoInfo,
)
from dit_sparse.report.video import write_side_by_side, write_video

Observer = Callable[[str, int, int | None], None]
"""Told (run, finished steps, all steps or None if unknown); step 0 announces a run."""

DIFFERENCE_GAIN = 4.0
WARMUP_STEPS = 2
OUTPUT_NAMES = ("report.json", "report.html", "sparse.mp4", "dense.mp4", "side_by_side.mp4", "difference.mp4")


@dataclass(frozen=True)
class Pair:
    """A sparse run and, unless it was not wanted, the dense one from the same seed.

    Args:
        method: the sparse method's name under "method" and all its fields, JSON values.
        warmup: whether untimed steps came first.
    """

    sparse: Run
    dense: Run | None
    method: Mapping[str, Any]
    device: torch.device
    warmup: bool


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


def generate_pair(
    pipe: Any,
    call: Mapping[str, Any],
    sparse: Mapping[str, Any],
    *,
    seed: int,
    compare: bool = True,
    warmup: bool = False,
    observer: Observer | None = None,
) -> Pair:
    """Generate dense (if ``compare``) and sparse from one seed, timed; the pipeline is left as it came.

    Sparse attention is enabled once before the dense run already, so that bad options fail at once.

    Args:
        call: keyword arguments of the pipeline, without generator and output type.
        sparse: keyword arguments of ``enable_sparse_attention``.
        warmup: run a few untimed steps first (compilation, kernel tuning).
        observer: follows the runs, for progress bars.

    Raises:
        ValueError: as ``enable_sparse_attention`` and the pipeline.
    """
    import dit_sparse  # noqa: F401  adds enable_sparse_attention to pipelines

    def run(name: str, kwargs: Mapping[str, Any]) -> Run:
        tell = observer or (lambda *_: None)
        tell(name, 0, kwargs.get("num_inference_steps"))
        return timed_run(pipe, kwargs, seed=seed, on_step=lambda step, total: tell(name, step, total))

    def measured(name: str) -> Run:
        if warmup:
            run(f"{name} warm-up", {**call, "num_inference_steps": WARMUP_STEPS})
        return run(name, call)

    pipe.enable_sparse_attention(**sparse)
    pipe.disable_sparse_attention()
    dense_run = measured("dense") if compare else None
    handle = pipe.enable_sparse_attention(**sparse)
    try:
        sparse_run = measured("sparse")
        stats = handle.stats()
    finally:
        pipe.disable_sparse_attention()
    device = torch.device(getattr(pipe, "_execution_device", "cpu"))
    return Pair(replace(sparse_run, stats=stats), dense_run, _method_fields(handle.config), device, warmup)


def write_comparison(
    output: Path, pair: Pair, context: Context, *, fps: float, lpips_weights: Path | None = None
) -> Report:
    """Write videos, ``report.html`` and, last of all, ``report.json`` into ``output``; return the report.

    Files of an earlier run are removed first: a ``report.json`` always belongs to its neighbours.

    Raises:
        ValueError: when the two videos cannot be compared.
        MissingExtraError: when a package of the ``report`` extra is missing.
    """
    sparse, dense = pair.sparse, pair.dense
    metrics = compare_frames(dense.frames, sparse.frames, lpips_weights) if dense else Metrics()
    output.mkdir(parents=True, exist_ok=True)
    for name in OUTPUT_NAMES:
        (output / name).unlink(missing_ok=True)
    files = write_videos(output, pair, fps)
    report = build_report(pair, context, metrics, files, fps)
    write_html(output / "report.html", report)
    write_text(output / "report.json", report.model_dump_json(indent=2) + "\n")
    return report


def write_videos(output: Path, pair: Pair, fps: float) -> Files:
    """Encode the videos of a pair and say which files they are in."""
    write_video(output / "sparse.mp4", pair.sparse.frames, fps)
    if pair.dense is None:
        return Files(sparse="sparse.mp4")
    write_video(output / "dense.mp4", pair.dense.frames, fps)
    difference = amplified_difference(pair.dense.frames, pair.sparse.frames, DIFFERENCE_GAIN)
    write_video(output / "difference.mp4", difference, fps)
    write_side_by_side(
        output / "side_by_side.mp4", {"dense": pair.dense.frames, "sparse": pair.sparse.frames}, fps
    )
    return Files(
        sparse="sparse.mp4",
        dense="dense.mp4",
        side_by_side="side_by_side.mp4",
        difference="difference.mp4",
        difference_gain=DIFFERENCE_GAIN,
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
        density=density_section(stats) if stats is not None else Density(),
        time=_time_section(sparse, dense, pair.warmup),
        memory=Memory(
            dense_peak_bytes=dense.peak_memory_bytes if dense else None,
            sparse_peak_bytes=sparse.peak_memory_bytes,
            state_bytes=stats.state_bytes if stats is not None else None,
        ),
        backend="+".join(b for b in stats.backends if b != "dense") or "dense"
        if stats is not None
        else "dense",
        fallbacks=list(stats.fallbacks) if stats is not None else [],
        config=dict(context.config),
        device=describe_device(pair.device),
        versions=package_versions(),
    )


def _time_section(sparse: Run, dense: Run | None, warmup: bool) -> Time:
    return Time(
        dense_s=dense.denoise_s if dense else None,
        sparse_s=sparse.denoise_s,
        speedup=_ratio(dense.denoise_s, sparse.denoise_s) if dense else None,
        speedup_end_to_end=_ratio(dense.end_to_end_s, sparse.end_to_end_s) if dense else None,
        speedup_transformer=_ratio(dense.transformer_s, sparse.transformer_s) if dense else None,
        dense=_run_time(dense) if dense else None,
        sparse=_run_time(sparse),
        warmup=warmup,
    )


def _run_time(run: Run) -> RunTime:
    return RunTime(
        denoise_s=run.denoise_s,
        end_to_end_s=run.end_to_end_s,
        transformer_s=run.transformer_s,
        step_s=list(run.step_s),
    )


def _method_fields(config: Any) -> dict[str, Any]:
    """Name and fields of a method's configuration; what JSON cannot hold becomes its text."""
    fields = {entry.name: getattr(config, entry.name) for entry in dataclass_fields(config)}
    return {"method": config.name, **json.loads(json.dumps(fields, default=str))}


def _ratio(dense: float, sparse: float) -> float | None:
    return dense / sparse if sparse > 0 else None
