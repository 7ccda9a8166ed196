"""Error of single denoising steps, teacher-forced, for methods and compositions.

    python scripts/step_error.py --prompts 1

The embedded model runs densely and every step's latents are kept. Then every method runs over them: it gets
the latents of the dense run at each step, so that no error of an earlier step reaches a later one, and what
it makes of the step is compared: ||sparse - dense|| / ||dense||, of what the step adds to the latents. Unlike
the error of attention calls (output_error.py) this sees what the network makes of an error, and what guidance
does to those of the two branches.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import dit_sparse
from dit_sparse.adapters.loading import load_pipeline, quiet
from dit_sparse.corrections import Correction, LowRankResidual, PooledCompensation
from dit_sparse.embedded import DEFAULTS, default_call, heldout_prompts, tiny_wan_path
from dit_sparse.engine import SparseMethod
from dit_sparse.orderings import LearntAxes, LearntShapes, Ordering
from dit_sparse.schedule import Schedule
from dit_sparse.selectors import ObservedError, ObservedMass, Selector, TopK


def compositions(density: float, guard: int) -> dict[str, SparseMethod]:
    """What is compared, each with branches apart and sharing."""
    axes, shapes = LearntAxes(density), LearntShapes(density, compensated=False)
    heads, layers = (ObservedMass(density, scope, again=0.5) for scope in ("head", "layer"))
    pooled, residual, whole = PooledCompensation(), LowRankResidual(), LowRankResidual(10**6)
    by_error = (LearntShapes(density), ObservedError(density, "layer", again=0.5))
    parts: dict[str, tuple[Ordering, Selector, Correction | None]] = {
        "learnt axes, mass by head": (axes, heads, None),
        "learnt axes, mass by head, pooled": (axes, heads, pooled),
        "learnt axes, mass by head, pooled, residual": (axes, heads, residual),
        "learnt shapes, mass by layer": (shapes, layers, None),
        "learnt shapes, mass by layer, pooled": (shapes, layers, pooled),
        "learnt shapes, mass by layer, residual": (shapes, layers, LowRankResidual(base=None)),
        "learnt shapes, mass by layer, pooled, residual": (shapes, layers, residual),
        "learnt shapes, error by layer, pooled": (*by_error, pooled),
        "learnt shapes, error by layer, pooled, residual": (*by_error, residual),
        "learnt shapes, error by layer, pooled, whole residual": (*by_error, whole),
        "learnt shapes, mean_key by layer, pooled, residual": (
            LearntShapes(density),
            TopK(density, "layer", "mean_key"),
            residual,
        ),
    }
    made = {}
    for name, (ordering, selector, correction) in parts.items():
        method = SparseMethod(name, selector, ordering, correction, Schedule(guard, min_tokens=0))
        made[name] = method
        made[f"{name}, shared"] = replace(method, share_branches=True)
    return made


def latents(
    pipe: Any, call: Mapping[str, Any], seed: int, forced: list[Tensor] | None = None
) -> list[Tensor]:
    """Latents after every step; with ``forced`` each step starts from these instead of its predecessor's."""
    kept: list[Tensor] = []

    def after(_pipe: Any, step: int, _time: Any, given: dict[str, Any]) -> dict[str, Any]:
        kept.append(given["latents"].float().clone())
        return {} if forced is None else {"latents": forced[step].to(given["latents"])}

    with torch.no_grad():
        pipe(
            **call,
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type="latent",
            callback_on_step_end=after,
        )
    return kept


def main() -> None:
    """Print one row per composition: mean over sparse steps and prompts, then by step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--density", type=float, default=0.25)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--guard", type=int, default=2, help="dense steps at the start, at least 1")
    parser.add_argument("--guidance", type=float, default=DEFAULTS["guidance"])
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--first", type=int, default=4, help="held-out prompt to begin with")
    parser.add_argument("--only", nargs="*", help="compositions whose name contains one of these words")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if not 1 <= args.guard < args.steps:
        parser.error(f"--guard must be at least 1 and below --steps {args.steps}, got {args.guard}")
    quiet()
    pipe = load_pipeline(tiny_wan_path()).to(args.device)
    pipe.set_progress_bar_config(disable=True)
    prompts = heldout_prompts()[args.first : args.first + args.prompts]
    calls = [
        default_call(prompt, num_inference_steps=args.steps, guidance_scale=args.guidance)
        for prompt in prompts
    ]
    dense = [latents(pipe, call, seed) for seed, call in enumerate(calls, args.first)]
    print(f"tiny-wan, {len(prompts)} prompts from {args.first}, {args.steps} steps, {args.guard} dense, "
          f"guidance {args.guidance:g}, density {args.density}, {args.device}")  # fmt: skip
    for name, method in compositions(args.density, args.guard).items():
        if args.only and not any(word in name for word in args.only):
            continue
        errors = []
        for seed, (call, truth) in enumerate(zip(calls, dense), args.first):
            with dit_sparse.sparse_attention(pipe, method):
                found = latents(pipe, call, seed, truth)
            moved = [(b - a).norm() for a, b in pairwise(truth)]
            missed = [(x - y).norm() for x, y in zip(found[1:], truth[1:])]
            errors.append([float(m / n) for m, n in zip(missed, moved)][args.guard - 1 :])
        steps = [statistics.fmean(step) for step in zip(*errors)]
        row = " ".join(f"{step:.3f}" for step in steps)
        print(f"{name:52s} {statistics.fmean(steps):.3f}  {row}", flush=True)


if __name__ == "__main__":
    main()
