"""Dense attention in low precision, in float64 and straight from the definitions of the papers: what eager
attention in that precision gives. Independent of the package's own."""

from __future__ import annotations

import torch
from kernel_oracles import attention64, error
from torch import Tensor

E4M3 = torch.float8_e4m3fn
QUERY_RUN, KEY_RUN = 32, 64
LEVELS = {"int8": 127, "int8_fp8": 127, "fp8": 448, "int4": 7}
FP8_VALUES = ("int8_fp8", "fp8")


def rounded(x: Tensor, run: int, precision: str) -> Tensor:
    """Float64 ``[B, N, H, D]`` after a round trip through the levels of q or k, one run of tokens after the
    other."""
    parts = []
    for part in x.double().split(run, dim=1):
        peak = part.abs().amax(dim=(1, 3), keepdim=True)
        scale = torch.where(peak > 0, peak, 1.0) / LEVELS[precision]
        levels = part / scale
        levels = levels.to(E4M3).double() if precision == "fp8" else levels.round()
        parts.append(levels * scale)
    return torch.cat(parts, dim=1)


def eager_in(
    precision: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, *, smooth: bool = True
) -> Tensor:
    """Output ``[B, Nq, H, D]``, float64, rounded to the input's type; ``mask`` by token."""
    k64 = k.double()
    q64, k64 = (
        rounded(q, QUERY_RUN, precision),
        rounded(k64 - k64.mean(dim=1, keepdim=True) * smooth, KEY_RUN, precision),
    )
    if precision not in FP8_VALUES:
        return attention64(q64, k64, v, mask, scale)[0].to(q.dtype).double()
    v64 = v.double()
    v_scale = v64.abs().amax(dim=1, keepdim=True) / 448
    v64 = (v64 / v_scale).to(E4M3).double() * v_scale
    logits = torch.einsum("bqhd,bkhd->bhqk", q64, k64).mul(scale).masked_fill(~mask, -torch.inf)
    weights = torch.exp(logits - logits.amax(dim=-1, keepdim=True)).nan_to_num(0.0)
    total = weights.sum(dim=-1, keepdim=True).clamp(min=1e-30)
    out = (weights * 448).to(E4M3).double() / 448 / total @ v64.transpose(1, 2)
    return out.transpose(1, 2).to(q.dtype).double()


def check_budget(
    precision: str, out: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float
) -> None:
    """Rule 2 of the design: at most twice the error of eager attention in this precision, both against
    float64."""
    expected, _ = attention64(q, k, v, mask, scale)
    budget = 2 * error(eager_in(precision, q, k, v, mask, scale), expected)
    assert error(out, expected) <= budget, (precision, error(out, expected), budget)


def with_key_offsets(k: Tensor) -> Tensor:
    """Keys with an offset of 10 to 20 standard deviations in three channels, as trained models have."""
    k = k.clone()
    for channel, offset in ((1, 12.0), (5, -10.0), (k.shape[-1] - 2, 20.0)):
        k[..., channel] += offset
    return k
