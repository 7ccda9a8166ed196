"""One choice for every item, of least total error within a budget: the multiple-choice knapsack problem.

:func:`sweep` is the default. It follows the Lagrangian relaxation: for any exchange rate of error for cost
every item sits on its lower convex hull, so the optima over all rates are found by taking the steps of all
hulls in order of slope. Where the next step does not fit, later ones fill the rest. The total error is less
than one step of one item away from the optimum (H. Kellerer, U. Pferschy, D. Pisinger, Knapsack Problems,
2004, chapter 11), and more budget never gives more error. :func:`exact` is the integer program itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
ROUNDING = 1e-9
"""Relative excess over a budget that sums in another order may show."""


@dataclass(frozen=True)
class Solution:
    """What every item takes.

    Args:
        choice: int ``[n]``, index of a candidate for every item.
        partial: (item, candidate) of a step that was not taken because the budget paid for a part of it only,
            and parts of it can be had; None where there is no such step.
    """

    choice: NDArray[np.intp]
    partial: tuple[int, int] | None = None


def hull(cost: Floats, error: Floats) -> list[int]:
    """Candidates of one item on the lower convex hull, from the cheapest to the one of least error.

    Args:
        cost, error: ``[C]``; candidates with an infinite error or cost do not exist.

    Returns:
        Indices; cost rises and error falls strictly, and the gain per cost does not rise.
    """
    chain: list[int] = []
    costs, errors = cost.tolist(), error.tolist()
    least = np.inf
    for i in np.lexsort((error, cost)).tolist():
        if not errors[i] < least or costs[i] == np.inf:
            continue
        least = errors[i]
        while len(chain) >= 2:
            a, b = chain[-2], chain[-1]
            # b lies above the line from a to i: it is on no optimum.
            if (errors[b] - errors[i]) * (costs[b] - costs[a]) <= (errors[a] - errors[b]) * (
                costs[i] - costs[b]
            ):
                break
            chain.pop()
        chain.append(i)
    return chain


@dataclass(frozen=True)
class Steps:
    """Steps along the hulls of all items, steepest first: item, candidate reached, and what a step costs and
    gains, ``[S]`` each; ``first``: cheapest candidate of every item, ``[n]``."""

    first: NDArray[np.intp]
    item: NDArray[np.intp]
    reached: NDArray[np.intp]
    cost: Floats
    gain: Floats


def steps(cost: Floats, error: Floats) -> Steps:
    """All steps of the hulls, in order of gain per cost; those of one item keep their order.

    Raises:
        ValueError: if an item has no candidate.
    """
    chains = [hull(c, e) for c, e in zip(cost, error, strict=True)]
    empty = [i for i, chain in enumerate(chains) if not chain]
    if empty:
        raise ValueError(f"item {empty[0]} of {len(chains)} has no candidate: allow more kinds")
    first = np.array([chain[0] for chain in chains], dtype=np.intp)
    item = np.repeat(np.arange(len(chains)), [len(chain) - 1 for chain in chains])
    left = np.array([i for chain in chains for i in chain[:-1]], dtype=np.intp)
    reached = np.array([i for chain in chains for i in chain[1:]], dtype=np.intp)
    dearer = cost[item, reached] - cost[item, left]
    gain = error[item, left] - error[item, reached]
    slope = gain / dearer
    # Rounding must not put a step before the one that it follows on.
    for k in range(1, len(item)):
        if item[k] == item[k - 1] and slope[k] > slope[k - 1]:
            slope[k] = slope[k - 1]
    best = np.argsort(-slope, kind="stable")
    return Steps(first, item[best], reached[best], dearer[best], gain[best])


def sweep(
    cost: Floats,
    error: Floats,
    budget: float,
    joined: Callable[[int, int, int], bool] | None = None,
) -> Solution:
    """Choose by the Lagrangian sweep.

    Args:
        cost, error: ``[n, C]``, finite or infinite where an item has no such candidate. For least cost within
            an error exchange the two.
        budget: limit on the sum of the costs; it holds always.
        joined: whether an item can stand anywhere between two of its candidates (item, from, to). The sweep
            then ends at the first such step that it cannot pay in full, and reports it.

    Raises:
        ValueError: if the cheapest candidates together are above the budget.
    """
    walk = steps(cost, error)
    choice = walk.first.copy()
    left = budget - float(cost[np.arange(len(choice)), choice].sum())
    if left < -ROUNDING * abs(budget):
        raise ValueError(f"the budget {budget:.6g} is below the least possible {budget - left:.6g}")
    stuck: set[int] = set()
    rows = zip(walk.item.tolist(), walk.reached.tolist(), walk.cost.tolist(), strict=True)
    for item, reached, dearer in rows:
        if item in stuck:
            continue
        if dearer <= left:
            choice[item], left = reached, left - dearer
        elif joined is not None and joined(item, int(choice[item]), reached):
            return Solution(choice, (item, reached))
        else:
            stuck.add(item)
    return Solution(choice)


def exact(cost: Floats, error: Floats, budget: float) -> Solution:
    """Choose by integer programming (HiGHS, through :func:`scipy.optimize.milp`): the optimum, for small
    problems.

    Args:
        cost, error, budget: see :func:`sweep`.

    Raises:
        ValueError: if nothing fits the budget, or it is not solved.
        ImportError: without scipy.
    """
    optimize, sparse = _scipy()
    items, candidates = np.nonzero(np.isfinite(cost) & np.isfinite(error))
    columns = np.arange(len(items))
    one_each = sparse.csr_matrix((np.ones(len(items)), (items, columns)), shape=(len(cost), len(items)))
    spent, lost = cost[items, candidates], error[items, candidates]
    unit, worst = max(abs(budget), 1e-300), max(float(lost.max(initial=0.0)), 1e-300)
    found = optimize.milp(
        lost / worst,
        integrality=np.ones(len(items)),
        bounds=optimize.Bounds(0, 1),
        constraints=[
            optimize.LinearConstraint(one_each, 1, 1),
            # Its feasibility has a tolerance of 1e-6; ours has not.
            optimize.LinearConstraint(spent[None] / unit, -np.inf, np.sign(budget) * (1 - 2e-7)),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise ValueError(f"no choice fits the budget {budget:.6g}: {found.message}")
    choice = np.zeros(len(cost), dtype=np.intp)
    taken = np.flatnonzero(found.x > 0.5)
    choice[items[taken]] = candidates[taken]
    return Solution(choice)


def _scipy() -> Sequence:
    try:
        from scipy import optimize, sparse
    except ModuleNotFoundError as error:
        raise ImportError("the exact solver needs scipy: pip install 'dit-sparse[profile]'") from error
    return optimize, sparse
