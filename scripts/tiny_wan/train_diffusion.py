"""Training of the denoiser, with the text encoder, by flow matching on banks of encoded clips."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from .bank import LatentBank
from .config import DiffusionStage, Plan, Shape
from .muon import Optimizers
from .replay import FIRST_CALLS, Body, Replay
from .runtime import Average, Stateful, Workspace, learning_rate, run_stage
from .text import AttributeHeads, encode_text
from .transformer import Denoiser, training_attention
from .vae import Autoencoder

# Inputs, outputs, embeddings and modulation tables: AdamW's.
_NOT_HIDDEN = ("patch_embedding", "proj_out", "scale_shift_table", "time_", "text_encoder", "heads")


def draw_sigma(batch: int, shift: float, device: torch.device) -> Tensor:
    """Noise levels [B]: three quarters logit-normal, one quarter uniform, then shifted towards noise."""
    sigma = torch.where(
        torch.rand(batch, device=device) < 0.25,
        torch.rand(batch, device=device),
        torch.randn(batch, device=device).sigmoid(),
    )
    return shift * sigma / (1 + (shift - 1) * sigma)


class DiffusionTrainer:
    """The models that are trained together, their optimizers and averages, through all stages."""

    def __init__(
        self,
        work: Workspace,
        plan: Plan,
        vae: Autoencoder,
        transformer: Denoiser,
        text_encoder: UMT5EncoderModel,
        heads: AttributeHeads,
    ) -> None:
        self.work, self.plan, self.vae, self.heads = work, plan, vae, heads
        self.transformer, self.text_encoder = transformer, text_encoder
        self.models = nn.ModuleDict(
            {"transformer": transformer, "text_encoder": text_encoder, "heads": heads}
        )
        fused = work.device.type == "cuda"
        self.optimizer = Optimizers(self.models, 2e-3, 1e-3, exclude=_NOT_HIDDEN, fused=fused)
        self.average = Average(self.models.parameters(), decay=plan.ema)
        self.banks: dict[Shape, LatentBank] = {}

    def parts(self) -> dict[str, Stateful]:
        return {"models": self.models, "optimizer": self.optimizer, "average": self.average}

    def run(self, stage: DiffusionStage) -> None:
        """Train one stage to the end of its budget, filling the banks that it needs first."""
        if self.work.is_done(stage.name, self.parts()):
            return
        for shape in stage.cycle:
            self._bank(shape)
        with training_attention(self.transformer, self.work.compile) as denoise:
            step = self._step(stage, denoise)
            warm = FIRST_CALLS * len(stage.cycle)
            run_stage(self.work, stage.name, stage.seconds, step, self.parts(), warm_steps=warm)

    def _bank(self, shape: Shape) -> LatentBank:
        if shape not in self.banks:
            self.work.stop_if_late()
            seed = 10_000_000 * (1 + len(self.banks))
            self.banks[shape] = LatentBank(self.work, self.vae, shape, seed)
            self.banks[shape].fill(self.plan.bank_seconds)
        return self.banks[shape]

    def _step(
        self, stage: DiffusionStage, denoise: Callable[..., Tensor]
    ) -> Callable[[float, int], tuple[dict[str, Tensor], int]]:
        replays: dict[tuple[Shape, float], Replay] = {}
        for shape, shift in zip(stage.cycle, stage.shift, strict=True):
            body = self._body(self._bank(shape), shift, denoise)
            replays[shape, shift] = Replay(self.work, f"{stage.name} {shape.name}", body)

        def step(progress: float, index: int) -> tuple[dict[str, Tensor], int]:
            turn = index % len(stage.cycle)
            shape = stage.cycle[turn]
            if stage.refresh_every and index % stage.refresh_every == stage.refresh_every - 1:
                self._bank(shape).refresh(stage.refresh)
            self.optimizer.scale.fill_(learning_rate(progress, index, stage.hold, stage.start, stage.end))
            self.average.set_step(index if stage is self.plan.stages[0] else 10**6)
            return replays[shape, stage.shift[turn]](), shape.batch

        return step

    def _body(self, bank: LatentBank, shift: float, denoise: Callable[..., Tensor]) -> Body:
        def body() -> dict[str, Tensor]:
            losses = self._losses(bank, shift, denoise)
            self.optimizer.minimize(losses["loss"] + self.plan.attribute_weight * losses["attribute_loss"])
            self.average.update()
            return {key: value.detach() for key, value in losses.items()}

        return body

    def _losses(self, bank: LatentBank, shift: float, denoise: Callable[..., Tensor]) -> dict[str, Tensor]:
        batch = bank.sample(self.plan.caption_dropout)
        clean, noise = batch.latents, torch.randn_like(batch.latents)
        sigma = draw_sigma(len(clean), shift, clean.device)
        level = sigma.view(-1, 1, 1, 1, 1)
        with self.work.autocast():
            text = encode_text(self.text_encoder, batch.ids)
            attribute_loss, accuracy = self.heads.loss(text, batch.ids, batch.attributes, batch.stated)
            velocity = denoise(torch.lerp(clean, noise, level), sigma * 1000, text)
        return {
            "loss": F.mse_loss(velocity.float(), noise - clean),
            "attribute_loss": attribute_loss,
            "attribute_accuracy": accuracy,
        }
