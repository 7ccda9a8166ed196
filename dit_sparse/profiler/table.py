"""An assignment as the table of a profile: bits of the masks, stored once where step groups share them."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from dit_sparse.layout import pack_bits
from dit_sparse.patterns import MASK, SKIP, WINDOW, PatternTable
from dit_sparse.profiler.assignment import Assignment, output_error, step_cost
from dit_sparse.profiler.budget import Budget
from dit_sparse.profiler.candidates import Candidates
from dit_sparse.profiler.masks import could_share, layer_masks, overlap
from dit_sparse.profiler.problem import Problem


def share_masks(
    problem: Problem, given: Assignment, offered: Candidates, budget: Budget, at_least: float
) -> Assignment:
    """Let step groups of a layer share their masks where these are nearly the same.

    A group joins an earlier one when its masked heads are the same, in the same orders, and every head's
    masks overlap enough (intersection over union). The heads then have the mean of their pairs, weighted by
    the lengths of the groups, drawn from the mean mass. Nothing is shared that would break the budget.

    Args:
        problem: masses and budget's costs.
        given: every group with its own masks.
        offered: what the errors of other densities are read from.
        budget: the limit.
        at_least: overlap in [0, 1] from which masks are shared.
    """
    groups, layers, _ = problem.sizes
    for layer in range(layers):
        if not any(could_share(given, layer, a, b) for a, b in combinations(range(groups), 2)):
            continue
        owners: dict[int, Tensor] = {}
        for g in range(groups):
            comparable = [o for o in owners if could_share(given, layer, o, g)]
            masked = bool((given.kind[g, layer] == MASK).any())
            if not masked:
                continue
            mine = layer_masks(problem, given, layer, [g])
            for owner in comparable:
                if overlap(owners[owner], mine).min() >= at_least:
                    joined = _joined(problem, given, offered, layer, owner, g)
                    if _holds(problem, joined, budget):
                        given = joined
                        break
            else:
                owners[g] = mine
    return given


def _joined(
    problem: Problem, given: Assignment, offered: Candidates, layer: int, owner: int, g: int
) -> Assignment:
    """``given`` with the masks of step group ``g`` stored under ``owner``."""
    _, layers, heads = problem.sizes
    mask_group = given.mask_group.copy()
    mask_group[g, layer] = owner
    members = np.flatnonzero(mask_group[:, layer] == owner)
    masked = np.flatnonzero(given.kind[owner, layer] == MASK)
    pairs, error = given.pairs.copy(), given.error.copy()
    share = problem.share[members]
    mean = np.floor(share @ pairs[members, layer][:, masked] / share.sum() + 1e-9).astype(np.int64)
    for member in members.tolist():
        place = (member * layers + layer) * heads + masked
        family = int(offered.family[np.flatnonzero(offered.kind == MASK)[0]])
        pairs[member, layer, masked] = mean
        error[member, layer, masked] = offered.error_at(place, family, mean)
    return replace(given, mask_group=mask_group, pairs=pairs, error=error)


def _holds(problem: Problem, given: Assignment, budget: Budget) -> bool:
    """Whether the budget is kept."""
    if budget.name == "output_error":
        return output_error(problem, given) <= problem.limit(budget) * (1 + 1e-9)
    return step_cost(problem, given, problem.cost(budget)) <= problem.limit(budget) * (1 + 1e-9)


def build_table(problem: Problem, given: Assignment) -> tuple[PatternTable, Assignment]:
    """Draw the masks and write everything down.

    Returns:
        The table, and the assignment with the pairs that the masks really have: a mask has the forced pairs,
        though fewer were asked for.
    """
    layers = problem.sizes[1]
    masked = given.kind == MASK
    mask_group = np.where(masked.any(axis=-1), given.mask_group, -1)
    pairs = given.pairs.copy()
    masks: dict[tuple[int, int], Tensor] = {}
    for layer in range(layers):
        for owner in sorted({int(g) for g in mask_group[:, layer] if g >= 0}):
            members = np.flatnonzero(mask_group[:, layer] == owner).tolist()
            drawn = layer_masks(problem, given, layer, members)
            masks[owner, layer] = pack_bits(drawn)
            for member in members:
                pairs[member, layer, masked[owner, layer]] = drawn.sum(dim=(1, 2)).numpy()
    drawn_pairs = replace(given, pairs=pairs)
    density = pairs / problem.total
    window = (given.kind == WINDOW)[..., None]
    table = PatternTable(
        kind=torch.from_numpy(given.kind.astype(np.uint8)),
        axes=torch.from_numpy(given.axes.astype(np.uint8)),
        # At least one pair, but for heads that are skipped.
        density=torch.from_numpy(
            np.where(given.kind == SKIP, density, density.clip(1 / problem.total, 1))
        ).float(),
        constant=torch.from_numpy(given.constant).float(),
        shape=torch.from_numpy(np.where(window, given.shape, 0.0)).float(),
        precision=torch.from_numpy(given.precision.astype(np.uint8)),
        mask_group=torch.from_numpy(mask_group.astype(np.int16)),
        masks=masks,
    )
    return table, drawn_pairs
