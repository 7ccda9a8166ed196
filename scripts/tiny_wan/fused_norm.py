"""RMS norm over channels, SiLU and causal padding in one kernel, forward and backward.

diffusers' WanRMS_norm under autocast makes six passes over a float32 copy of the activations, the activation
and the padding two more each. Here a clip is read once and written once.
"""

from __future__ import annotations

import os
import warnings
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # no GPU, no Triton: the modules' own path is used
    triton = None

PAD_FRAMES = 2
_ELEMENTS = 4096  # of one program

if triton is not None:

    @triton.jit
    def _rows_of(clip_rows, pad_rows, rows, C: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
        """Offsets of this program's rows in the clip and in the padded clip, and which of them exist."""
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        channel = tl.arange(0, C)
        padded = row + (row // clip_rows + 1) * pad_rows
        exists = (row < rows)[:, None] & (channel < C)[None, :]
        return row[:, None] * C + channel[None, :], padded[:, None] * C + channel[None, :], exists

    @triton.jit
    def _forward(x, gamma, y, clip_rows, pad_rows, rows, C: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
        source, target, exists = _rows_of(clip_rows, pad_rows, rows, C, ROWS)
        value = tl.load(x + source, mask=exists, other=0.0).to(tl.float32)
        weight = tl.load(gamma + tl.arange(0, C)).to(tl.float32)
        squares = tl.maximum(tl.sum(value * value, axis=1), 1e-24)  # F.normalize's 1e-12, squared
        z = value * tl.sqrt(C / squares)[:, None] * weight[None, :]
        tl.store(y + target, (z * tl.sigmoid(z)).to(y.dtype.element_ty), mask=exists)

    @triton.jit
    def _backward(x, gamma, dy, dx, dgamma, clip_rows, pad_rows, rows, C: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
        source, target, exists = _rows_of(clip_rows, pad_rows, rows, C, ROWS)
        value = tl.load(x + source, mask=exists, other=0.0).to(tl.float32)
        weight = tl.load(gamma + tl.arange(0, C)).to(tl.float32)
        squares = tl.maximum(tl.sum(value * value, axis=1), 1e-24)
        inverse = tl.sqrt(C / squares)[:, None]
        h = value * inverse
        z = h * weight[None, :]
        s = tl.sigmoid(z)
        dz = tl.load(dy + target, mask=exists, other=0.0).to(tl.float32) * s * (1 + z * (1 - s))
        tl.store(dgamma + tl.program_id(0) * C + tl.arange(0, C), tl.sum(dz * h, axis=0))
        dh = dz * weight[None, :]
        along = tl.sum(dh * value, axis=1) / squares
        tl.store(dx + source, (inverse * (dh - value * along[:, None])).to(dx.dtype.element_ty), mask=exists)


class _NormSiluPad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last_3d)
        batch, channels, frames, height, width = x.shape
        y = torch.empty(
            batch,
            channels,
            frames + PAD_FRAMES,
            height,
            width,
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last_3d,
        )
        y[:, :, :PAD_FRAMES].zero_()
        ctx.save_for_backward(x, gamma)
        ctx.sizes = (frames * height * width, PAD_FRAMES * height * width, x.numel() // channels, channels)
        rows = _ELEMENTS // channels
        _forward[(triton.cdiv(ctx.sizes[2], rows),)](x, gamma, y, *ctx.sizes, rows)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, gamma = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last_3d)
        dx = torch.empty_like(x)
        rows = _ELEMENTS // ctx.sizes[3]
        programs = triton.cdiv(ctx.sizes[2], rows)
        dgamma = torch.empty(programs, ctx.sizes[3], device=x.device)
        _backward[(programs,)](x, gamma, dy, dx, dgamma, *ctx.sizes, rows)
        return dx, dgamma.sum(dim=0).view_as(gamma).to(gamma.dtype)


def norm_silu_pad(x: Tensor, gamma: Tensor) -> Tensor:
    """silu(x / rms(x) * gamma) with two zero frames before it: [B, C, T, H, W] -> [B, C, T + 2, H, W].

    Args:
        x: activations; C is a power of two.
        gamma: [C, 1, 1, 1].
    """
    return _NormSiluPad.apply(x, gamma)


def reference(x: Tensor, gamma: Tensor) -> Tensor:
    """What `norm_silu_pad` computes, in plain float32."""
    normalized = F.normalize(x.float(), dim=1) * x.shape[1] ** 0.5
    return F.pad(F.silu(normalized * gamma.float()), (0, 0, 0, 0, PAD_FRAMES, 0))


def works_on(x: Tensor) -> bool:
    """Whether the kernel serves `x`: on a GPU, 16 bits, a power of two channels, and it passed its check."""
    channels = x.shape[1]
    return (
        x.is_cuda
        and x.dtype == torch.bfloat16
        and channels & (channels - 1) == 0
        and channels >= 16
        and _checked(x.device)
    )


@lru_cache(maxsize=8)
def _checked(device: torch.device) -> bool:
    """Whether the kernel compiles here and agrees with the reference, gradients included."""
    if triton is None or os.environ.get("TINY_WAN_PLAIN_NORM"):
        return False
    try:
        error = largest_error(device)
    except Exception as failure:  # any failure of the compiler: the plain path computes the same
        warnings.warn(f"the fused normalisation does not run here: {failure}", stacklevel=2)
        return False
    if error > 0.02:
        warnings.warn(f"the fused normalisation is off by {error:.3f}; not used", stacklevel=2)
    return error <= 0.02


def largest_error(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> float:
    """Largest error of output and gradients against the reference, relative to the largest value."""
    worst = 0.0
    cpu = torch.Generator().manual_seed(0)
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        for channels in (32, 64):
            x = torch.randn(2, channels, 3, 5, 7, generator=cpu).to(device, dtype).requires_grad_()
            gamma = (1 + 0.2 * torch.randn(channels, 1, 1, 1, generator=cpu)).to(device).requires_grad_()
            results = []
            for function in (norm_silu_pad, reference):
                y = function(x, gamma)
                weight = torch.linspace(-1, 1, y.numel(), device=device).view_as(y)
                results.append((y, *torch.autograd.grad((y.float() * weight).sum(), (x, gamma))))
            for actual, expected in zip(*results, strict=True):
                gap = (actual.float() - expected.float()).abs().max() / expected.float().abs().max()
                worst = max(worst, gap.item())
    return worst
