"""Carried tensors in 8 bits."""

from __future__ import annotations

import torch
from torch import Tensor

INT8_MAX = 127


def to_int8(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """int8 levels of ``x``, and float scales with size 1 along ``dim``, whose product is ``x`` to the
    rounding."""
    scales = x.abs().amax(dim=dim, keepdim=True).clamp(min=1e-30) / INT8_MAX
    return (x / scales).round().to(torch.int8), scales
