"""The whole run: text encoder, autoencoder, denoiser, evaluation, export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .config import EVALUATION_SECONDS, Plan
from .evaluate import evaluate
from .export import export, frozen_vae
from .models import build_models
from .resume import initial, start_from
from .runtime import OutOfTime, Workspace
from .text import train_text
from .train_diffusion import DiffusionTrainer
from .train_vae import measure_psnr, train_vae


def train(
    work: Workspace,
    plan: Plan,
    target: Path,
    init: Path | None = None,
    first: str | None = None,
    bundle: bool = True,
) -> dict[str, Any] | None:
    """Run every stage, from where the work folder stands, and evaluate.

    Args:
        init: folder of a bundle to start from.
        first: the stage to start with then.
        bundle: whether to write a bundle with the results.

    Returns:
        The metrics; None if the time was over before: then everything is exported as it stands.
    """
    work.folder.mkdir(parents=True, exist_ok=True)
    _prepare(work)
    work.log(expected_seconds=plan.expected_seconds())
    try:
        start_from(work, plan, init, first)
        _train_stages(work, plan)
        work.stop_if_late(needed_s=plan.classifier_seconds + EVALUATION_SECONDS)
    except OutOfTime:
        export(work, plan, target, bundle=True)
        work.log(stopped="out of time; the same command goes on")
        return None
    if work.device.type == "cuda":
        torch.cuda.empty_cache()
    return evaluate(work, plan, target, bundle)


def _prepare(work: Workspace) -> None:
    if work.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    if work.compile:
        # A part that cannot be compiled runs as it is, with a warning.
        torch._dynamo.config.suppress_errors = True


def _train_stages(work: Workspace, plan: Plan) -> None:
    models = build_models(plan, work.device)
    skipped = initial(work, models)
    work.log(parameters=models.parameter_counts(), torch=torch.__version__, plan=plan.describe())
    if "text" not in skipped:
        train_text(
            work, models.text_encoder, models.heads, plan.text_seconds, plan.text_pool, plan.text_batch
        )
    if "vae" not in skipped:
        train_vae(work, plan, models.vae)
    vae = frozen_vae(models.vae, work.device)
    shape = plan.main
    work.log(
        vae_held_out_psnr_db=measure_psnr(work, vae, shape.frames, shape.side, min(32, plan.eval_captions))
    )
    trainer = DiffusionTrainer(work, plan, vae, models.transformer, models.text_encoder, models.heads)
    for stage in plan.stages:
        if stage.name not in skipped:
            trainer.run(stage)


def profile_stage(work: Workspace, plan: Plan, name: str, steps: int) -> None:
    """Print what limits a step of the stage `name`, with untrained weights and small banks."""
    work.folder.mkdir(parents=True, exist_ok=True)
    work.profile_steps = steps
    _prepare(work)
    plan = profiling_plan(plan, 10.0)
    models = build_models(plan, work.device)
    if name == "text":
        train_text(work, models.text_encoder, models.heads, 10.0, 4096, plan.text_batch)
    elif name == "vae":
        train_vae(work, plan, models.vae)
    else:
        vae = frozen_vae(models.vae, work.device)
        trainer = DiffusionTrainer(work, plan, vae, models.transformer, models.text_encoder, models.heads)
        trainer.run(next(stage for stage in plan.stages if stage.name == name))


def profiling_plan(plan: Plan, seconds: float) -> Plan:
    """The same stages for `seconds` each, with small banks and a short evaluation."""

    def small(shape: Any) -> Any:
        return replace(shape, bank=min(shape.bank, 4 * shape.batch))

    return replace(
        plan,
        text_seconds=seconds,
        vae_seconds=seconds,
        classifier_seconds=seconds,
        stages=tuple(
            replace(stage, seconds=seconds, cycle=tuple(map(small, stage.cycle))) for stage in plan.stages
        ),
        eval_captions=8,
        eval_captions_high=4,
        guidances=plan.guidances[:1],
        classifier_clips=512,
    )
