"""How long what sparse attention lacks lasts, and in which form it is best carried.

    python scripts/residual_error.py

Calls of a dense run of the embedded model are captured. At one step orders and blocks are learnt and the lack
of the sparse output is taken; some steps later it is added, in several forms, to what the same blocks give
there. Printed is ||output - dense|| / ||dense|| of single calls, mean over layers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_sparse.adapters.loading import load_pipeline, quiet
from dit_sparse.embedded import default_call, heldout_prompts, tiny_wan_path
from dit_sparse.engine import observed_attention, uncorrected_attention
from dit_sparse.methods import ModelInfo, make_method
from dit_sparse.report.capture import CapturedCall, capture_calls, context_of
from dit_sparse.state import LayerState


def directions(lack: Tensor, rank: int, *, together: bool = False) -> Tensor:
    """``lack`` ``[B, N, H, D]`` by its ``rank`` directions of most energy, per head or over all heads."""
    rows = lack.flatten(2)[:, None] if together else lack.transpose(1, 2)
    u, s, v = torch.linalg.svd(rows, full_matrices=False)
    kept = (u[..., :rank] * s[..., None, :rank]) @ v[..., :rank, :]
    return kept.reshape(lack.shape) if together else kept.transpose(1, 2)


def patches(lack: Tensor, grid: tuple[int, int, int], edge: int) -> Tensor:
    """``lack`` by its means over patches of ``edge`` x ``edge`` tokens of a frame."""
    video = lack.flatten(2).transpose(1, 2).unflatten(-1, grid)
    means = F.avg_pool3d(video, (1, edge, edge), ceil_mode=True, count_include_pad=False)
    spread = means.repeat_interleave(edge, 3).repeat_interleave(edge, 4)[..., : grid[1], : grid[2]]
    return spread.flatten(2).transpose(1, 2).reshape(lack.shape)


def errors(taken: CapturedCall, later: Sequence[CapturedCall], density: float) -> dict[str, list[float]]:
    """By form: the error of one layer at every later step."""
    model = ModelInfo("wan", taken.num_layers, taken.q.shape[-1])
    method = make_method("mosaic", density=density, min_tokens=0, correction="none").build(model)
    guard = replace(method.schedule, dense_steps=range(taken.site.step + 1))
    method, state = replace(method, schedule=guard), LayerState()

    def sparse(call: CapturedCall) -> tuple[Tensor, Tensor]:
        context = context_of(method, call, state)
        return uncorrected_attention(call.q, call.k, call.v, method=method, context=context)

    observed_attention(taken.q, taken.k, taken.v, method=method, context=context_of(method, taken, state))
    out, lse = sparse(taken)
    rho = (lse - taken.lse).exp().clamp(max=1.0).transpose(1, 2)[..., None]
    lack, scaled = taken.out - out, taken.out - rho * out
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "nothing": lambda out: out,
        "its mean over the queries": lambda out: out + lack.mean(dim=1, keepdim=True),
        "its means over 4 x 4 patches of a frame": lambda out: out + patches(lack, taken.layout.grid, 4),
        "2 directions per head": lambda out: out + directions(lack, 2),
        "8 directions per head": lambda out: out + directions(lack, 8),
        "8 directions over all heads": lambda out: out + directions(lack, 8, together=True),
        "all of it": lambda out: out + lack,
        "all of it, the output scaled by rho": lambda out: rho * out + scaled,
        "the dense output of then, nothing computed": lambda _: taken.out,
    }
    found: dict[str, list[float]] = {name: [] for name in forms}
    for call in later:
        now = sparse(call)[0]
        for name, form in forms.items():
            found[name].append(float((form(now) - call.out).norm() / call.out.norm()))
    return found


def main() -> None:
    """Print a row for every form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--density", type=float, default=0.2)
    parser.add_argument("--learn", type=int, default=12, help="step, from 0")
    parser.add_argument("--use", type=int, nargs="+", default=[14, 17, 20], help="later steps")
    parser.add_argument("--prompt", type=int, default=5, help="held-out prompt, also the seed")
    args = parser.parse_args()
    if min(args.use) <= args.learn:
        parser.error(f"--use must lie behind --learn {args.learn}, got {min(args.use)}")
    quiet()
    call = default_call(heldout_prompts()[args.prompt])
    pipe = load_pipeline(tiny_wan_path(), device="cpu")
    calls = capture_calls(pipe, call, seed=args.prompt, steps=[args.learn, *args.use])
    at = {(call.site.step, call.site.layer): call for call in calls}
    layers = range(calls[0].num_layers)
    by_layer = [
        errors(at[args.learn, layer], [at[step, layer] for step in args.use], args.density)
        for layer in layers
    ]
    print(f"tiny-wan, density {args.density:g}, learnt at step {args.learn}, used at {args.use}")
    for name in by_layer[0]:
        means = [sum(values) / len(layers) for values in zip(*(found[name] for found in by_layer))]
        print(f"{name:44s}", *(f"{mean:.3f}" for mean in means))


if __name__ == "__main__":
    main()
