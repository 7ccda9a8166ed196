"""Is the attention time that the profiler predicts the time that its profiles take?

A cost table is measured as ``dit-sparse profile --measure-cost`` does, the time of hand-made profiles is
predicted from it, and a layer runs by them on smooth data (:func:`gpu_bench.models.smooth_qkv`).
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch

from dit_sparse import kernels, patterns
from dit_sparse.layout import pack_bits
from dit_sparse.methods import ModelInfo
from dit_sparse.methods.profiled import make_profiled
from dit_sparse.orderings import AXIS_ORDERS, axis_order, with_text
from dit_sparse.profiler import CostTable, measure_cost
from dit_sparse.profiler.cost import time_cost
from dit_sparse.report.clock import Stopwatch
from dit_sparse.runtime import Runtime
from dit_sparse.selectors import forced_pairs
from dit_sparse.selectors.spend import spend
from gpu_bench.harness import BLOCK, Row, Settings, benchmark, error_note
from gpu_bench.models import MODELS, STEPS, Model, smooth_qkv
from gpu_bench.recording import Tensors, runtime_call

Heads = tuple[tuple[str, str, float], ...]
PROFILES: dict[str, Heads] = {
    "masks": (("mask", "THW", 0.1), ("mask", "THW", 0.25), ("mask", "THW", 0.4)),
    "windows and masks": (("window", "THW", 0.3), ("mask", "HWT", 0.2), ("mask", "TWH", 0.1)),
    "dynamic": (("dynamic", "THW", 0.15), ("dynamic", "WTH", 0.25)),
    "mixed": (
        *(("dense", "THW", 1.0), ("skip", "THW", 0.0), ("mask", "HWT", 0.2), ("window", "WHT", 0.1)),
        *(("radial", "THW", 0.3), ("dynamic", "TWH", 0.15)),
    ),
}
"""(kind, axis order, density) of the heads, again and again. The first profile moves no token."""
WIDE = (0.25, 1.0, 1.0)
STAGES = {"attend": ("attend",), "plan": ("order", "select"), "reorder": ("permute", "restore")}
"""Parts of the prediction, and the stages of a call that they stand for."""


@benchmark("profile_times", default=False, group=None)
def bench_profile_times(settings: Settings) -> list[Row]:
    """Attention of a layer by hand-made profiles: predicted from a measured cost table, and measured."""
    names = ("Wan-1.3B 480p",) if settings.quick else ("Wan-1.3B 480p", "Wan-14B 720p")
    return [row for name in names for row in profile_rows(name, MODELS[name], settings)]


def profile_rows(name: str, model: Model, settings: Settings, block: tuple[int, int] = BLOCK) -> list[Row]:
    """A row for each of :data:`PROFILES`; the ratio is predicted by measured, with the host ahead."""
    torch.manual_seed(0)
    base: Row = {"shape": name, "N": model.layout.num_tokens, "H": model.heads}
    try:
        x = smooth_qkv(model.layout, model.heads, model.dim, settings.device)
        table = measure_cost(
            *(x[0].device, model.layout, model.heads, model.dim),
            command="gpu_check.py",
            dtype=x[0].dtype,
            block_size=block,
            timer=settings.ahead,
        )
    except Exception as error:  # out of memory at one shape must not cost the others
        return [base | {"note": error_note(error)}]
    rows = []
    for label, heads in PROFILES.items():
        row = base | {"profile": label}
        try:
            row |= _measured(made_profile(model, heads, x, block), table, x, model, settings)
        except Exception as error:
            row |= {"note": error_note(error)}
        rows.append(row)
    return rows


def _measured(
    profile: patterns.Profile, table: CostTable, x: Tensors, model: Model, settings: Settings
) -> Row:
    """Times of a layer in the middle of a step group: what is made once per group is there."""
    runtime = Runtime(make_profiled(profile, ["transformer"]).build(ModelInfo(model.family, 1, model.dim)))
    call = runtime_call(model.layout, 0, x[2])
    run, said = partial(runtime.run, *x, call), predicted(profile, table)
    alone_ms = settings.time(run)
    ms = settings.ahead(run, settings.budget_ms)
    watch, marks = Stopwatch(x[0].device), []
    runtime.recorder = lambda stage: marks.append((stage, watch.mark()))
    begun = watch.mark()
    runtime.run(*x, call)
    watch.now()
    spent = {
        end[0]: 1e3 * watch.seconds(start[1], end[1]) for start, end in pairwise([("begin", begun), *marks])
    }
    last = runtime.records[-1]
    if last.dense_reason is not None:
        raise RuntimeError(f"the layer ran dense: {last.dense_reason}")
    row: Row = {
        "density": round(float(last.density), 4),
        "dense ms": round(table.dense_ms(model.layout.num_tokens), 3),
    }
    row |= {"predicted ms": round(sum(said.values()), 3), "measured ms": round(ms, 3)}
    row |= {"host not ahead ms": round(alone_ms, 3)}
    row |= {"ratio": round(sum(said.values()) / ms, 3)}
    for part, stages in STAGES.items():
        found = sum(spent.get(stage, 0.0) for stage in stages)
        row |= {f"{part}: predicted": round(said[part], 3), f"{part}: one call": round(found, 3)}
    return row


def predicted(profile: patterns.Profile, table: CostTable) -> dict[str, float]:
    """ms of the layer by :data:`STAGES`, as the profiler counts them."""
    header, chosen = profile.header, profile.table
    cost = time_cost(table, header.model, header.grid)
    density = chosen.density.double().numpy()
    attend = float(table.sparse_ms(cost.tokens, density, heads=1).sum())
    moved = bool(chosen.axes.any()) or header.grid.text_position == "first"
    plan = float(cost.heads(chosen.kind.numpy(), density).sum()) - attend
    return {"attend": attend, "plan": plan, "reorder": cost.reorder() if moved else 0.0}


def made_profile(model: Model, heads: Heads, x: Tensors, block: tuple[int, int]) -> patterns.Profile:
    """A profile of one layer; masks keep the heaviest blocks of ``x`` by mean keys."""
    (q, k, _), layout, masks = x, model.layout, []
    kinds, axes, density = map(list, zip(*(heads[i % len(heads)] for i in range(model.heads))))
    sizes = (layout.num_tokens, layout.video_tokens, layout.text_tokens)
    forced = forced_pairs(*sizes, block, q.device)
    for head in (i for i, kind in enumerate(kinds) if kind == "mask"):
        order = with_text(axis_order(layout.grid, axes[head], q.device), layout)
        queries, keys = (kernels.permute_rows(t[:, :, head : head + 1], order) for t in (q, k))
        mass = kernels.mean_key_mass(queries, keys, block)
        mask = spend(-mass, forced, density[head], "head")[0, 0].cpu()
        masks.append(pack_bits(mask))
        density[head] = mask.float().mean().item()
    table = patterns.PatternTable(
        kind=torch.tensor([[[patterns.KINDS.index(kind) for kind in kinds]]], dtype=torch.uint8),
        axes=torch.tensor([[[AXIS_ORDERS.index(name) for name in axes]]], dtype=torch.uint8),
        density=torch.tensor([[density]]),
        constant=torch.zeros(1, 1, model.heads),
        shape=torch.tensor([[[WIDE if kind == "window" else (0.0, 0.0, 0.0) for kind in kinds]]]),
        precision=torch.zeros(1, 1, dtype=torch.uint8),
        mask_group=torch.tensor([[0 if masks else -1]], dtype=torch.int16),
        masks={(0, 0): torch.stack(masks)} if masks else {},
    )
    header = patterns.ProfileHeader(
        dit_sparse_version="",
        recipe="by hand",
        command="",
        torch_version="",
        diffusers_version="",
        device=str(q.device),
        model=patterns.ModelFacts(
            name="random",
            transformer="",
            family=model.family,
            config_sha256="0" * 64,
            layers=1,
            heads=model.heads,
            head_dim=model.dim,
        ),
        grid=patterns.GridFacts(
            frames=layout.frames,
            height=layout.height,
            width=layout.width,
            text_tokens=layout.text_tokens,
            text_position=layout.text_position,
            block_size=block,
        ),
        schedule=patterns.ScheduleFacts(scheduler="", num_steps=STEPS, groups=((0, STEPS),)),
        calibration=patterns.Calibration(prompts=(), seeds=()),
        figures=patterns.Figures(density=float(table.density.mean())),
    )
    return patterns.Profile(header, table)
