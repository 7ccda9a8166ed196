"""Observed heads, tried: they learn at the first observed call of a step group, and are used at the later
ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse import kernels
from dit_sparse.context import Observation
from dit_sparse.corrections import CorrectionInput, LowRankResidual, PooledCompensation
from dit_sparse.layout import BlockMap, pack_bits, unpack_bits
from dit_sparse.orderings import LearntShapes, TokenOrder, shape_orders
from dit_sparse.profiler.record_heads import Trial, energy, kept_by, trial_of
from dit_sparse.selectors import ObservedHeads
from dit_sparse.selectors.spend import spend

Lack = tuple[Tensor, Tensor]
Learnt = tuple[Tensor, Tensor, tuple[Lack, ...]]
"""Of some heads, on the CPU: shapes uint8 ``[B, heads]``; pairs at D densities as bits, uint8 ``[B, heads, D,
nQ, ceil(nK / 8)]``; what the output lacks at each (:meth:`LowRankResidual.lack`), if a residual is tried."""


@dataclass(frozen=True)
class HeadTrials:
    """What is tried.

    Args:
        densities: D of them, each in (0, 1]; every head spends its own.
        at: density at which the shapes of block are compared, in (0, 1).
        rank: directions of the residual, >= 0; 0 for none.
    """

    densities: Sequence[float]
    at: float
    rank: int

    def learn(self, seen: Observation, heads: slice) -> Learnt:
        """Learn what heads of kind observed would do from a call on."""
        choice = LearntShapes(self.at).best(seen, heads)
        found = _shaped(seen, heads, choice)
        error, forced = found.skip_error(), found.given.forced
        bits, lacks = [], []
        for density in self.densities:
            mask = spend(-error, forced, density, "head")
            bits.append(pack_bits(mask))
            if self.rank:
                levels, directions = self._residual.lack(_attended(found, mask), found.out)
                lacks.append((levels.cpu(), directions.cpu()))
        return choice.cpu(), torch.stack(bits, dim=2).cpu(), tuple(lacks)

    def apply(self, seen: Observation, heads: slice, learnt: Learnt) -> Trial:
        """Try that on a later call: skipped pairs enter through their means, the lack of then is added."""
        (choice, bits, lacks), device = learnt, seen.q.device
        found = _shaped(seen, heads, choice.to(device))
        mass, forced = found.mass(), found.given.forced
        tried = []
        for i, part in enumerate(bits.unbind(dim=2)):
            mask = unpack_bits(part.to(device), forced.shape[1]) | forced
            given = _attended(found, mask)
            if self.rank:
                out = self._residual.add(given, *(x.to(device) for x in lacks[i]))
            else:
                out = PooledCompensation().apply(given)
            tried.append((energy(out.float() - found.out.float()), *kept_by(found.given, mask, mass)))
        return trial_of(tried)

    @property
    def _residual(self) -> LowRankResidual:
        return LowRankResidual(self.rank)


def _shaped(seen: Observation, heads: slice, choice: Tensor) -> ObservedHeads:
    orders = shape_orders(seen.context, choice.device)
    return ObservedHeads.sorted(seen, TokenOrder.among(orders, choice.long()), heads)


def _attended(found: ObservedHeads, mask: Tensor) -> CorrectionInput:
    """Attention under a mask, as corrections are given it."""
    given = found.given
    tokens, context = given.q.shape[1], given.context
    block_map = BlockMap.from_mask(mask, tokens, tokens, context.block_size)
    qkv = (given.q, given.k, given.v)
    out, lse = kernels.block_sparse_attention(*qkv, block_map, scale=context.scale, return_lse=True)
    return CorrectionInput(*qkv, out, lse, block_map, context.scale, None, context)
