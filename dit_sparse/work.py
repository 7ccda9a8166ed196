"""What one forward of a transformer costs, counted from the shapes of its modules; how fast devices are."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dit_sparse.adapters.attach import transformers_of
from dit_sparse.adapters.base import Adapter, find_adapter
from dit_sparse.layout import TokenLayout, ceil_div

TEXT_STREAM = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff_context")
TEXT_KEYS = ("attn2.to_k", "attn2.to_v")
TEXT_ONLY = ("text_embedder", "text_proj", "context_embedder")
"""Parts of the names of linear layers that see text only: of joint attention, of cross-attention, outside
of the blocks."""

ELEMENTWISE_PASSES = {"eager": 240, "compiled": 60}
"""Reads and writes of the hidden state per layer by norms, RoPE, casts and copies, at nominal bandwidth.
Fitted to a layer of Wan2.1-14B at 720x1280x81 on one H100: 55 ms eager, 14 ms under torch.compile."""


@dataclass(frozen=True)
class Rates:
    """What a device achieves.

    Args:
        attention: FLOP/s of dense self-attention.
        linear: FLOP/s of matrix products.
        bandwidth: bytes/s of element-wise kernels.
        source: where the figures are from.
    """

    attention: float
    linear: float
    bandwidth: float
    source: str

    def __post_init__(self) -> None:
        for name in ("attention", "linear", "bandwidth"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be a rate above 0, got {getattr(self, name)}")


DEVICE_RATES = {
    # bf16: FlashAttention-4 at head size 128 and 75,776 tokens; torch.matmul at 8192^3; nominal HBM3.
    "NVIDIA H100 80GB HBM3": Rates(709e12, 807e12, 3.35e12, "H100 table: FlashAttention-4, cuBLAS, HBM3"),
}


@dataclass(frozen=True)
class Work:
    """What one forward of one sample costs.

    Args:
        layout: token grid.
        layers: number of self-attention layers.
        attention_flops: dense self-attention of all layers.
        linear_flops: linear layers and cross-attention.
        elementwise_bytes: moved by everything else.
    """

    layout: TokenLayout
    layers: int
    attention_flops: float
    linear_flops: float
    elementwise_bytes: float

    def rates(self, attention_s: float, linear_s: float, rest_s: float, forwards: int) -> Rates:
        """Rates that a dense run achieved.

        Args:
            attention_s, linear_s, rest_s: parts of the transformer's time, as in ``report.json``.
            forwards: samples that went through the transformer: steps times samples per step.
        """
        return Rates(
            forwards * self.attention_flops / attention_s,
            forwards * self.linear_flops / linear_s,
            forwards * self.elementwise_bytes / rest_s,
            "measured in a dense run",
        )


def work_of(
    pipe: Any,
    *,
    height: int,
    width: int,
    num_frames: int,
    text_tokens: int | None = None,
    compiled: bool = False,
) -> Work:
    """Count what one forward of one sample costs, from the shapes of the modules; takes what :func:`forecast`
    takes.

    Raises:
        ValueError: for sizes below 1, an unknown model or a bare transformer.
    """
    transformer = next(iter(transformers_of(pipe).values()))
    adapter = find_adapter(transformer)
    text = longest_prompt(pipe) if text_tokens is None else text_tokens
    layout = _layout(pipe, transformer, adapter, (num_frames, height, width), text)
    layers = adapter.attention_layers(transformer)
    channels = sum(module.to_q.out_features for _, module in layers) / len(layers)
    blocks = {path.rpartition(".")[0] for path, _ in layers}
    cross = 4 * layout.video_tokens * text * channels * _cross_attentions(transformer)
    element = next(transformer.parameters()).element_size()
    passes = ELEMENTWISE_PASSES["compiled" if compiled else "eager"]
    return Work(
        layout=layout,
        layers=len(layers),
        attention_flops=4.0 * layout.num_tokens**2 * channels * len(layers),
        linear_flops=_linear_flops(transformer, blocks, layout, text) + cross,
        elementwise_bytes=float(passes * len(layers) * layout.num_tokens * channels * element),
    )


def _layout(
    pipe: Any, transformer: Any, adapter: Adapter, size: tuple[int, int, int], text: int
) -> TokenLayout:
    """Token grid of a video, ``size`` in frames and pixels."""
    spatial, temporal = (getattr(pipe, f"vae_scale_factor_{axis}", None) for axis in ("spatial", "temporal"))
    if spatial is None or temporal is None:
        raise ValueError(
            f"{type(pipe).__name__} does not tell how its autoencoder scales frames and pixels: "
            "a forecast needs a video pipeline"
        )
    num_frames, height, width = size
    if min(height // spatial, width // spatial, num_frames) < 1:
        raise ValueError(f"no video has {num_frames} frames of {height} x {width} pixels")
    latent = [1, transformer.config.in_channels, height // spatial, width // spatial]
    frames, patch = (num_frames - 1) // temporal + 1, getattr(transformer.config, "patch_size_t", None) or 1
    latent.insert(adapter.frames_dim, ceil_div(frames, patch) * patch)
    inputs = {
        "hidden_states": torch.empty(latent, device="meta"),
        "encoder_hidden_states": torch.empty(1, text, 1, device="meta"),
    }
    return adapter.layout(transformer, inputs)


def longest_prompt(pipe: Any) -> int:
    """Text tokens that a pipeline pads or cuts its prompts to; 0 where it does not say."""
    limit = inspect.signature(pipe.__call__).parameters.get("max_sequence_length")
    return int(limit.default) if limit is not None else 0


def _linear_flops(transformer: nn.Module, blocks: Iterable[str], layout: TokenLayout, text: int) -> float:
    """FLOPs of all linear layers; how many tokens go through one is read from diffusers' names for it."""
    known = set(blocks)
    two_streams = {block for block in known if _has(transformer.get_submodule(block), TEXT_STREAM)}
    total = 0.0
    for path, module in transformer.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        block = next((b for b in known if path.startswith(f"{b}.")), None)
        if block is None:
            tokens = layout.video_tokens if path == "proj_out" else text if _named(path, TEXT_ONLY) else 1
        elif "norm" in path:  # adaptive norms: one vector for all tokens
            tokens = 1
        elif _named(path, TEXT_STREAM) or _named(path, TEXT_KEYS):
            tokens = text
        else:
            tokens = layout.video_tokens if block in two_streams else layout.num_tokens
        total += 2.0 * tokens * module.in_features * module.out_features
    return total


def _named(path: str, names: Iterable[str]) -> bool:
    return any(name in path for name in names)


def _has(module: nn.Module, names: Iterable[str]) -> bool:
    return any(_named(path, names) for path, _ in module.named_modules())


def _cross_attentions(transformer: nn.Module) -> int:
    return sum(path.endswith("attn2") for path, _ in transformer.named_modules())
