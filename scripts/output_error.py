"""Error of single attention calls, teacher-forced, for compositions of ordering, selector and correction.

    python scripts/output_error.py --density 0.25

The embedded model runs densely; q, k and v of one step are kept for all layers (conditional branch), every
composition attends to them, and the error of the output, ||sparse - dense|| / ||dense||, is printed per
layer. It says where a composition loses, which captured mass does not: skipped mass whose values are like the
kept ones costs nothing.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from diffusers import WanPipeline
from torch import Tensor

from dit_sparse import kernels
from dit_sparse.adapters import find_adapter
from dit_sparse.adapters.attach import Attachment, scheduler_of
from dit_sparse.adapters.steps import StepTracker
from dit_sparse.corrections import PooledCompensation
from dit_sparse.embedded import DEFAULTS, heldout_prompts, tiny_wan_path
from dit_sparse.engine import SparseMethod, sparse_attention
from dit_sparse.layout import Site, TokenLayout
from dit_sparse.orderings import AxisPermutation, Raster, SemanticClusters, Tiles
from dit_sparse.runtime import Call, Runtime
from dit_sparse.schedule import Schedule
from dit_sparse.selectors import SelectionInput, TopK, keep_smallest
from dit_sparse.state import LayerState

Captured = tuple[Tensor, Tensor, Tensor, TokenLayout]


@dataclass(frozen=True)
class Oracle:
    """The heaviest pairs of the layer by true softmax mass: the limit of choosing by mass, no method."""

    density: float

    def select(self, given: SelectionInput) -> Tensor:
        """Bool mask ``[B, H, nQ, nK]``."""
        context = given.context
        logits = torch.einsum("bnhd,bmhd->bhnm", given.q, given.k) * context.scale
        mass = kernels.block_mass(given.q, given.k, logits.logsumexp(-1), context.block_size, context.scale)
        cost = (-mass).masked_fill(given.forced, -torch.inf)
        return keep_smallest(cost, self.density, dims=3) | given.forced


class Recorder(Runtime):
    """Runs everything dense and keeps q, k and v of one step."""

    def __init__(self, step: int) -> None:
        super().__init__(SparseMethod("none", TopK(1.0)))
        self.step = step
        self.kept: dict[int, Captured] = {}

    def run(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        """Dense attention."""
        if call.site.step == self.step and call.site.branch == "conditional":
            self.kept[call.site.layer] = (q.clone(), k.clone(), v.clone(), call.layout)
        return call.dense()


def capture(prompt: str, size: int, frames: int, steps: int, step: int) -> dict[int, Captured]:
    """q, k, v and the layout of every layer at one step."""
    pipe = WanPipeline.from_pretrained(tiny_wan_path(), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    recorder = Recorder(step)
    tracker = StepTracker(scheduler_of(pipe))
    attachment = Attachment(
        pipe.transformer, "transformer", find_adapter(pipe.transformer), recorder, tracker
    )
    pipe(
        prompt,
        height=size,
        width=size,
        num_frames=frames,
        num_inference_steps=steps,
        guidance_scale=DEFAULTS["guidance"],
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    )
    attachment.detach()
    return recorder.kept


def compositions(density: float, block: int) -> dict[str, SparseMethod]:
    """Orderings x selectors x corrections, all with one budget per layer."""
    orderings = {
        "raster": Raster(),
        "frame patches": Tiles(),
        "tiles 2x4x4": Tiles((2, 4, 4)),
        "axes HWT": AxisPermutation("HWT"),
        "clusters": SemanticClusters(),
    }
    made = {}
    for name, ordering in orderings.items():
        selectors = {
            "pooled": TopK(density, "layer", "pooled"),
            "mean_key": TopK(density, "layer", "mean_key"),
            "oracle": Oracle(density),
        }
        if name == "clusters":
            selectors["centroid"] = TopK(density, "layer", "centroid")
        for score, selector in selectors.items():
            for suffix, correction in (("", None), (" + compensation", PooledCompensation())):
                made[f"{name}, {score}{suffix}"] = SparseMethod(
                    name, selector, ordering, correction, Schedule(), block
                )
    return made


def main() -> None:
    """Print one row per composition."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--density", type=float, default=0.25)
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--size", type=int, default=DEFAULTS["height"])
    parser.add_argument("--frames", type=int, default=DEFAULTS["num_frames"])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--step", type=int, default=5)
    parser.add_argument("--prompt", default=heldout_prompts()[0])
    args = parser.parse_args()
    layers = capture(args.prompt, args.size, args.frames, args.steps, args.step)
    print(f"tiny-wan, {args.prompt!r}, step {args.step} of {args.steps}, density {args.density}")
    print(f"{'composition':38s} mean   by layer")
    for name, method in compositions(args.density, args.block).items():
        errors = []
        for layer, (q, k, v, layout) in sorted(layers.items()):
            heads_first = (x.transpose(1, 2) for x in (q, k, v))
            dense = torch.nn.functional.scaled_dot_product_attention(*heads_first).transpose(1, 2)
            context = method.context(layout, Site(layer, 0), LayerState(), head_dim=q.shape[-1])
            out, _ = sparse_attention(q, k, v, method=method, context=context)
            errors.append(float((out - dense).norm() / dense.norm()))
        row = " ".join(f"{error:.3f}" for error in errors)
        print(f"{name:38s} {sum(errors) / len(errors):.3f}  {row}", flush=True)


if __name__ == "__main__":
    main()
