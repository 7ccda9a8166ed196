"""The data that every room shares: token layouts, sites, block maps, plans and records. Frozen; shapes
written once.

Logical tensor shape everywhere: query, key and value are ``[B, N, H, D]`` (batch, tokens, heads, head size).
N counts video and text tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:  # the room of kernels lies above this one
    from dit_sparse.kernels import VariableBlocks

TextPosition = Literal["first", "last", "none"]
Branch = Literal["conditional", "unconditional", "batched"]

BYTE_BITS = 8


def ceil_div(a: int, b: int) -> int:
    """Smallest integer >= a / b, for b >= 1."""
    return -(-a // b)


def step_at(fraction: float, num_steps: int) -> int:
    """First of ``num_steps`` steps at or after a fraction of them; 0.6 * 50 does not become 31."""
    return math.ceil(fraction * num_steps - 1e-9)


def pack_bits(mask: Tensor) -> Tensor:
    """A bool mask ``[..., n]`` as bits: uint8 ``[..., ceil(n / 8)]``, least significant bit first."""
    pad = -mask.shape[-1] % BYTE_BITS
    bits = torch.nn.functional.pad(mask, (0, pad)).unflatten(-1, (-1, BYTE_BITS)).to(torch.uint8)
    weights = 2 ** torch.arange(BYTE_BITS, device=mask.device, dtype=torch.uint8)
    return (bits * weights).sum(dim=-1, dtype=torch.uint8)


def unpack_bits(bits: Tensor, n: int) -> Tensor:
    """The bool mask ``[..., n]`` that :func:`pack_bits` packed."""
    shifts = torch.arange(BYTE_BITS, device=bits.device, dtype=torch.uint8)
    return ((bits[..., None] >> shifts) & 1).flatten(-2)[..., :n].bool()


@dataclass(frozen=True)
class TokenLayout:
    """Where the tokens of one attention call sit: a row-major (T, H, W) video grid and an optional run of
    text.

    Args:
        frames, height, width: token grid after patchify, each >= 1 (latent frames, not pixel frames).
        text_tokens: number of text tokens in the same sequence, >= 0; 0 for cross-attention models.
        text_position: "first" or "last" when ``text_tokens`` > 0, else "none".

    Raises:
        ValueError: on a non-positive grid or a text position that contradicts ``text_tokens``.
    """

    frames: int
    height: int
    width: int
    text_tokens: int = 0
    text_position: TextPosition = "none"

    def __post_init__(self) -> None:
        if min(self.frames, self.height, self.width) < 1:
            raise ValueError(f"the token grid must be at least 1x1x1, got {self.grid}")
        if self.text_position not in ("first", "last", "none"):
            raise ValueError(f"text_position must be 'first', 'last' or 'none', got {self.text_position!r}")
        if self.text_tokens < 0 or (self.text_tokens > 0) != (self.text_position != "none"):
            raise ValueError(
                f"text_tokens={self.text_tokens} does not fit text_position={self.text_position!r}: "
                "use 'none' with 0 text tokens, 'first' or 'last' with at least 1"
            )

    @property
    def grid(self) -> tuple[int, int, int]:
        """(T, H, W) of the video tokens."""
        return (self.frames, self.height, self.width)

    @property
    def video_tokens(self) -> int:
        """T * H * W."""
        return self.frames * self.height * self.width

    @property
    def num_tokens(self) -> int:
        """Video and text tokens together: the N of ``[B, N, H, D]``."""
        return self.video_tokens + self.text_tokens

    @property
    def video_start(self) -> int:
        """Index of the first video token in the model's sequence."""
        return self.text_tokens if self.text_position == "first" else 0

    @property
    def text_start(self) -> int:
        """Index of the first text token in the model's sequence (== N without text)."""
        return 0 if self.text_position == "first" else self.video_tokens


@dataclass(frozen=True)
class Site:
    """One attention call: which layer, which denoising step, which guidance branch.

    Args:
        layer: index of the self-attention layer within its transformer, from 0.
        step: index of the denoising step, from 0.
        num_steps: steps of this generation; None when the caller's loop does not tell.
        branch: "conditional" / "unconditional" for separate forwards, "batched" when both share a batch.
        transformer: name of the pipeline component, e.g. "transformer" or "transformer_2".
    """

    layer: int
    step: int
    num_steps: int | None = None
    branch: Branch = "batched"
    transformer: str = "transformer"


@dataclass(frozen=True)
class BlockMap:
    """Which (query block, key block) pairs are computed exactly.

    Row ``[b, h, i]`` keeps the key blocks ``indices[b, h, i, : counts[b, h, i]]``, ascending; what lies
    behind the count is unspecified but in range. The last block of either axis may be ragged.

    Args:
        indices: int32 ``[B, H, nQ, width]`` with 1 <= width <= nK.
        counts: int32 ``[B, H, nQ]``, 0..width.
        num_queries, num_keys: token counts of the two axes.
        block_size: (query block, key block) in tokens.
    """

    indices: Tensor
    counts: Tensor
    num_queries: int
    num_keys: int
    block_size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H, nQ, nK)."""
        b, h, n_q, _ = self.indices.shape
        return (b, h, n_q, ceil_div(self.num_keys, self.block_size[1]))

    @classmethod
    def from_mask(
        cls, mask: Tensor, num_queries: int, num_keys: int, block_size: tuple[int, int]
    ) -> BlockMap:
        """Build from a bool mask ``[B, H, nQ, nK]`` without host synchronisation (width = nK).

        Raises:
            ValueError: if the mask's shape does not fit the token counts and block sizes.
        """
        expected = (ceil_div(num_queries, block_size[0]), ceil_div(num_keys, block_size[1]))
        if mask.dim() != 4 or tuple(mask.shape[2:]) != expected:
            raise ValueError(f"mask must be [B, H, {expected[0]}, {expected[1]}], got {tuple(mask.shape)}")
        mask = mask.bool()
        # A stable sort of "not kept" moves the kept columns to the front in ascending order.
        indices = torch.argsort((~mask).to(torch.uint8), dim=-1, stable=True).to(torch.int32)
        counts = mask.sum(dim=-1, dtype=torch.int32)
        return cls(indices, counts, num_queries, num_keys, block_size)

    @classmethod
    def full(
        cls,
        batch: int,
        heads: int,
        num_queries: int,
        num_keys: int,
        block_size: tuple[int, int],
        device: torch.device,
    ) -> BlockMap:
        """Every pair kept: density 1."""
        n_q, n_k = ceil_div(num_queries, block_size[0]), ceil_div(num_keys, block_size[1])
        mask = torch.ones(batch, heads, n_q, n_k, dtype=torch.bool, device=device)
        return cls.from_mask(mask, num_queries, num_keys, block_size)

    def to_mask(self) -> Tensor:
        """Bool mask ``[B, H, nQ, nK]``."""
        b, h, n_q, n_k = self.shape
        live = torch.arange(self.indices.shape[-1], device=self.indices.device) < self.counts[..., None]
        mask = torch.zeros(b, h, n_q, n_k + 1, dtype=torch.bool, device=self.indices.device)
        # Dead slots are written into a spare column, so they cannot clear or set a real one.
        target = torch.where(live, self.indices.long(), n_k)
        return mask.scatter_(-1, target, True)[..., :n_k]

    def density(self) -> Tensor:
        """Fraction of kept block pairs, 0-d float32 tensor on the map's device (no synchronisation)."""
        b, h, n_q, n_k = self.shape
        return self.counts.sum().float() / (b * h * n_q * n_k)

    def head_density(self) -> Tensor:
        """The same by head, float32 ``[H]``, mean over the batch."""
        b, _, n_q, n_k = self.shape
        return self.counts.sum(dim=(0, 2)).float() / (b * n_q * n_k)

    def pack(self) -> PackedBlockMap:
        """Bit-packed copy for caches and files, 1/32 of the int32 indices."""
        return PackedBlockMap(pack_bits(self.to_mask()), self.num_queries, self.num_keys, self.block_size)


@dataclass(frozen=True)
class PackedBlockMap:
    """A :class:`BlockMap` as bits: uint8 ``[B, H, nQ, ceil(nK / 8)]``, least significant bit first."""

    bits: Tensor
    num_queries: int
    num_keys: int
    block_size: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.bits.numel()

    def unpack(self) -> BlockMap:
        """The block map these bits came from."""
        n_k = ceil_div(self.num_keys, self.block_size[1])
        mask = unpack_bits(self.bits, n_k)
        return BlockMap.from_mask(mask, self.num_queries, self.num_keys, self.block_size)


@dataclass(frozen=True)
class AttentionPlan:
    """All that one sparse attention call needs; reusable across steps.

    Args:
        q_order, kv_order: int64 permutations of the N tokens, ``[N]``, ``[H, N]`` or ``[B, H, N]``: position
            i of the reordered sequence holds token ``order[..., i]``. None is the model's own order.
        block_map: kept pairs in the reordered sequences.
        density: 0-d float32 tensor, fraction of pairs kept.
    """

    q_order: Tensor | None
    kv_order: Tensor | None
    block_map: BlockMap | VariableBlocks
    density: Tensor

    def packed(self) -> PackedPlan:
        """A copy to keep between steps: the map as bits, orders as int32."""
        q_order = None if self.q_order is None else self.q_order.to(torch.int32)
        shared = self.kv_order is self.q_order
        kv_order = q_order if shared or self.kv_order is None else self.kv_order.to(torch.int32)
        return PackedPlan(q_order, kv_order, self.block_map.pack(), self.density)


@dataclass(frozen=True)
class PackedPlan:
    """An :class:`AttentionPlan` between steps: 1/32 of its map, half of its orders."""

    q_order: Tensor | None
    kv_order: Tensor | None
    block_map: PackedBlockMap | VariableBlocks
    density: Tensor

    def unpacked(self) -> AttentionPlan:
        """The plan that was packed."""
        q_order = None if self.q_order is None else self.q_order.long()
        shared = self.kv_order is self.q_order
        kv_order = q_order if shared or self.kv_order is None else self.kv_order.long()
        return AttentionPlan(q_order, kv_order, self.block_map.unpack(), self.density)

    @property
    def nbytes(self) -> int:
        """Bytes held between steps."""
        orders = {id(o): o for o in (self.q_order, self.kv_order) if o is not None}
        return self.block_map.nbytes + sum(o.numel() * o.element_size() for o in orders.values())


@dataclass(frozen=True)
class SiteRecord:
    """What happened at one site: kept for ``Handle.stats()`` and the report.

    Args:
        site: where.
        density: fraction of block pairs computed; 1.0 when dense. A 0-d tensor until it is read.
        dense_reason: None when sparse, else why it ran dense ("dense_step", "dense_layer", "min_tokens",
            ...).
        backend: kernel that ran, e.g. "triton", "reference", "dense".
        heads: density by head, float32 ``[H]``, where it ran sparse; on the device until it is read.
    """

    site: Site
    density: Tensor | float
    dense_reason: str | None
    backend: str
    heads: Tensor | None = field(default=None, compare=False)  # tensors have no single truth value
