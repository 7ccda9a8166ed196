"""Transformers of full width with few layers and random weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gpu_bench.models import MODELS, NOISE, Model, smooth_field

CLASSES = {
    "wan": "WanTransformer3DModel",
    "hunyuan_video": "HunyuanVideoTransformer3DModel",
    "cogvideox": "CogVideoXTransformer3DModel",
}


@dataclass(frozen=True)
class Spec:
    """A transformer whose layers are measured.

    Args:
        model: shape and run.
        config: of its class, beside heads, head size and layer counts.
        blocks: layers of the full model by the name of their list.
        text: (tokens, width) of the text embeddings.
        built: layers of each list that are really made.
        batch: samples of a forward; guidance branches beyond it are forwards of their own.
    """

    model: Model
    config: Mapping[str, Any]
    blocks: Mapping[str, int]
    text: tuple[int, int]
    built: int = 2
    batch: int = 1
    latent_channels: int = field(default=16, kw_only=True)


def _wan(name: str, ffn_dim: int) -> Spec:
    model = MODELS[name]
    config = {"ffn_dim": ffn_dim, "text_dim": 4096, "freq_dim": 256}
    return Spec(model, config, {"blocks": model.layers}, (512, 4096))


SPECS = {
    "Wan-14B 720p": _wan("Wan-14B 720p", 13824),
    "HunyuanVideo 720p": Spec(
        MODELS["HunyuanVideo 720p"],
        {"text_embed_dim": 4096, "pooled_projection_dim": 768},
        {"transformer_blocks": 20, "single_transformer_blocks": 40},
        (256, 4096),
        built=1,
    ),
    "Wan-1.3B 480p": _wan("Wan-1.3B 480p", 8960),
    "CogVideoX-5B 480p": Spec(
        MODELS["CogVideoX-5B 480p"],
        {"use_rotary_positional_embeddings": True, "sample_width": 90, "sample_height": 60},
        {"transformer_blocks": 42},
        (226, 4096),
        batch=2,
    ),
}


def build(spec: Spec, device: str) -> Any:
    """The transformer in bfloat16, less the modules that its class keeps in float32, in evaluation mode."""
    import diffusers

    cls = getattr(diffusers, CLASSES[spec.model.family])
    layers = {
        {
            "blocks": "num_layers",
            "transformer_blocks": "num_layers",
            "single_transformer_blocks": "num_single_layers",
        }[name]: spec.built
        for name in spec.blocks
    }
    widths = {"num_attention_heads": spec.model.heads, "attention_head_dim": spec.model.dim}
    torch.manual_seed(0)
    with torch.device(device):
        transformer = cls(**widths, **layers, **spec.config).eval().requires_grad_(False)
    kept = set(cls._keep_in_fp32_modules or ())
    for name, parameter in transformer.named_parameters():
        if kept.isdisjoint(name.split(".")):
            parameter.data = parameter.data.to(torch.bfloat16)
    return transformer.to(device)


def inputs(spec: Spec, device: str) -> dict[str, Any]:
    """Arguments of its forward: latents that are smooth over the grid plus noise, random text."""
    model, (text_tokens, text_width) = spec.model, spec.text
    frames, height, width = model.grid
    grid = (frames, 2 * height, 2 * width)  # every family patches 2 x 2
    torch.manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=torch.bfloat16)

    latents = smooth_field(spec.latent_channels, grid, device).T.reshape(1, spec.latent_channels, *grid)
    latents = latents.to(torch.bfloat16).expand(spec.batch, -1, -1, -1, -1)
    latents = latents + NOISE * noise(*latents.shape)
    given: dict[str, Any] = {
        "hidden_states": latents,
        "encoder_hidden_states": noise(spec.batch, text_tokens, text_width),
        "timestep": torch.full((spec.batch,), 500, device=device),
        "return_dict": False,
    }
    if model.family == "cogvideox":
        from diffusers.models.embeddings import get_3d_rotary_pos_embed

        given["hidden_states"] = latents.transpose(1, 2)
        given["image_rotary_emb"] = get_3d_rotary_pos_embed(
            embed_dim=model.dim,
            crops_coords=((0, 0), (height, width)),
            grid_size=(height, width),
            temporal_size=frames,
            device=torch.device(device),
        )
    if model.family == "hunyuan_video":
        given["encoder_attention_mask"] = torch.ones(
            spec.batch, text_tokens, device=device, dtype=torch.int64
        )
        given["pooled_projections"] = noise(spec.batch, spec.config["pooled_projection_dim"])
        given["guidance"] = torch.full((spec.batch,), 6000.0, device=device, dtype=torch.bfloat16)
    return given


@contextmanager
def only(transformer: nn.Module, spec: Spec, kept: str | None) -> Iterator[None]:
    """The transformer with the layers of one list, or with none; put back at the end."""
    whole = {name: getattr(transformer, name) for name in spec.blocks}
    for name in spec.blocks:
        if name != kept:
            setattr(transformer, name, nn.ModuleList())
    try:
        yield
    finally:
        for name, layers in whole.items():
            setattr(transformer, name, layers)


@contextmanager
def without_padding_mask(transformer: nn.Module, spec: Spec) -> Iterator[None]:
    """HunyuanVideo passes a mask to its attention even where no text is padded, which keeps dense attention
    from the fastest kernels. Here the mask is dropped; for the other families nothing changes."""
    hooks = []
    if spec.model.family == "hunyuan_video":
        for name in spec.blocks:
            for block in getattr(transformer, name):
                hooks.append(block.register_forward_pre_hook(_drop_mask))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _drop_mask(block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    hidden_states, text, conditioning, _, *rest = args
    return (hidden_states, text, conditioning, None, *rest)
