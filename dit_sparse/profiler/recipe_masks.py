"""Recipes of static masks: PAROAttention and AdaSpa."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from dit_sparse.patterns import DENSE, MASK
from dit_sparse.profiler.assignment import Assignment, assign, output_error, step_cost
from dit_sparse.profiler.budget import Budget
from dit_sparse.profiler.candidates import candidates
from dit_sparse.profiler.curves import by_missed_mass
from dit_sparse.profiler.masks import ROWS, draw, recall
from dit_sparse.profiler.problem import Problem
from dit_sparse.profiler.recipe import Ask, register_recipe
from dit_sparse.selectors.budgets import tiered_counts

WELL_SERVED = 0.8
"""AdaSpa: a head that keeps more than this mass gives part of its budget away."""


@register_recipe("paro", budget=Budget(density=0.3), source="PAROAttention, arXiv 2506.16054")
def paro(ask: Ask) -> Assignment:
    """Static masks of one density in every head's best axis order; the later half of the steps shares one.

    PAROAttention (arXiv 2506.16054). Deviations: the axis order is the one of least output error, not of the
    weighted scores, whose weight is unpublished; in the first half of the steps the steps of a group share a
    mask, where the paper has one for every step; a group that begins in the second half shares one mask with
    all that follow, in the order that serves them best together. A budget other than a density sets the
    common density.
    """
    ask.only_as_published()
    problem, budget = ask.problem, ask.limit
    template = _shared_later(problem)
    offered = candidates(problem, ("mask",), continuous=("mask",))
    every = np.arange(int(np.prod(problem.sizes)))

    def at(pairs: int) -> Assignment:
        if pairs >= problem.total:
            dense = np.full(problem.sizes, DENSE)
            return assign(problem, dense, np.full(problem.sizes, problem.total), np.zeros(problem.sizes))
        counts = np.full(problem.sizes, pairs)
        error = offered.error_at(every, 0, counts.ravel()).reshape(problem.sizes)
        return replace(template, pairs=counts, error=error)

    if budget.name == "density":
        return at(problem.masked_pairs(budget.value))
    return _at_limit(problem, budget, at)


def _at_limit(problem: Problem, budget: Budget, at: Callable[[int], Assignment]) -> Assignment:
    """The most pairs that a time allows, or the fewest that an error allows."""
    least, limit, by_error = int(problem.forced.sum()), problem.limit(budget), budget.name == "output_error"

    def enough(pairs: int) -> bool:
        """Whether fewer pairs meet the error, or more would break the time."""
        given = at(pairs)
        if by_error:
            return output_error(problem, given) <= limit
        return step_cost(problem, given, problem.cost(budget)) > limit

    low, high = least - 1, problem.total + (not by_error)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    if by_error:
        return at(high)
    if low < least:
        least_ms = step_cost(problem, at(least), problem.cost(budget))
        raise ValueError(
            f"{budget.name}={budget.value} cannot be met by masks alone: the pairs that are always kept take "
            f"{least_ms:.4g} ms"
        )
    return at(low)


def _shared_later(problem: Problem) -> Assignment:
    """Masks everywhere; groups of the second half share them, in the order of least mean error."""
    recording = problem.recording
    masks = assign(problem, np.full(problem.sizes, MASK), np.zeros(problem.sizes), np.zeros(problem.sizes))
    later = [
        g
        for g, (first, _) in enumerate(recording.schedule.groups)
        if 2 * first >= recording.schedule.num_steps
    ]
    if len(later) < 2:
        return masks
    axes, mask_group = masks.axes.copy(), masks.mask_group.copy()
    error = np.tensordot(problem.share[later], recording.axes_error.double().numpy()[later], axes=1)
    recorded = np.zeros(error.shape, dtype=bool)  # masses are known in these orders only
    for g in later:
        np.put_along_axis(recorded, axes[g][..., None], True, axis=-1)
    axes[later] = np.where(recorded, error, np.inf).argmin(axis=-1)
    mask_group[later] = later[0]
    return replace(masks, axes=axes, mask_group=mask_group)


@register_recipe("adaspa", budget=Budget(density=0.2), source="AdaSpa, arXiv 2502.21079")
def adaspa(ask: Ask) -> Assignment:
    """Static masks of exact block mass per step group, equal counts in the rows of a head, heads in tiers.

    AdaSpa (arXiv 2502.21079). Deviations: offline, so a mask serves all prompts; in the head's best axis
    order rather than in raster order; heads change tiers in pairs, which keeps the budget. Predicted errors
    are those of recorded masks that miss as much mass.
    """
    ask.only_as_published()
    problem, density = ask.problem, ask.density()
    groups, layers, _ = problem.sizes
    pairs, error = np.zeros(problem.sizes, dtype=np.int64), np.zeros(problem.sizes)
    if density == 1.0:
        return assign(problem, np.full(problem.sizes, DENSE), np.full(problem.sizes, problem.total), error)
    even = problem.masked_pairs(density)
    kept = problem.forced.sum()
    for g in range(groups):
        for layer in range(layers):
            mass = problem.recording.mass[g, layer].float()
            masks = torch.stack([draw(problem, m, ROWS, even) for m in mass])
            counts = tiered_counts(
                recall(problem, mass, masks)[None], kept, problem.total, density, WELL_SERVED
            )[0].tolist()
            pairs[g, layer] = counts
            kept_mass = [
                float(recall(problem, m, draw(problem, m, ROWS, n)))
                for m, n in zip(mass, counts, strict=True)
            ]
            error[g, layer] = error_of_recall(problem, g, layer, np.array(kept_mass)[:, None])[:, 0]
    return assign(problem, np.full(problem.sizes, MASK), pairs, error, rule=np.full(problem.sizes, ROWS))


def error_of_recall(problem: Problem, g: int, layer: int, kept: NDArray[np.float64]) -> NDArray[np.float64]:
    """Error ``[H, M]`` of masks of a layer that keep so much mass ``[H, M]``, by the recorded masks."""
    known = problem.templates("mask") + problem.templates("skip")
    if not problem.templates("mask"):
        kinds = sorted({template.kind for template in problem.recording.templates})
        raise ValueError(f"no template of kind 'mask' was recorded, only {', '.join(kinds)}")
    missed = 1 - problem.recording.recall[g, layer].double().numpy()[:, known]
    return by_missed_mass(missed, problem.error[g, layer][:, known], 1 - kept)
