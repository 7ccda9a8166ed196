"""What a mask of one grid says of the pairs of another.

A token of the new grid stands where its centre lies on the old one, in relative (t, h, w), and belongs there
to a block of the old sequence in the same axis order. A pair of new tokens is read from the old mask twice:

- by place: the blocks in which the two stand. That keeps what is bound to places, as sinks and borders;
- by distance: the query's block, and the block of the token as far from it, in tokens along T, H and W, as
  the new key is from the new query, at most at the old grid's edge. Rotary positions make attention a
  function of that distance, and without it two new frames in the place of an old one could not be told apart.

The score of a pair of new blocks is the mean of both, over the pairs of their tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.layout import TokenLayout, ceil_div
from dit_sparse.orderings import axis_order, forced_pairs
from dit_sparse.patterns.checks import block_counts

SAMPLES = 3
"""Tokens of a block that stand for all of it where distances are read: nine pairs per pair of blocks."""

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Blocks:
    """A sequence cut into blocks, video first, then text.

    Args:
        layout: token grid and text.
        size: (query block, key block) in tokens.
    """

    layout: TokenLayout
    size: tuple[int, int]

    @property
    def counts(self) -> tuple[int, int]:
        """(nQ, nK)."""
        return block_counts(self.layout, self.size)

    def forced(self) -> Tensor:
        """Bool ``[nQ, nK]``: rows and columns with text, and the diagonal."""
        layout = self.layout
        return forced_pairs(layout.num_tokens, layout.video_tokens, layout.text_tokens, self.size, _CPU)


class GridChange:
    """Scores masks of one sequence for another. Takes 36 bytes per pair of new blocks and axis order.

    Args:
        old, new: the two sequences.
    """

    def __init__(self, old: Blocks, new: Blocks) -> None:
        self.old, self.new = old, new
        self._tables: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def score(self, mask: Tensor, axes: str) -> Tensor:
        """Means of a mask.

        Args:
            mask: float32 ``[nQ, nK]`` of the old sequence.
            axes: axis order of both sequences.

        Returns:
            float32 ``[n'Q, n'K]`` in [0, 1]; what it says of pairs with text is of no use.
        """
        if axes not in self._tables:
            shares = self.shares(axes, 0), self.shares(axes, 1)
            self._tables[axes] = (*shares, self.distant_pairs(axes))
        rows, columns, distant = self._tables[axes]
        by_place = torch.sparse.mm(columns, torch.sparse.mm(rows, mask).T.contiguous()).T
        by_distance = mask.flatten().index_select(0, distant.flatten()).view(distant.shape).mean(dim=0)
        return (by_place + by_distance) / 2

    def shares(self, axes: str, axis: int) -> Tensor:
        """Sparse float32 ``[n', n]``: share of a new block's video tokens that stand in an old block.

        Rows sum to one, or to zero for blocks of text alone. ``axis`` is 0 for queries, 1 for keys.
        """
        raster = axis_order(self.new.layout.grid, axes, _CPU)
        block = torch.arange(len(raster)) // self.new.size[axis]
        stands = self._old_block(self._stands_at(raster), axes, axis)
        share = 1.0 / torch.bincount(block)[block]
        counts = (self.new.counts[axis], self.old.counts[axis])
        index = torch.stack([block, stands])
        return torch.sparse_coo_tensor(index, share, counts, check_invariants=True).coalesce()

    def distant_pairs(self, axes: str) -> Tensor:
        """int32 ``[SAMPLES ** 2, n'Q, n'K]``: where in the flattened old mask the sampled pairs are read."""
        q, k = (self._sampled(axes, axis) for axis in (0, 1))
        n_k, edge = self.old.counts[1], torch.tensor(self.old.layout.grid) - 1
        token, keys = self._coordinates(q), self._coordinates(k.flatten())
        at = self._stands_at(q)
        row = self._old_block(at, axes, 0) * n_k
        pairs = torch.empty(SAMPLES, SAMPLES, len(q), len(k), dtype=torch.int32)
        for i in range(len(q)):  # all at once would take a hundred times the memory
            moved = at[i, :, None] + keys - token[i, :, None]  # [S, n'K * S, 3]
            block = self._old_block(torch.minimum(moved.clamp(min=0), edge), axes, 1)
            pairs[:, :, i] = (row[i, :, None] + block).view(SAMPLES, len(k), SAMPLES).transpose(1, 2)
        return pairs.flatten(0, 1)

    def _sampled(self, axes: str, axis: int) -> Tensor:
        """int64 ``[n', SAMPLES]``: raster indices of tokens spread over every new block; blocks of text alone
        have the last token of the video."""
        size, video = self.new.size[axis], self.new.layout.video_tokens
        start = (torch.arange(self.new.counts[axis]) * size).clamp(max=video - 1)
        length = (video - start).clamp(max=size)
        spread = (2 * torch.arange(SAMPLES) + 1) * length[:, None] // (2 * SAMPLES)
        return axis_order(self.new.layout.grid, axes, _CPU)[start[:, None] + spread]

    def _coordinates(self, raster: Tensor) -> Tensor:
        """int64 ``[..., 3]``: (t, h, w) of new tokens."""
        return torch.stack(torch.unravel_index(raster, self.new.layout.grid), dim=-1)

    def _stands_at(self, raster: Tensor) -> Tensor:
        """int64 ``[..., 3]``: (t, h, w) on the old grid of new tokens, centre to centre. In whole numbers, so
        that equal grids map every token to itself."""
        old, new = (torch.tensor(blocks.layout.grid) for blocks in (self.old, self.new))
        return (2 * self._coordinates(raster) + 1) * old // (2 * new)

    def _old_block(self, token: Tensor, axes: str, axis: int) -> Tensor:
        """Block of the old sequence in which tokens ``[..., 3]`` of the old grid are."""
        layout, size = self.old.layout, self.old.size[axis]
        a, b, c = ("THW".index(name) for name in axes)
        place = (token[..., a] * layout.grid[b] + token[..., b]) * layout.grid[c] + token[..., c]
        # Old blocks that hold text were kept whole because of it: that says nothing about the video in them.
        video = layout.video_tokens
        whole = video // size if layout.text_tokens else ceil_div(video, size)
        return (place // size).clamp(max=max(0, whole - 1))
