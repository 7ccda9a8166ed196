"""Solve for the candidates of all heads, and spend the last part of the budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dit_sparse.patterns import DENSE, OBSERVED
from dit_sparse.profiler.assignment import Assignment, assign
from dit_sparse.profiler.budget import Budget
from dit_sparse.profiler.candidates import Candidates
from dit_sparse.profiler.cost import Cost
from dit_sparse.profiler.problem import Problem
from dit_sparse.profiler.solver import exact, sweep

Floats = NDArray[np.float64]
Solver = Literal["sweep", "exact"]
HALVINGS = 60


def left_for_heads(problem: Problem, offered: Candidates, cost: Cost, limit: float) -> float:
    """What the heads may cost in a sparse step whatever they choose: without the most that reordering takes
    and, where they may be observed, what is carried for them and the steps at which they learn again."""
    learning = OBSERVED in offered.kind
    kind = np.full(problem.sizes, OBSERVED if learning else DENSE + 1)
    somewhere = problem.reordered(kind, problem.recording.axes.numpy())
    if learning and (observed := cost.observed()) is not None:
        limit = (limit - problem.relearning * observed) / max(1 - problem.relearning, 1e-9)
    if learning:
        limit -= problem.sizes[1] * cost.correction()
    return limit - float(problem.share @ somewhere.sum(axis=-1)) * cost.reorder()


def head_weights(problem: Problem, sensitive: bool) -> tuple[Floats, Floats]:
    """What cost and error of a head count in a mean sparse step, ``[n]`` each.

    Args:
        problem: steps and sensitivities.
        sensitive: weigh the error of a layer by its sensitivity, else all layers alike.
    """
    groups, layers, heads = problem.sizes
    share = np.broadcast_to(problem.share[:, None], (groups, layers))
    error = share * problem.sensitivity if sensitive else share / layers
    return np.repeat(share.ravel(), heads), np.repeat(error.ravel(), heads)


def allocate(
    problem: Problem,
    offered: Candidates,
    budget: Budget,
    *,
    sensitive: bool = True,
    tie: NDArray[np.intp] | None = None,
    solver: Solver = "sweep",
) -> Assignment:
    """Give every head one of its candidates: least error within the budget, or least cost within an error.

    Args:
        problem: what to choose for.
        offered: candidates of all heads.
        budget: the limit.
        sensitive: weigh layers by their sensitivity.
        tie: int ``[n]``, heads with equal numbers 0, 1, … choose the same candidate.
        solver: see :mod:`~dit_sparse.profiler.solver`.

    Raises:
        ValueError: if nothing fits; the message names the smallest budget that would.
    """
    if solver not in ("sweep", "exact"):
        raise ValueError(f"solver must be 'sweep' or 'exact', got {solver!r}")
    cost = problem.cost(budget)
    kinds = np.broadcast_to(offered.kind, offered.pairs.shape)
    weight, error_weight = head_weights(problem, sensitive or budget.name == "output_error")
    spent = cost.heads(kinds, offered.pairs / problem.total) * weight[:, None]
    lost = offered.error * error_weight[:, None]
    groups = np.arange(len(lost)) if tie is None else tie
    limit = problem.limit(budget)
    by_error = budget.name == "output_error"
    counted, kept_small = (lost, spent) if by_error else (spent, lost)
    if not by_error:
        limit = left_for_heads(problem, offered, cost, limit)
    counted, kept_small = (_tied(x, groups) for x in (counted, kept_small))
    try:
        if solver == "exact":
            found = exact(counted, kept_small, limit)
        else:
            found = sweep(counted, kept_small, limit, lambda item, a, b: offered.joined(a, b))
    except ValueError as error:
        raise ValueError(_too_little(problem, offered, budget, counted, cost)) from error
    choice = found.choice[groups]
    heads = np.arange(len(choice))
    kind, pairs, lost_by = (
        offered.kind[choice],
        offered.pairs[heads, choice].copy(),
        offered.error[heads, choice].copy(),
    )
    rule, shape = offered.rule[choice], offered.shape[choice]
    if found.partial is not None:
        item, to = found.partial
        members = np.flatnonzero(groups == item)
        start = int(found.choice[item])
        moved = start if offered.kind[to] == DENSE else to  # the one with a density

        def measured(p: NDArray[np.int64], e: Floats) -> float:
            if by_error:
                return float((error_weight[members] * e).sum())
            at = cost.heads(np.full(len(p), offered.kind[moved]), p / problem.total)
            return float((weight[members] * at).sum())

        rest = counted[np.arange(len(counted)), found.choice].sum() - counted[item, start]
        part = _part(offered, members, start, to, moved, lambda p, e: rest + measured(p, e) <= limit)
        if part is not None:
            pairs[members], lost_by[members] = part
            kind[members], rule[members] = offered.kind[moved], offered.rule[moved]
            shape[members] = offered.shape[moved]
    sizes = problem.sizes
    return assign(
        problem,
        kind.reshape(sizes),
        pairs.reshape(sizes),
        lost_by.reshape(sizes),
        rule=rule.reshape(sizes),
        shape=shape.reshape(*sizes, 3),
    )


def _part(
    offered: Candidates,
    heads: NDArray[np.intp],
    start: int,
    to: int,
    moved: int,
    fits: Callable[[NDArray[np.int64], Floats], bool],
) -> tuple[NDArray[np.int64], Floats] | None:
    """Pairs and errors as far from one candidate to another as fits; None where not even the start does."""
    a, b = offered.pairs[heads, start].astype(np.float64), offered.pairs[heads, to].astype(np.float64)
    round_off = np.floor if (b >= a).all() else np.ceil
    family = int(offered.family[moved])

    def at(part: float) -> tuple[NDArray[np.int64], Floats]:
        pairs = round_off(a + part * (b - a)).astype(np.int64)
        return pairs, offered.error_at(heads, family, pairs)

    low, high = 0.0, 1.0
    if not fits(*at(low)):
        return None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(*at(middle)) else (low, middle)
    return at(low)


def _tied(values: Floats, groups: NDArray[np.intp]) -> Floats:
    """Sums over the heads of every group, ``[groups, M]``."""
    summed = np.zeros((int(groups.max()) + 1, values.shape[1]))
    np.add.at(summed, groups, values)
    return summed


def _too_little(problem: Problem, offered: Candidates, budget: Budget, counted: Floats, cost: Cost) -> str:
    least = float(np.nanmin(counted, axis=1).sum())
    if budget.name == "output_error":
        return (
            f"an output_error of {budget.value} cannot be met: the least of what may be chosen is "
            f"{least**0.5:.4g}; allow more kinds, such as 'dense'"
        )
    if budget.name == "density":
        return (
            f"a density of {budget.value} cannot be met: the least of what was recorded and may be chosen is "
            f"{least:.4g}; record templates of lower density, or allow more kinds"
        )
    at_none, at_one = (left_for_heads(problem, offered, cost, limit) for limit in (0.0, 1.0))
    least = (least - at_none) / (at_one - at_none)
    at_least = cost.dense() / least
    if budget.name == "speedup":
        return f"a speedup of {budget.value} cannot be met: the most by the cost table is {at_least:.4g}"
    return f"{budget.value} ms cannot be met: the least by the cost table is {least:.4g} ms"
