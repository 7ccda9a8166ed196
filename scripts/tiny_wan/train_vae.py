"""Training of the autoencoder on freshly drawn clips, of two lengths from the start."""

from __future__ import annotations

import json
import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Plan, VaeShape
from .muon import Optimizers
from .render import render
from .replay import FIRST_CALLS, Replay
from .resume import LATENTS_FILE
from .runtime import Average, Stateful, Workspace, learning_rate, run_stage
from .scenes import sample_scenes
from .vae import Autoencoder, channels_last, decode_clip, encode_clip

_KL_WEIGHT = 1e-4
_SCENE_POOL = 200_000


def train_vae(work: Workspace, plan: Plan, vae: Autoencoder) -> None:
    """Train for the plan's seconds; leaves the averaged weights, and the latents' statistics, in `vae`.

    Measured on an H100 (17 x 128 px, batch 16, alternating with 33 x 64 px, batch 32, plain diffusers
    layers): eager 258 samples/s after 4 s of first steps; with cudnn.benchmark and compiled norms 231 after
    128 s; the whole objective compiled about 460 after 166 s. Hence nothing is compiled here and
    cudnn.benchmark stays off: steps are recorded as CUDA graphs instead, and the norms are one hand-written
    kernel.
    """
    if work.device.type == "cuda":
        channels_last(vae)
    average = Average(vae.parameters(), decay=0.998)
    if not work.is_done("vae", {"average": average}):
        _run(work, plan, vae, average)
    if work.profile_steps:
        return
    average.copy_to_params()
    measure_latents(work, plan, vae)


def _run(work: Workspace, plan: Plan, vae: Autoencoder, average: Average) -> None:
    modules = nn.ModuleDict({"vae": vae})
    fused = work.device.type == "cuda"
    optimizer = Optimizers(modules, 1.2e-3, 1e-3, exclude=("conv_in", "conv_out", "quant"), fused=fused)
    pool = sample_scenes(min(_SCENE_POOL, int(plan.vae_seconds * 2000) + 64), seed=21)
    rng = random.Random(21)

    def prepare(shape: VaeShape) -> tuple[Tensor, Replay]:
        """The tensor that holds a batch of clips, and the step that reads it."""
        t, s = (shape.frames - 1) // 4 + 1, shape.window // 8
        clips = torch.empty(shape.batch, 3, shape.frames, shape.window, shape.window, device=work.device)
        clips = clips.contiguous(memory_format=torch.channels_last_3d)

        def body() -> dict[str, Tensor]:
            with work.autocast():
                mean, log_variance = (x.float() for x in encode_clip(vae, clips))
                noise = torch.randn(shape.batch, 16, t, s, s, device=work.device)
                decoded = decode_clip(vae, mean + (0.5 * log_variance).exp() * noise).float()
                loss = reconstruction_loss(decoded, clips)
                kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
            optimizer.minimize(loss + _KL_WEIGHT * kl)
            average.update()
            return {"loss": loss.detach(), "mse": F.mse_loss(decoded.detach(), clips), "kl": kl.detach()}

        return clips, Replay(work, f"vae {shape.frames}x{shape.window}", body)

    prepared = {shape: prepare(shape) for shape in plan.vae_shapes}

    def step(progress: float, index: int) -> tuple[dict[str, Tensor], int]:
        shape = plan.vae_shapes[index % len(plan.vae_shapes)]
        clips, replay = prepared[shape]
        scenes = pool[torch.randint(len(pool), (shape.batch,))]
        clips.copy_(render(scenes, shape.frames, rng.choice(shape.sides), work.device, crop=shape.window))
        optimizer.scale.fill_(learning_rate(progress, index, hold=0.4, end=0.01))
        average.set_step(index)
        return replay(), shape.batch

    parts: dict[str, Stateful] = {"vae": vae, "optimizer": optimizer, "average": average}
    run_stage(work, "vae", plan.vae_seconds, step, parts, warm_steps=FIRST_CALLS * len(plan.vae_shapes))


def reconstruction_loss(decoded: Tensor, clips: Tensor) -> Tensor:
    """L1, three times the squared error (it counts at edges, where PSNR is lost), and L1 of spatial
    gradients."""
    loss = F.l1_loss(decoded, clips) + 3.0 * F.mse_loss(decoded, clips)
    for dim in (3, 4):
        loss = loss + 0.125 * F.l1_loss(decoded.diff(dim=dim), clips.diff(dim=dim))
    return loss


@torch.no_grad()
def reconstruct(vae: Autoencoder, clips: Tensor) -> Tensor:
    """Encode and decode in the autoencoder's precision, [B, 3, T, H, W] float32 in [-1, 1]."""
    latents, _ = encode_clip(vae, clips.to(vae.dtype))
    return decode_clip(vae, latents).float().clamp(-1, 1)


@torch.no_grad()
def measure_latents(work: Workspace, plan: Plan, vae: Autoencoder) -> None:
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
def measure_psnr(work: Workspace, vae: Autoencoder, frames: int, side: int, clips: int) -> dict[str, object]:
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
