"""The parts of the pipeline at the plan's sizes, freshly initialised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from .config import Plan
from .text import AttributeHeads, build_text_encoder, build_tokenizer
from .transformer import Denoiser, build_transformer
from .vae import Autoencoder, build_vae


@dataclass(frozen=True)
class Models:
    """All modules, and the heads that only training uses."""

    tokenizer: PreTrainedTokenizerFast
    text_encoder: Any
    heads: AttributeHeads
    vae: Autoencoder
    transformer: Denoiser

    def trained(self) -> nn.ModuleDict:
        """What the diffusion stages train, in the order of their checkpoints."""
        return nn.ModuleDict(
            {"transformer": self.transformer, "text_encoder": self.text_encoder, "heads": self.heads}
        )

    def parameter_counts(self) -> dict[str, int]:
        parts: dict[str, nn.Module] = {
            "transformer": self.transformer,
            "vae": self.vae,
            "text_encoder": self.text_encoder,
        }
        return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


def build_models(plan: Plan, device: torch.device) -> Models:
    torch.manual_seed(plan.seed)
    text_encoder: Any = build_text_encoder(plan.text_width, plan.text_layers, plan.text_ffn)
    return Models(
        tokenizer=build_tokenizer(),
        text_encoder=text_encoder.to(device),
        heads=AttributeHeads(plan.text_width).to(device),
        vae=build_vae(plan.vae_dim).to(device),
        transformer=build_transformer(plan.heads, plan.layers, plan.ffn, plan.text_width).to(device),
    )
