"""Training of the autoencoder on freshly drawn clips, of two lengths from the start."""

from __future__ import annotations

import json
import random

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanRMS_norm
from torch import Tensor, nn

from .config import Plan
from .muon import Optimizers
from .render import render
from .runtime import Average, Workspace, learning_rate, run_stage
from .scenes import sample_scenes
from .vae import channels_last, decode_clip, encode_clip

_KL_WEIGHT = 1e-4
_SCENE_POOL = 200_000
LATENTS_FILE = "latents.json"


def train_vae(work: Workspace, plan: Plan, vae: AutoencoderKLWan) -> None:
    """Train for the plan's seconds; leaves the averaged weights, and the latents' statistics, in `vae`."""
    if work.device.type == "cuda":
        channels_last(vae)
        torch.backends.cudnn.benchmark = True  # two static shapes; elsewhere shapes vary too much
    optimizer = Optimizers(
        nn.ModuleDict({"vae": vae}),
        1.2e-3,
        1e-3,
        exclude=("conv_in", "conv_out", "quant"),
        fused=work.device.type == "cuda",
    )
    average = Average(vae.parameters(), decay=0.998)
    pool = sample_scenes(min(_SCENE_POOL, int(plan.vae_seconds * 2000) + 64), seed=21)
    rng = random.Random(21)

    def objective(clips: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = encode_clip(vae, clips)
        mean, log_variance = mean.float(), log_variance.float()
        decoded = decode_clip(vae, mean + (0.5 * log_variance).exp() * noise).float()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return reconstruction_loss(decoded, clips), F.mse_loss(decoded.detach(), clips), kl

    if work.compile:
        compile_norms(vae)

    def step(progress: float, index: int) -> tuple[dict[str, Tensor], int]:
        shape = plan.vae_shapes[index % len(plan.vae_shapes)]
        scenes = pool[torch.randint(len(pool), (shape.batch,))]
        clips = render(scenes, shape.frames, rng.choice(shape.sides), work.device, crop=shape.window)
        if work.device.type == "cuda":
            clips = clips.contiguous(memory_format=torch.channels_last_3d)
        latent = (shape.batch, 16, (shape.frames - 1) // 4 + 1, shape.window // 8, shape.window // 8)
        with work.autocast():
            loss, error, kl = objective(clips, torch.randn(latent, device=work.device))
        (loss + _KL_WEIGHT * kl).backward()
        optimizer.step(learning_rate(progress, index, hold=0.35, end=0.01))
        average.update(index)
        return {"loss": loss.detach(), "mse": error, "kl": kl.detach()}, shape.batch

    parts = {"vae": vae, "optimizer": optimizer, "average": average}
    run_stage(work, "vae", plan.vae_seconds, step, parts, warm_steps=len(plan.vae_shapes))
    average.copy_to_params()
    torch.backends.cudnn.benchmark = False
    measure_latents(work, plan, vae)


def compile_norms(vae: AutoencoderKLWan) -> None:
    """Fuse the normalisations, which in float32 and kernel by kernel cost as much as the convolutions.

    The whole objective compiles too, and then runs twice as fast as eager, but took 166 s to compile on an
    H100.
    """
    torch._dynamo.config.recompile_limit = 64  # a variant for each width, rank and memory layout
    for module in vae.modules():
        if isinstance(module, WanRMS_norm):
            module.compile(dynamic=True)


def reconstruction_loss(decoded: Tensor, clips: Tensor) -> Tensor:
    """L1, half the squared error, and a quarter of the L1 of spatial gradients."""
    loss = F.l1_loss(decoded, clips) + 0.5 * F.mse_loss(decoded, clips)
    for dim in (3, 4):
        loss = loss + 0.125 * F.l1_loss(decoded.diff(dim=dim), clips.diff(dim=dim))
    return loss


@torch.no_grad()
def reconstruct(vae: AutoencoderKLWan, clips: Tensor) -> Tensor:
    """Encode and decode in the autoencoder's precision, [B, 3, T, H, W] float32 in [-1, 1]."""
    latents, _ = encode_clip(vae, clips.to(vae.dtype))
    return decode_clip(vae, latents).float().clamp(-1, 1)


@torch.no_grad()
def measure_latents(work: Workspace, plan: Plan, vae: AutoencoderKLWan) -> None:
    """Write per-channel mean and standard deviation of the latents into the configuration."""
    rows = []
    for seed in range(8):
        clips = render(
            sample_scenes(plan.main.batch, seed=31 + seed), plan.main.frames, plan.main.side, work.device
        )
        with work.autocast():
            mean, _ = encode_clip(vae, clips)
        rows.append(mean.float().transpose(0, 1).flatten(1))
    values = torch.cat(rows, dim=1)
    statistics = {"latents_mean": values.mean(dim=1).tolist(), "latents_std": values.std(dim=1).tolist()}
    vae.register_to_config(**statistics)
    (work.folder / LATENTS_FILE).write_text(json.dumps(statistics))


@torch.no_grad()
def measure_psnr(
    work: Workspace, vae: AutoencoderKLWan, frames: int, side: int, clips: int
) -> dict[str, object]:
    """PSNR in dB on held-out scenes: of the mean squared error over all clips, and per frame."""
    scenes = sample_scenes(clips, seed=41, held_out=True)
    errors = []
    for start in range(0, clips, 4):
        video = render(scenes[slice(start, start + 4)], frames, side, work.device)
        decoded = reconstruct(vae, video)
        errors.append((decoded - video).square().mean(dim=(1, 3, 4)))
    error = torch.cat(errors)  # [clips, T]

    def psnr(mse: Tensor) -> Tensor:
        return 10 * torch.log10(4.0 / mse.clamp(min=1e-12))

    return {
        "total": round(float(psnr(error.mean())), 2),
        "mean_of_clips": round(float(psnr(error.mean(dim=1)).mean()), 2),
        "per_frame": [round(x, 2) for x in psnr(error.mean(dim=0)).tolist()],
    }
