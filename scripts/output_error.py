"""Error of single attention calls, teacher-forced, for compositions of ordering, selector and correction.

    python scripts/output_error.py --density 0.25

The embedded model runs densely; q, k and v of one step are kept for all layers (conditional branch), every
composition attends to them, and the error of the output, ||sparse - dense|| / ||dense||, is printed per
layer. It says where a composition loses, which captured mass does not: skipped mass whose values are like the
kept ones costs nothing.
"""

from __future__ import annotations

import argparse

from dit_sparse.adapters.loading import load_pipeline, quiet
from dit_sparse.corrections import PooledCompensation
from dit_sparse.embedded import DEFAULTS, heldout_prompts, tiny_wan_path
from dit_sparse.engine import SparseMethod
from dit_sparse.orderings import AxisPermutation, Cubes, Raster, SemanticClusters, Tiles
from dit_sparse.report.capture import capture_calls, figures_by_layer
from dit_sparse.schedule import Schedule
from dit_sparse.selectors import (
    ClusterErrorAware,
    ClusterTopP,
    ErrorAware,
    LowBitEstimate,
    Oracle,
    Selector,
    TopK,
)

NEEDS_CLUSTERS = ("centroid", "whole clusters", "whole clusters, routed")
NEEDS_ONE_ORDER = ("4 bits",)


def selectors(density: float) -> dict[str, Selector]:
    """By what they choose pairs, all with one budget per layer."""
    return {
        "pooled": TopK(density, "layer", "pooled"),
        "mean_key": TopK(density, "layer", "mean_key"),
        "centroid": TopK(density, "layer", "centroid"),
        "4 bits": LowBitEstimate(density=density, scope="layer"),
        "centroid error": ErrorAware(density, "layer", "centroid"),
        "moment error": ErrorAware(density, "layer", "moments"),
        "oracle": Oracle(density, "layer"),
        "oracle error": Oracle(density, "layer", "compensated_error"),
        "whole clusters": ClusterTopP(density=density),
        "whole clusters, routed": ClusterErrorAware(density),
    }


def compositions(density: float, block: int) -> dict[str, SparseMethod]:
    """Orderings x selectors x corrections."""
    orderings = {
        "raster": Raster(),
        "frame patches": Tiles(),
        "cubes": Cubes(),
        "axes HWT": AxisPermutation("HWT"),
        "clusters": SemanticClusters(),
    }
    made = {}
    for name, ordering in orderings.items():
        for score, selector in selectors(density).items():
            if score in (NEEDS_ONE_ORDER if name == "clusters" else NEEDS_CLUSTERS):
                continue
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
    quiet()
    pipe = load_pipeline(tiny_wan_path())
    call = {
        "prompt": args.prompt,
        "height": args.size,
        "width": args.size,
        "num_frames": args.frames,
        "num_inference_steps": args.steps,
        "guidance_scale": DEFAULTS["guidance"],
    }
    calls = capture_calls(pipe, call, seed=0, steps=(args.step,))
    print(f"tiny-wan, {args.prompt!r}, step {args.step} of {args.steps}, density {args.density}")
    print(f"{'composition':46s} mean  recall  by layer")
    for name, method in compositions(args.density, args.block).items():
        figures = figures_by_layer(method, calls)
        errors = [figure.error for figure in figures]
        recall = sum(figure.recall for figure in figures) / len(figures)
        row = " ".join(f"{error:.3f}" for error in errors)
        print(f"{name:46s} {sum(errors) / len(errors):.3f} {recall:.3f}  {row}", flush=True)


if __name__ == "__main__":
    main()
