"""The parts of the pipeline at the plan's sizes, freshly initialised."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import nn
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from .config import Plan
from .text import AttributeHeads, build_text_encoder, build_tokenizer
from .transformer import build_transformer
from .vae import build_vae


@dataclass(frozen=True)
class Models:
    """All modules, and the heads that only training uses."""

    tokenizer: PreTrainedTokenizerFast
    text_encoder: UMT5EncoderModel
    heads: AttributeHeads
    vae: AutoencoderKLWan
    transformer: WanTransformer3DModel

    def trained(self) -> nn.ModuleDict:
        """What the diffusion stages train, in the order of their checkpoints."""
        return nn.ModuleDict(
            {"transformer": self.transformer, "text_encoder": self.text_encoder, "heads": self.heads}
        )

    def parameter_counts(self) -> dict[str, int]:
        parts = {"transformer": self.transformer, "vae": self.vae, "text_encoder": self.text_encoder}
        return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


def build_models(plan: Plan, device: torch.device) -> Models:
    torch.manual_seed(plan.seed)
    return Models(
        tokenizer=build_tokenizer(),
        text_encoder=build_text_encoder(plan.text_width, plan.text_layers, plan.text_ffn).to(device),
        heads=AttributeHeads(plan.text_width).to(device),
        vae=build_vae(plan.vae_dim).to(device),
        transformer=build_transformer(plan.heads, plan.layers, plan.ffn, plan.text_width).to(device),
    )
