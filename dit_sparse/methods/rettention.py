"""Re-ttention: a very sparse static mask and the softmax statistics of an earlier step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dit_sparse.corrections import StatisticalReshape
from dit_sparse.engine import SparseMethod
from dit_sparse.methods.base import ComposedConfig, ModelInfo, register_method
from dit_sparse.orderings import AxisPermutation
from dit_sparse.schedule import DenseSteps
from dit_sparse.selectors import FrameBand

_DENSE_STEPS = {"cogvideox": 0.3}


@register_method
@dataclass(frozen=True)
class Rettention(ComposedConfig):
    """Re-ttention, a static band within the frame, repeated over all frames, and statistical reshape.

    A dense step every ``refresh_steps`` measures for every row which share of the softmax the band holds and
    what its output lacks; in between the band's output is scaled by that share and the lack is added.

    Deviations from the paper: rho is clamped at 1; the tokens sit in the axis order HWT, where the band is
    one run of blocks instead of a sliver of a block per frame; a band is as wide as its blocks; the lack is
    stored in bfloat16 or int8 where its budget asks for that. ``density`` replaces the band's width.

    Args:
        density: fraction of blocks to compute, in (0, 1]; overrides ``share``.
        share: width of the band as a fraction of the frame's tokens (the paper: 42 of CogVideoX's 1,350).
        correction: "reshape" is the method's own; the others replace it.
        refresh_steps: a dense step every so many steps.
        growth: what rho gains per step since the last refresh, the paper's lambda, in [0, 1].
        residual_bytes: most bytes per layer and branch for what the band lacks; the method raises where int8
            does not fit. 0 goes without: rows then shrink by what is skipped, which is worse than no
            correction at all on the embedded model.

    The dense guard is the paper's: 15 of 50 steps for CogVideoX, elsewhere the 10 of 50 of its image models.
    Carried per layer and branch: 2 bytes per row and head, and the residual, 1 to 2 bytes per element of the
    attention output (Wan-14B at 720p as int8: 0.4 GB in each of 40 layers and 2 branches).
    """

    name: ClassVar[str] = "rettention"
    citation: ClassVar[str] = "Re-ttention, arXiv 2505.22918"

    share: float = 0.031
    density: float | None = None
    correction: str = "reshape"
    refresh_steps: int = 5
    growth: float = 0.04
    residual_bytes: int = 2**29
    dense_steps: DenseSteps | None = None

    def build(self, model: ModelInfo) -> SparseMethod:
        """Compose the band, the order that makes it a run of blocks, and the reshape."""
        own = StatisticalReshape(self.refresh_steps, self.growth, self.residual_bytes)
        return self.compose(
            FrameBand(self.share, self.density),
            AxisPermutation("HWT"),
            correction=own if self.correction == "reshape" else None,
            dense_steps=_DENSE_STEPS.get(model.family, 0.2),
        )
