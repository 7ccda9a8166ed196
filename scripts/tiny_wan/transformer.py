"""The denoiser: configuration, and attention for training with short texts.

WanPipeline pads every prompt to 512 zero embeddings and does not mask them. They all give one and the same
key and value, so 32 text tokens suffice in training if the last one, always a pad, counts 481 times: its
logit gets ln(481) added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Denoiser: TypeAlias = Any  # WanTransformer3DModel; diffusers has no types
PIPELINE_TEXT_TOKENS = 512
_BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def build_transformer(heads: int, layers: int, ffn: int, text_width: int) -> Denoiser:
    return WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=heads,
        attention_head_dim=64,
        in_channels=16,
        out_channels=16,
        text_dim=text_width,
        freq_dim=256,
        ffn_dim=ffn,
        num_layers=layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=256,
    )


class TrainingAttention:
    """WanAttnProcessor's function for 32 text tokens that stand for 512, in one traceable expression."""

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        value = attn.to_v(source)
        query, key = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(source))
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, value))
        if rotary_emb is not None:
            query, key = _rotate(query, *rotary_emb), _rotate(key, *rotary_emb)
        query, key, value = (x.to(value.dtype).transpose(1, 2) for x in (query, key, value))
        if encoder_hidden_states is None:
            out = F.scaled_dot_product_attention(query, key, value)
        else:
            out = _padded_cross_attention(query, key, value)
        return attn.to_out[0](out.transpose(1, 2).flatten(2, 3))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [B, N, H, D] by tables [1, N, 1, D] whose neighbours are equal."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    c, s = cos[..., 0::2], sin[..., 1::2]
    return torch.stack([first * c - second * s, first * s + second * c], dim=-1).flatten(-2)


def _padded_cross_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of [B, H, N, D] over [B, H, L, D], the last key standing for all up to 512.

    Written out because L is small: fused kernels parallelise their backward over keys, here too few.
    """
    length = key.shape[2]
    weight = torch.arange(length, device=key.device) == length - 1
    bias = weight.float() * math.log(PIPELINE_TEXT_TOKENS - length + 1)
    logits = (query * query.shape[-1] ** -0.5) @ key.mT
    return (logits.float() + bias).softmax(dim=-1).to(value.dtype) @ value


@contextmanager
def training_attention(transformer: Denoiser, compile_blocks: bool) -> Iterator[Callable[..., Tensor]]:
    """Yield the transformer as a function with short-text attention; restore it afterwards.

    The blocks share one compiled function for each clip size: 12 s a size on an H100.
    """
    transformer.set_attn_processor(TrainingAttention())
    if compile_blocks:
        torch._dynamo.config.recompile_limit = 64
        for block in transformer.blocks:
            block.compile(dynamic=False)

    def forward(latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        with sdpa_kernel(_BACKENDS, set_priority=True):
            return transformer(latents, timestep, text, return_dict=False)[0]

    try:
        yield forward
    finally:
        transformer.set_attn_processor(WanAttnProcessor())
        for block in transformer.blocks:
            block._compiled_call_impl = None
