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
from .export import copy_log, export, frozen_vae, pack
from .render import render
from .resume import newest
from .runtime import Workspace
from .scenes import sample_scenes
from .sheets import contact_sheet
from .train_vae import measure_psnr

_SHEET_ROWS = 40


def evaluate(work: Workspace, plan: Plan, target: Path, bundle: bool = True) -> dict[str, Any]:
    """Export, measure the exported files, and write metrics, sheets and card into `target`."""
    folder = export(work, plan, target, bundle)
    if folder is None:
        raise ValueError(f"no trained denoiser in {work.folder}")
    models, progress = newest(work, plan)
    vae = frozen_vae(models.vae, work.device)
    metrics: dict[str, Any] = {"weights": progress.origin, "parameters": models.parameter_counts()}
    metrics["vae_psnr_db"] = {
        shape.name: measure_psnr(work, vae, shape.frames, shape.side, clips)
        for shape, clips in ((plan.main, plan.eval_captions), (plan.high, plan.eval_captions_high))
    }
    work.log(vae_psnr_db=metrics["vae_psnr_db"])
    classifier, metrics["classifier_accuracy"] = train_classifier(work, plan, vae)
    work.log(classifier_accuracy=metrics["classifier_accuracy"])

    pipeline: Any = WanPipeline.from_pretrained(folder, torch_dtype=vae.dtype).to(work.device)
    pipeline.set_progress_bar_config(disable=True)
    sweep = _Sampler(work, plan, pipeline, classifier, held_out_captions(sweep=True)[: plan.eval_captions])
    sweep_scores = {g: sweep.score(sweep.draw(plan.main, g)) for g in plan.guidances}
    best = max(plan.guidances, key=lambda guidance: sweep_scores[guidance]["both"])
    metrics |= {"guidance_sweep": {str(g): scores for g, scores in sweep_scores.items()}, "guidance": best}
    for shape, count, sheet in (
        (plan.main, plan.eval_captions, "contact_sheet_main.jpg"),
        (plan.high, plan.eval_captions_high, "contact_sheet_high.jpg"),
    ):
        sampler = _Sampler(work, plan, pipeline, classifier, held_out_captions()[:count])
        clips = sampler.draw(shape, best)
        metrics[f"generated_{shape.name}"] = sampler.score(clips)
        work.log(generated=shape.name, scores=metrics[f"generated_{shape.name}"])
        real, texts = real_clips(shape, min(8, count), work.device)
        shown = min(_SHEET_ROWS, count)
        contact_sheet([*clips[:shown], *real], [*sampler.captions[:shown], *texts], target / sheet)
    work.log(metrics=metrics)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    card = model_card(work, plan, metrics)
    for place in (folder, target):
        (place / "MODEL_CARD.md").write_text(card)
    pack(folder, target)
    copy_log(work, target)
    return metrics


def real_clips(shape: Shape, count: int, device: torch.device) -> tuple[Tensor, list[str]]:
    """Drawn clips to compare with, and their captions."""
    scenes, rng = sample_scenes(count, seed=61), random.Random(61)
    texts = [f"(real) {describe(row, rng).text}" for row in scenes.attributes.tolist()]
    return render(scenes, shape.frames, shape.side, device), texts


class _Sampler:
    """Generates clips for captions with the exported pipeline and has them judged."""

    def __init__(
        self,
        work: Workspace,
        plan: Plan,
        pipeline: Any,
        classifier: Classifier,
        captions: list[tuple[list[int], str]],
    ) -> None:
        self.plan, self.pipeline, self.classifier = plan, pipeline, classifier
        self.captions = [text for _, text in captions]
        self.attributes = torch.tensor([row for row, _ in captions], device=work.device)

    def draw(self, shape: Shape, guidance: float) -> Tensor:
        """One clip for each caption, [N, 3, T, H, W] in [-1, 1]."""
        parts = []
        batch = max(1, min(32, shape.batch))
        for start in range(0, len(self.captions), batch):
            frames = self.pipeline(
                prompt=self.captions[start : start + batch],
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
            for part, labels in zip(clips.split(16), self.attributes.split(16), strict=True)
        ]
        color, shape = (torch.cat([part[key] for part in parts]) for key in ("color", "shape"))
        values = {"color": color, "shape": shape, "both": color & shape}
        return {"clips": len(clips), **{key: round(v.float().mean().item(), 4) for key, v in values.items()}}
