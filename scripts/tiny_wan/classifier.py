"""The judge: a small CNN that names colour and shape of the main object from four frames of a clip.

It learns from real rendered clips, half of them passed through the autoencoder, whose blur must not count
against the denoiser. The main object is the largest, the first that the caption names.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Plan
from .render import render
from .runtime import Stateful, Workspace, learning_rate, run_stage
from .scenes import COLORS, COLUMN, SHAPES, Scenes, sample_scenes
from .train_vae import reconstruct
from .vae import Autoencoder

FRAMES, SIDE = 4, 128
_CHUNK = 32


class Classifier(nn.Module):
    """[B, 3, 4, 128, 128] in [-1, 1] -> logits of the colour [B, 8] and of the shape [B, 8]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        channels = [3, width, 2 * width, 4 * width, 8 * width]
        blocks: list[nn.Module] = []
        for before, after in itertools.pairwise(channels):
            blocks += [
                nn.Conv2d(before, after, 5 if before == 3 else 3, stride=2, padding=1),
                nn.BatchNorm2d(after),
            ]
            blocks += [nn.ReLU(), nn.Conv2d(after, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        self.features = nn.Sequential(*blocks)
        self.color = nn.Linear(16 * width, len(COLORS))
        self.shape = nn.Linear(16 * width, len(SHAPES))

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.features(frames.transpose(1, 2).flatten(0, 1))  # [B * 4, C, h, w]
        pooled = torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1)
        pooled = pooled.unflatten(0, (-1, FRAMES)).mean(dim=1)
        return self.color(pooled), self.shape(pooled)


def pick_frames(clips: Tensor) -> Tensor:
    """Four evenly spaced frames at 128 x 128 of clips [B, 3, T, H, W]."""
    index = torch.linspace(0, clips.shape[2] - 1, FRAMES).round().long().to(clips.device)
    frames = clips[:, :, index].float()
    if frames.shape[-1] == SIDE:
        return frames
    return F.interpolate(frames, size=(FRAMES, SIDE, SIDE), mode="area")


def judge(classifier: Classifier, clips: Tensor, attributes: Tensor) -> dict[str, Tensor]:
    """Per clip, [B] bool: whether colour and shape are those of `attributes` [B, 19]."""
    classifier.eval()
    with torch.no_grad():
        color, shape = classifier(pick_frames(clips))
    return {
        "color": color.argmax(dim=1) == attributes[:, COLUMN["color1"]],
        "shape": shape.argmax(dim=1) == attributes[:, COLUMN["shape1"]],
    }


@torch.no_grad()
def _example_frames(work: Workspace, plan: Plan, vae: Autoencoder, scenes: Scenes) -> tuple[Tensor, Tensor]:
    """Frames of real and of reconstructed clips, uint8 [N, 3, 4, 128, 128] each."""
    real: list[Tensor] = []
    rebuilt: list[Tensor] = []
    for start in range(0, len(scenes), _CHUNK):
        clips = render(scenes[slice(start, start + _CHUNK)], plan.main.frames, plan.main.side, work.device)
        for store, video in ((real, clips), (rebuilt, reconstruct(vae, clips))):
            store.append(((pick_frames(video) + 1) * 127.5).round().byte())
    return torch.cat(real), torch.cat(rebuilt)


def train_classifier(work: Workspace, plan: Plan, vae: Autoencoder) -> tuple[Classifier, dict[str, float]]:
    """A trained classifier, and its accuracies on held-out real and reconstructed clips."""
    classifier = Classifier().to(work.device)
    scenes = sample_scenes(plan.classifier_clips, seed=51)
    attributes = scenes.attributes.to(work.device)
    frames = torch.stack(_example_frames(work, plan, vae, scenes), dim=1)  # [N, 2, 3, 4, 128, 128]
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=0.05)

    def step(progress: float, index: int) -> tuple[dict[str, Tensor], int]:
        classifier.train()
        pick = torch.randint(len(frames), (plan.classifier_batch,), device=work.device)
        source = torch.randint(2, (plan.classifier_batch,), device=work.device)
        images = frames[pick, source].float() / 127.5 - 1
        images = images * (0.9 + 0.2 * torch.rand(len(pick), 1, 1, 1, 1, device=work.device))
        images = images + 0.04 * torch.randn_like(images)
        with work.autocast():
            color, shape = classifier(images)
            loss = F.cross_entropy(color.float(), attributes[pick, COLUMN["color1"]])
            loss = loss + F.cross_entropy(shape.float(), attributes[pick, COLUMN["shape1"]])
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * learning_rate(progress, index, hold=0.3)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"loss": loss.detach()}, len(pick)

    parts: dict[str, Stateful] = {"classifier": classifier, "optimizer": optimizer}
    run_stage(work, "classifier", plan.classifier_seconds, step, parts)
    return classifier, _accuracies(work, plan, vae, classifier)


def _accuracies(work: Workspace, plan: Plan, vae: Autoencoder, classifier: Classifier) -> dict[str, float]:
    scenes = sample_scenes(min(512, plan.classifier_clips), seed=52, held_out=True)
    attributes = scenes.attributes.to(work.device)
    result = {}
    for name, frames in zip(("real", "reconstructed"), _example_frames(work, plan, vae, scenes), strict=True):
        verdicts = [
            judge(classifier, part.float() / 127.5 - 1, labels)
            for part, labels in zip(frames.split(_CHUNK), attributes.split(_CHUNK), strict=True)
        ]
        for key in ("color", "shape"):
            result[f"{name}_{key}"] = round(torch.cat([v[key] for v in verdicts]).float().mean().item(), 4)
    return result
