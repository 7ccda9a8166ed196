"""What every head was given, and what that is predicted to cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dit_sparse.kernels import PRECISIONS
from dit_sparse.patterns import DENSE, OBSERVED, SKIP, Figures
from dit_sparse.profiler.cost import Cost
from dit_sparse.profiler.problem import Problem

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Assignment:
    """A choice for every head; arrays ``[G, L, H]`` unless noted.

    Args:
        kind: index into :data:`~dit_sparse.patterns.KINDS`.
        rule: how a mask is drawn, index into :data:`~dit_sparse.profiler.masks.RULES`.
        axes: order of the head's tokens, one that was recorded for it.
        pairs: int64, pairs computed.
        shape: ``[G, L, H, 3]``, proportions of windows.
        constant: tokens of the span that do not grow with the sequence.
        error: predicted, squared, relative to the layer.
        precision: ``[G, L]``, index into :data:`~dit_sparse.kernels.PRECISIONS`.
        mask_group: ``[G, L]``, step group that the masks of a layer are stored under; the masks of groups
            that share them are drawn from their mean mass.
    """

    kind: NDArray[np.int64]
    rule: NDArray[np.int64]
    axes: NDArray[np.int64]
    pairs: NDArray[np.int64]
    shape: Floats
    constant: Floats
    error: Floats
    precision: NDArray[np.int64]
    mask_group: NDArray[np.int64]


def assign(
    problem: Problem,
    kind: NDArray,
    pairs: NDArray,
    error: Floats,
    *,
    rule: NDArray | None = None,
    shape: Floats | None = None,
    axes: NDArray | None = None,
    precision: NDArray | None = None,
) -> Assignment:
    """An assignment in the recorded orders, in the precision of the input, every group with its own masks."""
    groups, layers, _ = problem.sizes
    recorded = problem.recording.axes.numpy().astype(np.int64) if axes is None else axes
    no_order = np.isin(kind, (DENSE, SKIP, OBSERVED))
    return Assignment(
        kind=kind.astype(np.int64),
        rule=np.zeros_like(kind, dtype=np.int64) if rule is None else rule.astype(np.int64),
        axes=np.where(no_order, 0, recorded),
        pairs=pairs.astype(np.int64),
        shape=np.zeros((*problem.sizes, 3)) if shape is None else shape,
        constant=np.zeros(problem.sizes),
        error=error,
        precision=np.zeros((groups, layers), dtype=np.int64) if precision is None else precision,
        mask_group=np.repeat(np.arange(groups)[:, None], layers, axis=1),
    )


def layer_error(problem: Problem, given: Assignment) -> Floats:
    """``[G, L]``: predicted squared relative error of every layer's output."""
    low_bit = problem.recording.low_bit_error.double().numpy()
    added = np.take_along_axis(low_bit, given.precision[..., None], axis=-1)[..., 0]
    return given.error.sum(axis=-1) + np.where(given.precision > 0, added, 0.0)


def output_error(problem: Problem, given: Assignment) -> float:
    """Predicted squared relative error of the transformer's output, mean over the sparse steps."""
    weighted = (problem.sensitivity * layer_error(problem, given)).sum(axis=-1)
    return float(problem.share @ weighted)


def density(problem: Problem, given: Assignment) -> float:
    """Mean fraction of pairs over the sparse steps."""
    return float(problem.share @ given.pairs.mean(axis=(1, 2))) / problem.total


def step_cost(problem: Problem, given: Assignment, cost: Cost) -> float:
    """Cost of a sparse step, mean over them."""
    by_head = np.zeros(problem.sizes)
    for index in np.unique(given.precision):
        at = given.precision == index
        by_head[at] = cost.heads(given.kind[at], given.pairs[at] / problem.total, PRECISIONS[index])
    by_layer = by_head.sum(axis=-1) + cost.reorder() * problem.reordered(given.kind, given.axes)
    if learns(given):
        by_layer = by_layer + cost.correction()
    # A layer that is dense throughout takes the dense kernel.
    whole = (given.kind == DENSE).all(axis=-1) & (given.precision == 0)
    by_layer = np.where(whole, cost.dense() / problem.sizes[1], by_layer)
    mean = float(problem.share @ by_layer.sum(axis=-1))
    if learns(given) and (observed := cost.observed()) is not None:
        mean += problem.relearning * (observed - mean)
    return mean


def learns(given: Assignment) -> bool:
    """Whether some head is observed: the profile then carries a residual, and some steps are dense for it."""
    return bool((given.kind == OBSERVED).any())


def figures(problem: Problem, given: Assignment) -> Figures:
    """Density, predicted errors, and the speed-up where times were measured."""
    cost = problem.time
    layers = layer_error(problem, given)
    return Figures(
        density=density(problem, given),
        error=float(np.sqrt(problem.share @ layers.mean(axis=-1))),
        output_error=float(np.sqrt(output_error(problem, given))),
        attention_speedup=None if cost is None else cost.dense() / step_cost(problem, given, cost),
        cost_table=None if problem.table is None else problem.table.label,
    )
