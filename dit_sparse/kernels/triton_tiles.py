# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False
"""What the block-sparse Triton kernels share: the row of the block map, tile loads, and the launch.

The device functions are inlined where they are called. Each is one step of the algorithm that
:mod:`dit_sparse.kernels.triton_forward` describes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = math.log2(math.e)
MIN_TILE = 16
"""Smallest tile edge of a tensor-core product."""
TMA_ALIGNMENT_BYTES = 16


@dataclass(frozen=True)
class TileConfig:
    """How one launch is cut.

    Args:
        tile_m, tile_n: query rows per program and keys per loop step; powers of two that divide the sparse
            block.
        num_warps, num_stages: warps per program, depth of the load pipeline.
        tma: load K and V through tensor descriptors.
        overlap: multiply the weights of one tile with V while the next tile's softmax runs, as the sparse
            kernels' docstrings describe. Without effect on e4m3 weights.
        registers: most registers of a thread, so that more programs share a multiprocessor.
        split: form e4m3 products with values in two halves of the head, one after the other: half the
            registers for what is not yet added. Without effect elsewhere.
    """

    tile_m: int
    tile_n: int
    num_warps: int
    num_stages: int
    tma: bool = False
    overlap: bool = False
    registers: int | None = None
    split: bool = False

    def launch_options(self) -> dict[str, int]:
        """What a launch passes to the compiler; a limit on registers only where one is set, because not every
        Triton backend knows it."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return options if self.registers is None else options | {"maxnreg": self.registers}


TileTable = dict[tuple[str, int, int], TileConfig]
"""By (class of GPU, padded head size, bytes of an element). Head sizes between entries use the next larger
one; "tma" is not the table's to say."""


@triton.jit
def kept_blocks(indices, counts, b64, h64, block_row, num_keys,
                stride_ib, stride_ih, stride_iq, stride_cb, stride_ch, stride_cq,
                BLOCK_K: tl.constexpr):  # fmt: skip
    """A row of the block map: (pointer to its indices, its last block, how many blocks need no mask, whether
    the last one does)."""
    row_indices = indices + b64 * stride_ib + h64 * stride_ih + block_row * stride_iq
    kept = tl.load(counts + b64 * stride_cb + h64 * stride_ch + block_row * stride_cq)
    last = tl.load(row_indices + tl.maximum(kept - 1, 0))
    ragged = (kept > 0) & ((last + 1) * BLOCK_K > num_keys)
    whole = tl.where(ragged, kept - 1, kept)
    return row_indices, last, whole, ragged


@triton.jit
def load_tile(source, base, start, stride_n, offs_n, offs_d, b, h, num_keys,
              TILE_N: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
              MASKED: tl.constexpr, TMA: tl.constexpr, WIDEN: tl.constexpr):  # fmt: skip
    """``[TILE_N, D_PAD]`` rows of K or V from key ``start``; beyond the sequence or the head size: zeros."""
    if TMA:
        tile = source.load([b, h, start, 0]).reshape(TILE_N, D_PAD)
    else:
        pointers = (
            source + base + start.to(tl.int64) * stride_n + offs_n[:, None] * stride_n + offs_d[None, :]
        )
        if MASKED:
            live = ((start + offs_n) < num_keys)[:, None] & (offs_d < D)[None, :]
            tile = tl.load(pointers, mask=live, other=0.0)
        elif D != D_PAD:
            tile = tl.load(pointers, mask=(offs_d < D)[None, :], other=0.0)
        else:
            tile = tl.load(pointers)
    if WIDEN:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def add_weighted(acc, weights, v, WIDEN: tl.constexpr, PRECISION: tl.constexpr):
    """``acc + weights v``, the weights rounded to the type of v."""
    if WIDEN:
        weights = weights.to(tl.bfloat16).to(tl.float32)
    return tl.dot(weights.to(v.dtype), v, acc, input_precision=PRECISION)


@triton.jit
def hold(weights):
    """Rounded weights as bit patterns, for the next step of a loop; float32 ones as they are.

    The compiler feeds a product from registers if its operand is made in the same step. One that came as it
    is from the step before would go through shared memory; a bit pattern is made into weights, at no cost.
    """
    if weights.dtype.primitive_bitwidth == 16:
        held = weights.to(tl.int16, bitcast=True)
    else:
        held = weights
    return held


@triton.jit
def held_weights(held, DTYPE: tl.constexpr):
    """What :func:`hold` was given: weights of this type."""
    return held.to(DTYPE, bitcast=True)


@triton.jit
def normalise(acc, total, peak):
    """(output, natural log-sum-exp) of rows whose weights are relative to 2**peak. An empty row has total 0:
    it gives zeros, and log2(0) = -inf."""
    ln_2: tl.constexpr = 0.6931471805599453
    divisor = tl.where(total > 0, total, 1.0)
    lse = tl.where(total > 0, (peak + tl.log2(divisor)) * ln_2, float("-inf"))
    return acc / divisor[:, None], lse


def gpu_class(device: torch.device) -> str:
    """Key of the tile tables. "hopper": sm_90 and sm_100, 227 KB of shared memory; "ampere": sm_80, 163 KB,
    and AMD; "small": sm_86, sm_89 and sm_120, 99 KB."""
    if device.type != "cuda" or torch.version.hip is not None:
        return "ampere"
    major, minor = torch.cuda.get_device_capability(device)
    if major in (9, 10):
        return "hopper"
    return "ampere" if (major, minor) == (8, 0) else "small"


def fit_tiles(config: TileConfig, block_size: tuple[int, int], *, tma: bool) -> TileConfig:
    """A table's entry, cut down to tiles that divide the block.

    Its limit on registers and its split were found for its own tiles: smaller ones go without.
    """
    largest = (config.tile_m, config.tile_n)
    tile_m, tile_n = (min(tile, edge & -edge) for tile, edge in zip(largest, block_size))
    if (tile_m, tile_n) == largest:
        return replace(config, tma=tma)
    warps = 4 if tile_m <= 64 else config.num_warps
    return replace(
        config, tile_m=tile_m, tile_n=tile_n, num_warps=warps, tma=tma, registers=None, split=False
    )


def new_outputs(q_shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, return_lse: bool):
    """Unwritten out ``[B, Nq, H, D]`` and lse float32 ``[B, H, Nq]``, or None."""
    batch, num_queries, heads, _ = q_shape
    out = torch.empty(q_shape, dtype=dtype, device=device)
    if not return_lse:
        return out, None
    return out, torch.empty(batch, heads, num_queries, dtype=torch.float32, device=device)


def contiguous_rows(indices: Tensor) -> Tensor:
    """Block map indices whose rows lie without gaps, as the kernels read them."""
    return indices if indices.stride(-1) == 1 else indices.contiguous()


def tma_ready(tensor: Tensor) -> bool:
    """Whether a tensor descriptor can address ``tensor``: 16-byte aligned base and strides."""
    per_unit = TMA_ALIGNMENT_BYTES // tensor.element_size()
    return tensor.data_ptr() % TMA_ALIGNMENT_BYTES == 0 and all(
        s % per_unit == 0 for s in tensor.stride()[:-1]
    )


def float32_products(tensor: Tensor) -> str:
    """How float32 products are formed: three TF32 passes on tensor cores (about 2**-21 relative) where NVIDIA
    has them."""
    nvidia = tensor.is_cuda and torch.version.hip is None
    return "tf32x3" if tensor.dtype == torch.float32 and nvidia else "ieee"


def as_descriptor(tensor: Tensor, rows: int, columns: int):
    """Descriptor of tiles ``[1, 1, rows, columns]`` of a heads-first tensor, ``[B, H, ...]``: the leading
    unit dimensions fold away in the kernel."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), [1, 1, rows, columns])
