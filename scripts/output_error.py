"""Error of single attention calls, teacher-forced, for compositions of ordering, selector and correction.

    python scripts/output_error.py --density 0.25
    python scripts/output_error.py --density 0.25 --observe 2 --step 8

The embedded model runs densely; q, k and v of one step are kept for all layers (conditional branch), every
composition attends to them, and the error of the output, ||sparse - dense|| / ||dense||, is printed per
layer. It says where a composition loses, which captured mass does not: skipped mass whose values are like the
kept ones costs nothing. With --observe the compositions learn from dense attention at that step, as methods
do at the end of their dense guard, and attend at a later one.
"""

from __future__ import annotations

import argparse
import statistics

from dit_sparse.adapters.loading import load_pipeline, quiet
from dit_sparse.corrections import PooledCompensation
from dit_sparse.embedded import DEFAULTS, heldout_prompts, tiny_wan_path
from dit_sparse.engine import SparseMethod
from dit_sparse.orderings import (
    AxisPermutation,
    Cubes,
    LearntAxes,
    LearntShapes,
    Raster,
    SemanticClusters,
    Tiles,
)
from dit_sparse.report.capture import capture_calls, figures_by_layer
from dit_sparse.schedule import Schedule
from dit_sparse.selectors import (
    ClusterErrorAware,
    ClusterTopP,
    ErrorAware,
    LowBitEstimate,
    ObservedError,
    ObservedMass,
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


COMPARED = 32
"""Blocks of queries on which shapes are compared here, most of the 40 that the model has."""


def learning_compositions(density: float, block: int) -> dict[str, SparseMethod]:
    """Orders and masks that are learnt at an earlier step, and what they are compared with."""
    orderings = {
        "raster": Raster(),
        "cubes": Cubes(),
        "learnt axes": LearntAxes(density, None),
        "learnt axes, compensated": LearntShapes(density, None, COMPARED, tiles=False),
        "learnt shapes": LearntShapes(density, None, COMPARED, compensated=False),
        "learnt shapes, compensated": LearntShapes(density, None, COMPARED),
    }
    chosen: dict[str, Selector] = {
        "observed mass by head": ObservedMass(density, "head"),
        "observed mass by layer": ObservedMass(density, "layer"),
        "observed error by head": ObservedError(density, "head"),
        "observed error by layer": ObservedError(density, "layer"),
        "mean_key": TopK(density, "layer", "mean_key"),
        "oracle": Oracle(density, "layer"),
        "oracle error": Oracle(density, "layer", "compensated_error"),
    }
    return {
        f"{name}, {rule}{suffix}": SparseMethod(name, selector, ordering, correction, Schedule(), block)
        for name, ordering in orderings.items()
        for rule, selector in chosen.items()
        for suffix, correction in (("", None), (" + compensation", PooledCompensation()))
        if correction is not None or "error" not in rule
    }


def main() -> None:
    """Print one row per composition."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--density", type=float, default=0.25)
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--size", type=int, default=DEFAULTS["height"])
    parser.add_argument("--frames", type=int, default=DEFAULTS["num_frames"])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--step", type=int, default=5)
    parser.add_argument("--observe", type=int, help="step to learn at, before --step")
    parser.add_argument("--prompts", type=int, default=1, help="held-out prompts to average over")
    args = parser.parse_args()
    if args.observe is not None and args.observe >= args.step:
        parser.error(f"--observe must come before --step {args.step}, got {args.observe}")
    quiet()
    pipe = load_pipeline(tiny_wan_path())
    call = {
        "height": args.size,
        "width": args.size,
        "num_frames": args.frames,
        "num_inference_steps": args.steps,
        "guidance_scale": DEFAULTS["guidance"],
    }
    steps = (args.step,) if args.observe is None else (args.observe, args.step)
    prompts = heldout_prompts()[: args.prompts]
    captured = [
        capture_calls(pipe, call | {"prompt": prompt}, seed=seed, steps=steps)
        for seed, prompt in enumerate(prompts)
    ]
    made = compositions if args.observe is None else learning_compositions
    learnt = "" if args.observe is None else f", learnt at step {args.observe}"
    print(
        f"tiny-wan, {len(prompts)} prompts, step {args.step} of {args.steps}{learnt}, density {args.density}"
    )
    print(f"{'composition':66s} mean  recall  by layer")
    for name, method in made(args.density, args.block).items():
        figures = [figures_by_layer(method, calls) for calls in captured]
        errors = [statistics.fmean(f.error for f in layer) for layer in zip(*figures)]
        recall = statistics.fmean(f.recall for clip in figures for f in clip)
        row = " ".join(f"{error:.3f}" for error in errors)
        print(f"{name:66s} {statistics.fmean(errors):.3f} {recall:.3f}  {row}", flush=True)


if __name__ == "__main__":
    main()
