"""Look at attention while a video is generated densely: only results are kept, never queries or keys.

Every call asked for is analysed where it happens, so memory holds block maps and a few softmax rows per
head whatever the sequence length; see :func:`held_bytes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dit_sparse.adapters.attach import transformers_of
from dit_sparse.adapters.base import find_adapter
from dit_sparse.api import sparse_attention as attached
from dit_sparse.context import Observation, PlanContext
from dit_sparse.layout import TokenLayout, ceil_div
from dit_sparse.methods import MethodConfig
from dit_sparse.report.attention_look import DENSITIES, HeadMaps, Looker
from dit_sparse.report.attention_points import Point, check_points
from dit_sparse.report.capture import CapturedCall, Watch
from dit_sparse.report.generation import Frames, timed_run
from dit_sparse.report.pair import Observer, check_sparse

__all__ = ["DENSITIES", "HeadMaps", "Inspection", "Wanted", "held_bytes", "inspect_attention"]

MUCH_BYTES = 2 * 10**9
"""From here on the user is told what will be held."""


@dataclass(frozen=True)
class Wanted:
    """What to look at.

    Args:
        steps, layers, heads: indices from 0, ascending.
        points: query tokens (t, h, w), or how many to spread over the grid.
        method: the configuration whose blocks are shown.
    """

    steps: tuple[int, ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    points: int | tuple[Point, ...]
    method: MethodConfig

    @property
    def count(self) -> int:
        """Heads over all steps and layers."""
        return len(self.steps) * len(self.layers) * len(self.heads)


@dataclass
class Inspection:
    """All that was seen in one generation.

    Args:
        wanted: what was asked for.
        layout, block_size, num_steps: of the calls, alike at all of them.
        points: the query tokens.
        heads: by step, layer, head.
        frames: the decoded video, ``[F, H, W, 3]`` in [0, 1].
    """

    wanted: Wanted
    layout: TokenLayout
    block_size: tuple[int, int]
    num_steps: int
    points: list[Point]
    heads: list[HeadMaps] = field(default_factory=list)
    frames: Frames | None = None


def held_bytes(tokens: int, block: int, heads: int, points: int) -> int:
    """Bytes of results held until they are drawn.

    Args:
        tokens: sequence length.
        block: tokens per block.
        heads: heads looked at, over all steps and layers.
        points: query points.
    """
    maps = (4 + 4 + 2) * ceil_div(tokens, block) ** 2
    return heads * (maps + 4 * points * tokens)


def inspect_attention(
    pipe: Any,
    call: Mapping[str, Any],
    wanted: Wanted,
    *,
    seed: int,
    observer: Observer | None = None,
    warn: Callable[[str], None] | None = None,
) -> Inspection:
    """Generate a video densely and look at its attention on the way.

    The conditional branch is looked at, or the conditional half of a batch. See
    :class:`~dit_sparse.report.attention_look.Looker` for what the method knows where it plans.

    Args:
        pipe: a diffusers pipeline; left as it came.
        call: keyword arguments of its ``__call__``, ``num_inference_steps`` among them.
        wanted: what to look at.
        seed: of the start noise.
        observer: told (name, step, steps) for a progress bar.
        warn: told what will be held, where that is much, before any of it is.

    Raises:
        ValueError: for a field that the method refuses, for points outside of the grid (both before anything
            is looked at), or where a call ran in a way that cannot be observed.
    """
    check_sparse(pipe, {"method": wanted.method})
    tell = observer or (lambda *_: None)
    steps = call["num_inference_steps"]
    transformer: Any = next(iter(transformers_of(pipe).values()))
    family, head_dim = find_adapter(transformer).family, getattr(transformer.config, "attention_head_dim", 0)
    seen: list[Inspection] = []
    looker = Looker(wanted.method, wanted.heads, family, head_dim)

    def meet(context: PlanContext) -> None:
        if not seen:
            blocks = looker.block_size(context.layout, context.num_layers)
            seen.append(_begin(wanted, context.layout, blocks, steps, warn))

    def look(observed: Observation) -> None:
        context = observed.context
        # A batch holds the unconditional sample first: the prompt's own is the last.
        tensors = (x[-1:] for x in (observed.q, observed.k, observed.v, observed.out, observed.lse))
        captured = CapturedCall(context.site, context.layout, context.scale, context.num_layers, *tensors)
        seen[0].heads += looker.look(captured, seen[0].points)

    watch = Watch(look, frozenset(wanted.steps), frozenset(wanted.layers), meet)
    tell("generate", 0, steps)
    with attached(pipe, watch.method(steps)) as handle:
        run = timed_run(
            pipe, call, seed=seed, handle=handle, on_step=lambda step, total: tell("generate", step, total)
        )
    found = seen[0].heads if seen else []
    if len(found) != wanted.count:
        why = "; ".join(run.stats.fallbacks) or "the pipeline took other steps than it was asked for"
        raise ValueError(f"{wanted.count - len(found)} of {wanted.count} heads were never seen: {why}")
    found.sort(key=lambda head: (head.figures.step, head.figures.layer, head.figures.head))
    seen[0].frames = run.frames
    return seen[0]


def _begin(
    wanted: Wanted,
    layout: TokenLayout,
    block_size: tuple[int, int],
    steps: int,
    warn: Callable[[str], None] | None,
) -> Inspection:
    """An empty inspection, once the model has told its tokens."""
    points = check_points(wanted.points, layout.grid)
    held = held_bytes(layout.num_tokens, block_size[0], wanted.count, len(points))
    if held > MUCH_BYTES and warn is not None:
        warn(much_text(held, wanted.count))
    return Inspection(wanted, layout, block_size, steps, points)


def much_text(held: int, heads: int) -> str:
    """What to tell the user about much memory."""
    return (
        f"{held / 1e9:.1f} GB of attention maps will be held in memory, of {heads} heads in all: fewer "
        "--steps-at, --layers, --heads or --points hold less"
    )
