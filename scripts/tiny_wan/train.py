"""The whole run: text encoder, autoencoder, denoiser, evaluation, export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .config import Plan
from .evaluate import evaluate
from .export import frozen_vae
from .models import build_models
from .runtime import Workspace
from .text import train_text
from .train_diffusion import DiffusionTrainer
from .train_vae import train_vae


def train(work: Workspace, plan: Plan, target: Path) -> dict[str, Any]:
    """Run every stage, from where the work folder stands; returns the metrics."""
    work.folder.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    if work.compile:
        torch._dynamo.config.suppress_errors = (
            True  # a part that cannot be compiled runs as it is, with a warning
        )
    models = build_models(plan, work.device)
    work.log(parameters=models.parameter_counts(), torch=torch.__version__, plan=plan.describe())
    train_text(work, models.text_encoder, models.heads, plan.text_seconds, plan.text_pool, plan.text_batch)
    train_vae(work, plan, models.vae)
    vae = frozen_vae(models.vae, work.device)
    trainer = DiffusionTrainer(work, plan, vae, models.transformer, models.text_encoder, models.heads)
    for stage in plan.stages:
        trainer.run(stage)
    del trainer, models, vae
    if work.device.type == "cuda":
        torch.cuda.empty_cache()
    return evaluate(work, plan, target)


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
