"""Our own recipes: whatever serves a head best, within a budget."""

from __future__ import annotations

import numpy as np

from dit_sparse.patterns import KINDS, OBSERVED
from dit_sparse.profiler.allocate import allocate
from dit_sparse.profiler.assignment import Assignment
from dit_sparse.profiler.budget import Budget
from dit_sparse.profiler.candidates import candidates
from dit_sparse.profiler.low_bit import allocate_low_bit
from dit_sparse.profiler.recipe import Ask, register_recipe
from dit_sparse.profiler.table import share_masks


@register_recipe("quality", budget=Budget(density=0.5))
def quality(ask: Ask) -> Assignment:
    """Any kind for any head, least output error at density 0.5."""
    return whatever_serves_best(ask)


@register_recipe("balanced", budget=Budget(density=0.25))
def balanced(ask: Ask) -> Assignment:
    """Any kind for any head, least output error at density 0.25."""
    return whatever_serves_best(ask)


@register_recipe("fast", budget=Budget(density=0.125))
def fast(ask: Ask) -> Assignment:
    """Any kind for any head, least output error at density 0.125."""
    return whatever_serves_best(ask)


def whatever_serves_best(ask: Ask) -> Assignment:
    """Choose for all heads of all layers and step groups together.

    The error of a layer counts by its sensitivity, unless asked otherwise. Masks and observed heads can have
    any density, the other kinds those that were recorded. Step groups share masks that are nearly the same.

    Where heads can be observed, what is lacking will be carried from one observed step to the next, which
    holds as long as a head does the same: heads choose once for all step groups (with lower precisions by
    step group still), and none is dynamic unless asked for.
    """
    learning = bool(ask.problem.templates("observed"))
    own = [kind for kind in KINDS if not learning or kind != "dynamic"]
    kinds = tuple(own if ask.kinds is None else ask.kinds)
    offered = candidates(ask.problem, kinds, continuous=("mask", "observed"))
    if ask.low_bit:
        given = allocate_low_bit(ask.problem, offered, ask.limit, sensitive=ask.sensitive)
    else:
        groups, layers, heads = ask.problem.sizes
        tie = np.tile(np.arange(layers * heads), groups) if OBSERVED in offered.kind else None
        given = allocate(ask.problem, offered, ask.limit, sensitive=ask.sensitive, tie=tie, solver=ask.solver)
    if ask.share is None or "mask" not in kinds:
        return given
    return share_masks(ask.problem, given, offered, ask.limit, ask.share)
