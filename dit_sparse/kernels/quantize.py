"""Quantisation of q, k and v for attention in 8 bits: the definition, in plain torch, and the entry to both
paths.

Symmetric, round to nearest even, one float32 scale for a run of tokens (q, k) or for a channel (v). Keys
are *smoothed* first: their mean over tokens is subtracted, per head and channel. That moves all logits of a
query by the same amount, which the softmax does not see, and takes away the offsets that a few key channels
of every trained DiT carry, which would otherwise set the scale of all the others (SageAttention,
arXiv:2410.02367). Only the log-sum-exp moves, by scale * q . mean(k): that dot product is kept, in float32
and from the unquantised q, and added back.

The results lie as a tensor core wants them: heads first, tokens padded with zeros to ``TOKEN_PAD`` and head
sizes to a power of two, v transposed, so that no tile needs a mask or a transposition. In v, tokens stand in
the order of :func:`value_columns`, in which a thread that holds the softmax weights of four tokens, as one
product leaves them, holds the operand that the next one wants: no weight changes hands.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_sparse.layout import ceil_div

QUERY_GROUP = 32
"""Query tokens that share a scale: the rows of one warp's tile in SageAttention2 (arXiv:2411.10958)."""
KEY_GROUP = 64
"""Key tokens that share a scale."""
TOKEN_PAD = 128
"""Tokens are padded to a multiple of this, the largest tile: a multiple of both groups."""
MIN_SUM = 32
"""Shortest sum of an 8-bit tensor-core product: the smallest padded head size, and key tile in e4m3."""
FP8_CAPABILITY = (8, 9)
E4M3 = torch.float8_e4m3fn
E4M3_TOP = 448.0
"""Largest e4m3 number."""
FLOOR = 1e-12
"""Smallest peak of a group: a group of zeros gets a scale that can be divided by."""


@dataclass(frozen=True)
class Precision:
    """The arithmetic of one low-precision mode.

    Args:
        qk: what holds the levels of q and k: int8 or float8_e4m3fn.
        top: level of the largest magnitude of a group.
        fp8_values: v and the softmax weights in e4m3; else both in the precision of the input.
    """

    qk: torch.dtype
    top: float
    fp8_values: bool

    @property
    def needs_fp8(self) -> bool:
        """Whether the GPU must multiply e4m3 numbers."""
        return self.fp8_values or self.qk == E4M3


LOW_PRECISIONS = {
    "int8": Precision(torch.int8, 127.0, fp8_values=False),
    "int8_fp8": Precision(torch.int8, 127.0, fp8_values=True),
    "fp8": Precision(E4M3, E4M3_TOP, fp8_values=True),
    # Fifteen levels in an int8 container: the quality of 4-bit q and k (PAROAttention, arXiv:2506.16054) on
    # GPUs without a 4-bit unit, at the speed of "int8". v stays as it is: the loss is that of q and k alone.
    "int4": Precision(torch.int8, 7.0, fp8_values=False),
}
PRECISIONS = ("native", *LOW_PRECISIONS)
"""Every value of ``precision``; "native" is the input's own."""


@dataclass(frozen=True)
class QuantizedTensors:
    """What the low-precision kernels read. Np is N rounded up to ``TOKEN_PAD``, Dp see :func:`head_pad`.

    Args:
        q, k: levels ``[B, H, Np, Dp]``, int8 or e4m3.
        q_scale, k_scale: float32 ``[B, H, Np / QUERY_GROUP]`` and ``[B, H, Np / KEY_GROUP]``.
        v: the input ``[B, N, H, D]``, or e4m3 levels ``[B, H, Dp, Np]`` with tokens at :func:`value_columns`.
        v_scale: float32 ``[B, H, D]`` for e4m3 levels, else None.
        key_offset: q . mean(k), float32 ``[B, H, Nq]``: times the softmax scale, it is what smoothing took
            from the log-sum-exp. None when k was not smoothed or no log-sum-exp is wanted.
        dtype: of the input, and so of the output.
    """

    q: Tensor
    q_scale: Tensor
    k: Tensor
    k_scale: Tensor
    v: Tensor
    v_scale: Tensor | None
    key_offset: Tensor | None
    dtype: torch.dtype

    @property
    def head_dim(self) -> int:
        """D of the input."""
        return (self.v if self.v_scale is None else self.v_scale).shape[-1]


def check_precision(precision: str) -> None:
    """``precision`` must be one of ``PRECISIONS``."""
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}: choose one of {list(PRECISIONS)}")


def fp8_refusal(precision: str, device: torch.device, block_size: tuple[int, int]) -> str | None:
    """Why the Triton kernel cannot run ``precision`` there for want of e4m3 products, or None when it can."""
    low = LOW_PRECISIONS.get(precision)
    if low is None or not low.needs_fp8:
        return None
    if device.type == "cuda":
        if torch.version.hip is not None:
            return f"needs an NVIDIA GPU for precision {precision!r}; 'int8' and 'int4' do not"
        if (found := torch.cuda.get_device_capability(device)) < FP8_CAPABILITY:
            return (
                f"needs compute capability 8.9 or later for precision {precision!r}, this GPU has "
                f"{found[0]}.{found[1]}; 'int8' and 'int4' run on it"
            )
    if block_size[1] % MIN_SUM:
        return (
            f"needs key blocks that are multiples of {MIN_SUM} for precision {precision!r}, got {block_size}"
        )
    return None


def head_pad(head_dim: int) -> int:
    """The head size that a tensor-core tile has: the next power of two, at least ``MIN_SUM``."""
    return max(MIN_SUM, 1 << (head_dim - 1).bit_length())


def _to_levels(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if dtype.is_floating_point else x.round().to(dtype)


def quantize_rows(
    x: Tensor,
    group: int,
    top: float,
    dtype: torch.dtype,
    *,
    centre: Tensor | None = None,
    project: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Levels of q or k: every run of ``group`` tokens of a head is divided by its own scale.

    Args:
        x: ``[B, N, H, D]``, finite: a NaN or an infinity makes the scale of its group NaN or infinite.
        group: tokens per scale; divides ``TOKEN_PAD``.
        top: level of the largest magnitude of a group.
        dtype: int8 or float8_e4m3fn.
        centre: float32 ``[B, H, D]``, subtracted from every token first.
        project: float32 ``[B, H, D]``, multiplied with every token as it came.

    Returns:
        levels ``[B, H, Np, Dp]``, scales float32 ``[B, H, Np / group]``, and dot products with ``project``
        float32 ``[B, H, N]`` or None.
    """
    tokens, dim = x.shape[1], x.shape[3]
    rows = x.transpose(1, 2).float()
    dots = None if project is None else (rows * project[:, :, None]).sum(dim=-1)
    if centre is not None:
        rows = rows - centre[:, :, None]
    grouped = F.pad(rows, (0, head_pad(dim) - dim, 0, -tokens % TOKEN_PAD)).unflatten(2, (-1, group))
    # Times a reciprocal: what torch makes of a division by a number depends on the device.
    scales = grouped.abs().amax(dim=(-2, -1)).clamp(min=FLOOR) * (1.0 / top)
    levels = _to_levels(grouped * (1 / scales)[..., None, None], dtype)
    return levels.flatten(2, 3), scales, dots


def channel_scales(v: Tensor) -> Tensor:
    """Scales of v ``[B, N, H, D]`` for e4m3: one for every head and channel, float32 ``[B, H, D]``."""
    # The infinity norm reads v once and writes no |v|; it is exact in v's own type.
    peaks = torch.linalg.vector_norm(v, ord=torch.inf, dim=1).float()
    return peaks.clamp(min=FLOOR) * (1.0 / E4M3_TOP)


def value_columns(tokens: Tensor) -> Tensor:
    """Where tokens of v stand in ``[B, H, Dp, Np]``: each run of 16, seen as ``[2, 4, 2]``, is stored as
    ``[4, 2, 2]``."""
    return (tokens & ~15) | ((tokens & 6) << 1) | ((tokens & 8) >> 2) | (tokens & 1)


def quantize_channels(v: Tensor) -> tuple[Tensor, Tensor]:
    """e4m3 levels of v ``[B, N, H, D]``, ``[B, H, Dp, Np]`` in the order of :func:`value_columns`, and their
    :func:`channel_scales`."""
    scales = channel_scales(v)
    columns = v.permute(0, 2, 3, 1).float() * (1 / scales)[..., None]
    tokens, dim = v.shape[1], v.shape[3]
    columns = F.pad(columns, (0, -tokens % TOKEN_PAD, 0, head_pad(dim) - dim))
    return columns.unflatten(-1, (-1, 2, 4, 2)).transpose(-3, -2).flatten(-4).to(E4M3), scales


def dequantize_rows(levels: Tensor, scales: Tensor, tokens: int, head_dim: int) -> Tensor:
    """``[B, N, H, D]`` float32 from what :func:`quantize_rows` gives (without ``centre``)."""
    group = levels.shape[2] // scales.shape[2]
    rows = levels.float() * scales.repeat_interleave(group, dim=2)[..., None]
    return rows[:, :, :tokens, :head_dim].transpose(1, 2)


def dequantize_channels(levels: Tensor, scales: Tensor, tokens: int) -> Tensor:
    """``[B, N, H, D]`` float32 from what :func:`quantize_channels` gives."""
    columns = value_columns(torch.arange(tokens, device=levels.device))
    rounded = levels[:, :, : scales.shape[-1]].float()[..., columns]
    return (rounded * scales[..., None]).permute(0, 3, 1, 2)


def quantize(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    precision: str,
    *,
    smooth: bool = True,
    with_lse: bool = True,
    impl: str = "reference",
) -> QuantizedTensors:
    """q, k and v as the kernels of ``precision`` read them.

    Reads k twice when it is smoothed and v twice in fp8 (a reduction over all tokens, then the levels), all
    else once. Nothing waits for the GPU.

    Args:
        q: ``[B, Nq, H, D]``.
        k, v: ``[B, Nk, H, D]``.
        precision: a key of ``LOW_PRECISIONS``.
        smooth: subtract the mean key; False is for studies of what that gains.
        with_lse: also form ``key_offset``.
        impl: "reference" (torch) or "triton".
    """
    low = LOW_PRECISIONS[precision]
    rows, channels = quantize_rows, quantize_channels
    if impl == "triton":
        from dit_sparse.kernels import triton_quantize

        rows, channels = triton_quantize.quantize_rows, triton_quantize.quantize_channels
    centre = k.mean(dim=1, dtype=torch.float32) if smooth else None
    q_levels, q_scale, offset = rows(q, QUERY_GROUP, low.top, low.qk, project=centre if with_lse else None)
    k_levels, k_scale, _ = rows(k, KEY_GROUP, low.top, low.qk, centre=centre)
    values, v_scale = channels(v) if low.fp8_values else (v, None)
    return QuantizedTensors(q_levels, q_scale, k_levels, k_scale, values, v_scale, offset, q.dtype)


def padded_tokens(tokens: int) -> int:
    """Np of N tokens."""
    return ceil_div(tokens, TOKEN_PAD) * TOKEN_PAD
