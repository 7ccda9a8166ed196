"""Precision as a choice of the layer, together with those of its heads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dit_sparse.kernels import PRECISIONS
from dit_sparse.profiler.allocate import head_weights, left_for_heads
from dit_sparse.profiler.assignment import Assignment, assign
from dit_sparse.profiler.budget import Budget
from dit_sparse.profiler.candidates import Candidates
from dit_sparse.profiler.problem import Problem
from dit_sparse.profiler.solver import steps, sweep

Floats = NDArray[np.float64]


def allocate_low_bit(
    problem: Problem, offered: Candidates, budget: Budget, *, sensitive: bool = True
) -> Assignment:
    """:func:`~dit_sparse.profiler.allocate.allocate`, where every layer also takes one of the precisions in
    the cost table.

    In a lower precision all heads of a layer cost less, and its error grows by that of dense attention in it
    (the two are taken to be independent). For every precision the hulls of a layer's heads make one hull of
    the layer; the layer chooses among the points of all.

    Raises:
        ValueError: for a budget of density, which knows no precision, without a table, and if nothing fits.
    """
    if problem.table is None or budget.name == "density":
        raise ValueError(
            f"low_bit=True with {'no cost table' if problem.table is None else 'a budget of density'}: lower "
            "precisions save time, so give cost=, a CostTable, and a budget of ms, speedup or output_error"
        )
    groups, layers, heads = problem.sizes
    cost = problem.cost(budget)
    names = problem.table.precisions
    weight, error_weight = head_weights(problem, sensitive or budget.name == "output_error")
    kinds = np.broadcast_to(offered.kind, offered.pairs.shape)
    lost = offered.error * error_weight[:, None]
    added = problem.recording.low_bit_error.double().numpy().reshape(groups * layers, -1)
    points: list[list[tuple[str, NDArray, Floats, Floats]]] = []
    for place in range(groups * layers):
        mine = slice(place * heads, (place + 1) * heads)
        points.append([])
        for name in names:
            at = cost.heads(kinds[mine], offered.pairs[mine] / problem.total, name) * weight[mine, None]
            extra = 0.0 if name == "native" else added[place, PRECISIONS.index(name)]
            points[-1].append((name, *_frontier(at, lost[mine], extra * error_weight[mine][0])))
    width = max(sum(len(x[2]) for x in options) for options in points)
    spent, missed = np.full((2, len(points), width), np.inf)
    for place, options in enumerate(points):
        for row, index in ((spent, 2), (missed, 3)):
            values = np.concatenate([option[index] for option in options])
            row[place, : len(values)] = values
    limit = problem.limit(budget)
    if budget.name == "output_error":
        found = sweep(missed, spent, limit)
    else:
        found = sweep(spent, missed, left_for_heads(problem, offered, cost, limit))
    choice = np.empty(len(lost), dtype=np.intp)
    precision = np.empty(groups * layers, dtype=np.int64)
    for place, options in enumerate(points):
        taken = int(found.choice[place])
        for name, choices, costs, _ in options:
            if taken < len(costs):
                precision[place] = PRECISIONS.index(name)
                choice[place * heads : (place + 1) * heads] = choices[taken]
                break
            taken -= len(costs)
    every = np.arange(len(lost))
    sizes = problem.sizes
    return assign(
        problem,
        offered.kind[choice].reshape(sizes),
        offered.pairs[every, choice].reshape(sizes),
        offered.error[every, choice].reshape(sizes),
        rule=offered.rule[choice].reshape(sizes),
        shape=offered.shape[choice].reshape(*sizes, 3),
        precision=precision.reshape(groups, layers),
    )


def _frontier(cost: Floats, error: Floats, added: float) -> tuple[NDArray[np.int32], Floats, Floats]:
    """Points of a layer along the common exchange rates of its heads, cheapest first.

    Returns:
        Choices ``[K, H]``, costs and errors ``[K]``.
    """
    walk = steps(cost, error)
    heads = np.arange(len(cost))
    choices = np.repeat(walk.first[None].astype(np.int32), len(walk.item) + 1, axis=0)
    for k, (item, reached) in enumerate(zip(walk.item.tolist(), walk.reached.tolist(), strict=True)):
        choices[k + 1 :, item] = reached
    # Sums from the choices themselves: differences of costs would add up their rounding.
    return choices, cost[heads, choices].sum(axis=1), error[heads, choices].sum(axis=1) + added
