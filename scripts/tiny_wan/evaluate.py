"""What the finished pipeline does with captions it has never seen: figures, contact sheets, model card."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from diffusers import WanPipeline
from torch import Tensor

from .captions import describe, held_out_captions
from .card import model_card
from .classifier import Classifier, judge, train_classifier
from .config import Plan, Shape
from .export import export, frozen_vae, load_models, pack
from .render import render
from .runtime import Workspace
from .scenes import sample_scenes
from .sheets import contact_sheet
from .train_vae import measure_psnr


def evaluate(work: Workspace, plan: Plan, target: Path) -> dict[str, Any]:
    """Export, measure the exported files, and write metrics, sheets and card into `target`."""
    folder = export(work, plan, target)
    models, origin = load_models(work, plan)
    vae = frozen_vae(models.vae, work.device)
    metrics: dict[str, Any] = {"weights": origin, "parameters": models.parameter_counts()}
    metrics["vae_psnr_db"] = {
        shape.name: measure_psnr(work, vae, shape.frames, shape.side, clips)
        for shape, clips in ((plan.main, plan.eval_captions), (plan.high, plan.eval_captions_high))
    }
    work.log(vae_psnr_db=metrics["vae_psnr_db"])
    classifier, metrics["classifier_accuracy"] = train_classifier(work, plan, vae)
    work.log(classifier_accuracy=metrics["classifier_accuracy"])

    pipeline = WanPipeline.from_pretrained(folder, torch_dtype=vae.dtype).to(work.device)
    pipeline.set_progress_bar_config(disable=True)
    sampler = _Sampler(work, plan, pipeline, classifier)
    half = (plan.eval_captions + 1) // 2
    metrics["guidance_sweep"] = {
        str(guidance): sampler.score(sampler.draw(plan.main, half, guidance)) for guidance in plan.guidances
    }
    best = max(plan.guidances, key=lambda guidance: metrics["guidance_sweep"][str(guidance)]["both"])
    metrics["guidance"] = best
    for shape, count, sheet in (
        (plan.main, plan.eval_captions, "contact_sheets_main.jpg"),
        (plan.high, plan.eval_captions_high, "contact_sheets_high.jpg"),
    ):
        clips = sampler.draw(shape, count, best)
        metrics[f"generated_{shape.name}"] = sampler.score(clips)
        work.log(generated=shape.name, scores=metrics[f"generated_{shape.name}"])
        contact_sheet(list(clips), sampler.captions[:count], target / sheet)
    real = sample_scenes(min(24, plan.eval_captions), seed=61)
    texts = [describe(row, sampler.rng).text for row in real.attributes.tolist()]
    contact_sheet(
        list(render(real, plan.main.frames, plan.main.side)), texts, target / "contact_sheets_real.jpg"
    )
    (target / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    card = model_card(work, plan, metrics)
    for place in (folder, target):
        (place / "MODEL_CARD.md").write_text(card)
    pack(folder, target)
    return metrics


class _Sampler:
    """Generates the held-out captions with the exported pipeline and has them judged."""

    def __init__(self, work: Workspace, plan: Plan, pipeline: WanPipeline, classifier: Classifier) -> None:
        self.work, self.plan, self.pipeline, self.classifier = work, plan, pipeline, classifier
        rows, self.captions = zip(*held_out_captions(), strict=True)
        self.attributes = torch.tensor(rows, device=work.device)
        self.rng = random.Random(61)

    def draw(self, shape: Shape, count: int, guidance: float) -> Tensor:
        """Clips [count, 3, T, H, W] in [-1, 1] of the first `count` held-out captions."""
        parts = []
        batch = max(1, min(32, shape.batch))
        for start in range(0, count, batch):
            prompts = list(self.captions[start : min(start + batch, count)])
            frames = self.pipeline(
                prompt=prompts,
                height=shape.side,
                width=shape.side,
                num_frames=shape.frames,
                num_inference_steps=self.plan.eval_steps,
                guidance_scale=guidance,
                generator=torch.Generator().manual_seed(start),
                output_type="pt",
            ).frames
            parts.append(frames.float().transpose(1, 2) * 2 - 1)
        return torch.cat(parts)

    def score(self, clips: Tensor) -> dict[str, float]:
        """Shares of clips whose main object has the caption's colour, shape, and both."""
        parts = [
            judge(self.classifier, part, labels)
            for part, labels in zip(clips.split(16), self.attributes[: len(clips)].split(16), strict=True)
        ]
        color, shape = (torch.cat([part[key] for part in parts]) for key in ("color", "shape"))
        values = {"color": color, "shape": shape, "both": color & shape}
        return {"clips": len(clips), **{key: round(v.float().mean().item(), 4) for key, v in values.items()}}
