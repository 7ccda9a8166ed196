"""Sparse-vDiT: full, skip, diagonal, multi-diagonal or vertical stripes."""

from __future__ import annotations

import numpy as np
import torch

from dit_sparse.patterns import DENSE, MASK, SKIP
from dit_sparse.profiler.allocate import allocate
from dit_sparse.profiler.assignment import Assignment, assign
from dit_sparse.profiler.candidates import ALONE, Candidates
from dit_sparse.profiler.masks import BAND, HEAVIEST, STRIPES, pair_places, recall
from dit_sparse.profiler.problem import Problem
from dit_sparse.profiler.recipe import Ask, register_recipe
from dit_sparse.profiler.recipe_masks import error_of_recall

TRADE, LIMIT = 0.5, 1.0
"""The paper's lambda and epsilon."""
WIDTHS = (0.0625, 0.125, 0.25, 0.5)
"""Densities at which bands and stripes are tried."""


@register_recipe("sparse-vdit", budget=None, source="Sparse-vDiT, arXiv 2506.03065")
def sparse_vdit(ask: Ask) -> Assignment:
    """One of five modes for every head: full, skip, diagonal, multi-diagonal, vertical stripes.

    Sparse-vDiT (arXiv 2506.03065). A head takes the mode of least error + 0.5 * density, or stays full where
    that is above 1; with a budget the heads share it at one exchange rate of error for cost instead.
    Deviations: the error is relative to the mean square of the layer's output over heads; the two diagonals
    are bands in the head's best axis order: a diagonal in raster order, a multi-diagonal in the others; bands
    and stripes are stored as masks at four widths (with a budget, any), with the errors of recorded masks
    that miss as much mass; heads of one mode are not fused, as one launch serves all.
    """
    ask.only_as_published()
    problem = ask.problem
    offered = modes(problem)
    if ask.budget is not None:
        return allocate(problem, offered, ask.budget, sensitive=False, solver=ask.solver)
    heads = problem.sizes[2]
    loss = offered.error * heads + TRADE * offered.pairs / problem.total
    loss[:, offered.kind == DENSE] = np.inf
    choice = loss.argmin(axis=1)
    every = np.arange(len(choice))
    choice = np.where(loss[every, choice] > LIMIT, np.flatnonzero(offered.kind == DENSE)[0], choice)
    return assign(
        problem,
        offered.kind[choice].reshape(problem.sizes),
        offered.pairs[every, choice].reshape(problem.sizes),
        offered.error[every, choice].reshape(problem.sizes),
        rule=offered.rule[choice].reshape(problem.sizes),
    )


def modes(problem: Problem) -> Candidates:
    """Dense, skip where it was recorded, and bands and stripes at four widths."""
    groups, layers, heads = problem.sizes
    counts = np.array([max(int(width * problem.total), int(problem.forced.sum())) for width in WIDTHS])
    found = np.zeros((2, groups, layers, heads, len(WIDTHS)))
    for g in range(groups):
        for layer in range(layers):
            mass = problem.recording.mass[g, layer].float()
            for i, rule in enumerate((BAND, STRIPES)):
                kept = torch.stack([_recalls(problem, m, rule, counts) for m in mass])
                found[i, g, layer] = error_of_recall(problem, g, layer, kept.double().numpy())
    n = groups * layers * heads
    drawn = np.broadcast_to(np.tile(counts, 2), (n, 2 * len(WIDTHS)))
    skip = problem.templates("skip")[:1]
    widths = [1, len(skip), len(WIDTHS), len(WIDTHS)]
    return Candidates(
        kind=np.repeat([DENSE, SKIP, MASK, MASK], widths),
        rule=np.repeat([HEAVIEST, HEAVIEST, BAND, STRIPES], widths),
        family=np.repeat([ALONE, ALONE, 0, 1], widths),
        shape=np.zeros((sum(widths), 3)),
        pairs=np.concatenate(
            [np.full((n, 1), problem.total), problem.pairs[..., skip].reshape(n, -1), drawn], axis=1
        ),
        error=np.concatenate(
            [
                np.zeros((n, 1)),
                problem.error[..., skip].reshape(n, -1),
                *(np.minimum.accumulate(errors.reshape(n, -1), axis=1) for errors in found),
            ],
            axis=1,
        ),
        total=problem.total,
        continuous=frozenset({0, 1}),
    )


def _recalls(problem: Problem, mass: torch.Tensor, rule: int, counts: np.ndarray) -> torch.Tensor:
    """Mass kept by a head's band or stripes at every width."""
    places = pair_places(problem, mass, rule)
    return torch.stack([recall(problem, mass, (places < int(n)) | problem.forced) for n in counts])
