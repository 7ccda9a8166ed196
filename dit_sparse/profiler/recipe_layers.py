"""SVOO: a density for every layer, for dynamic selection."""

from __future__ import annotations

import numpy as np

from dit_sparse.profiler.allocate import allocate
from dit_sparse.profiler.assignment import Assignment
from dit_sparse.profiler.budget import Budget
from dit_sparse.profiler.candidates import candidates
from dit_sparse.profiler.recipe import Ask, register_recipe


@register_recipe("svoo", budget=Budget(density=0.25), source="SVOO, arXiv 2603.18636")
def svoo(ask: Ask) -> Assignment:
    """Dynamic selection everywhere, at a density per layer for all steps.

    SVOO (arXiv 2603.18636) holds that how sparse a layer is lies in the layer, hardly in the input, and
    profiles it offline. Here the layers share the budget at one exchange rate of their own error, by the
    error curves recorded. Deviations: pairs are selected by mean keys within fixed blocks instead of by
    co-clustering of queries and keys; the paper's rule for the densities is not known to us in full. A layer
    whose density reaches 1 is dense.
    """
    ask.only_as_published()
    problem = ask.problem
    groups, layers, heads = problem.sizes
    layer = np.tile(np.repeat(np.arange(layers), heads), groups)
    offered = candidates(problem, ("dynamic", "dense"), continuous=("dynamic",))
    return allocate(problem, offered, ask.limit, sensitive=False, tie=layer, solver=ask.solver)
