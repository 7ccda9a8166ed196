"""Blocks of any length, such as clusters: the data, and attention over them by definition.

SVG2 (arXiv 2505.18875) attends whole clusters to whole clusters. Here this is a reference to compare the fast
fixed blocks with: it computes all logits, in chunks of queries, and masks them. Nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.kernels.checks import check_pair, resolve_scale

CHUNK_BYTES = 64 * 2**20
"""Bound on the float32 logits of one chunk of queries, over all heads."""


@dataclass(frozen=True)
class VariableBlocks:
    """Which pairs of consecutive blocks of any length are computed exactly; its own packed form.

    Args:
        q_lengths: integers ``[B, H, nQ]``, tokens of every query block in their order, 0 for empty ones;
            their sum is the number of queries.
        kv_lengths: the same for keys, ``[B, H, nK]``.
        mask: bool ``[B, H, nQ, nK]``, kept pairs.
    """

    q_lengths: Tensor
    kv_lengths: Tensor
    mask: Tensor

    def density(self) -> Tensor:
        """Fraction of kept query-key pairs, 0-d float32 tensor on the map's device (no synchronisation)."""
        kept, pairs = self._pairs()
        return (kept.sum() / pairs.sum()).float()

    def head_density(self) -> Tensor:
        """The same by head, float32 ``[H]``, mean over the batch."""
        kept, pairs = self._pairs()
        return (kept.sum(0) / pairs.sum(0)).float()

    def _pairs(self) -> tuple[Tensor, Tensor]:
        """Kept pairs of tokens and all of them, float64 ``[B, H]``: exact, unlike sums in float32."""
        q, kv = self.q_lengths.double(), self.kv_lengths.double()
        kept = q[..., None, :] @ self.mask.double() @ kv[..., None]
        return kept[..., 0, 0], q.sum(-1) * kv.sum(-1)

    def pack(self) -> VariableBlocks:
        """Itself: the reference execution carries it as it is."""
        return self

    def unpack(self) -> VariableBlocks:
        """Itself."""
        return self

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        held = (self.q_lengths, self.kv_lengths, self.mask)
        return sum(x.numel() * x.element_size() for x in held)


def block_of_tokens(lengths: Tensor, tokens: int) -> Tensor:
    """Block of every token, int64 ``[B, H, tokens]``, from the lengths of consecutive blocks."""
    ends = lengths.long().cumsum(dim=-1)
    positions = torch.arange(tokens, device=lengths.device).expand(*ends.shape[:-1], tokens).contiguous()
    return torch.searchsorted(ends, positions, right=True).clamp(max=lengths.shape[-1] - 1)


@torch.no_grad()
def pool_variable(x: Tensor, lengths: Tensor) -> Tensor:
    """Mean token of every block: float32 ``[B, H, n, D]``, zeros for empty blocks.

    Args:
        x: ``[B, N, H, D]``.
        lengths: integers ``[B, H, n]``, their sum N.
    """
    sums = members(lengths, x.shape[1]).transpose(-1, -2) @ x.transpose(1, 2).float()
    return sums / lengths.clamp(min=1)[..., None]


def members(lengths: Tensor, tokens: int) -> Tensor:
    """Which token lies in which block, float32 ``[B, H, tokens, n]``: sums over blocks are products with it,
    because atomic sums would differ from run to run."""
    blocks = torch.arange(lengths.shape[-1], device=lengths.device)
    return (block_of_tokens(lengths, tokens)[..., None] == blocks).float()


@torch.no_grad()
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: VariableBlocks,
    *,
    scale: float | None = None,
    impl: str = "auto",
    precision: str = "native",
) -> tuple[Tensor, Tensor]:
    """Attention of every query to the keys of the blocks that its own block keeps.

    Args:
        q: ``[B, Nq, H, D]``.
        k, v: ``[B, Nk, H, D]``.
        blocks: kept pairs.
        scale: factor on the logits; 1 / sqrt(D) when None.
        impl: "auto" or "reference": there is no other.
        precision: "native".

    Returns:
        out ``[B, Nq, H, D]`` in q's dtype and lse float32 ``[B, H, Nq]``; zeros and -inf for rows that keep
        nothing.

    Raises:
        ValueError: for tensors that do not fit together, another ``impl`` or ``precision``.
    """
    check_pair(q, k)
    if impl not in ("auto", "reference") or precision != "native":
        raise ValueError(
            f"blocks of variable length run as a reference in native precision only, got impl={impl!r} and "
            f"precision={precision!r}; execution='fixed' runs on every kernel"
        )
    scale = resolve_scale(scale, q.shape[-1])
    keys, values = k.permute(0, 2, 3, 1).float() * scale, v.transpose(1, 2).float()
    key_block = block_of_tokens(blocks.kv_lengths, k.shape[1])
    out, lse = torch.empty_like(q), torch.empty(q.shape[0], q.shape[2], q.shape[1], device=q.device)
    for rows, kept in _kept_rows(blocks, q.shape[1], k.shape[1]):
        seen = kept.gather(-1, key_block[:, :, None].expand(*kept.shape[:-1], -1))
        logits = (q[:, rows].transpose(1, 2).float() @ keys).masked_fill(~seen, -torch.inf)
        out[:, rows], lse[:, :, rows] = _softmax_product(logits, values, q.dtype)
    return out, lse


@torch.no_grad()
def pooled_attend(
    q: Tensor, k: Tensor, v: Tensor, blocks: VariableBlocks, *, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention to the means of the blocks that each row skips; see
    :func:`dit_sparse.kernels.pooled_attention`."""
    keys = pool_variable(k, blocks.kv_lengths).transpose(-1, -2) * scale
    values = pool_variable(v, blocks.kv_lengths)
    weight = blocks.kv_lengths.float().log()[:, :, None]  # -inf: nobody sees an empty block
    out = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    lse = torch.empty(q.shape[0], q.shape[2], q.shape[1], device=q.device)
    for rows, kept in _kept_rows(blocks, q.shape[1], k.shape[1]):
        logits = q[:, rows].transpose(1, 2).float() @ keys + weight
        out[:, rows], lse[:, :, rows] = _softmax_product(
            logits.masked_fill(kept, -torch.inf), values, torch.float32
        )
    return out, lse


def _kept_rows(blocks: VariableBlocks, queries: int, keys: int) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of queries and the kept key blocks of each: bool ``[B, H, rows, nK]``."""
    batch, heads, _, n_k = blocks.mask.shape
    query_block = block_of_tokens(blocks.q_lengths, queries)
    step = max(1, CHUNK_BYTES // (4 * batch * heads * keys))
    for start in range(0, queries, step):
        rows = slice(start, min(start + step, queries))
        yield rows, blocks.mask.gather(2, query_block[:, :, rows, None].expand(-1, -1, -1, n_k))


def _softmax_product(logits: Tensor, values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Output ``[B, rows, H, D]`` and log-sum-exp ``[B, H, rows]``; zeros and -inf for rows of nothing."""
    total = torch.logsumexp(logits, dim=-1)
    weights = torch.exp(logits - total.nan_to_num(neginf=0.0)[..., None])
    return (weights @ values).transpose(1, 2).to(dtype), total
