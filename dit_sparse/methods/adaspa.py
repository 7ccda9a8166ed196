"""AdaSpa: blockified patterns found online."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dit_sparse.engine import SparseMethod
from dit_sparse.methods.base import ComposedConfig, ModelInfo, register_method
from dit_sparse.selectors import ObservedMass


@register_method
@dataclass(frozen=True)
class AdaSpa(ComposedConfig):
    """AdaSpa, exact block mass searched online with a cached log-sum-exp.

    The last dense step sums the softmax in every block exactly; its heaviest blocks, equally many in every
    row of a head, are computed in all following steps. Halfway through them the sums are taken once more with
    the log-sum-exp of the first search, which needs no dense attention. Heads that capture much of their mass
    give part of their budget to those that capture least.

    Deviations from the paper: blocks are 128 tokens where the sequence is long, as the fast kernels want
    (the paper: 64; ``block_size=64`` gives them), text rows and columns and the diagonal are kept within the
    budget, and heads change tiers in pairs, at most half of them each way, so that the budget is exact at any
    density. Tiers and both searches are per guidance branch.

    Args:
        density: fraction of blocks to compute, in (0, 1]; the paper's 0.2.
        tier_recall: mass above which a head counts as well served, in [0, 1]; None for no tiers.
        second_search: fraction of the steps at which the mask is searched again (the paper: step 30 of 50);
            None for never.

    The dense guard is the paper's: 10 of 50 steps. The first search costs a pass over the logits beside a
    dense step, the second a pass alone.
    """

    name: ClassVar[str] = "adaspa"
    citation: ClassVar[str] = "AdaSpa, arXiv 2502.21079"

    density: float | None = 0.2
    tier_recall: float | None = 0.8
    second_search: float | None = 0.6

    def build(self, model: ModelInfo) -> SparseMethod:
        """Compose observed block mass by rows, with tiers, in raster order."""
        return self.compose(
            ObservedMass(
                self.target_density, "row", self.tier_recall, again=self.second_search, reuse_lse=True
            )
        )
