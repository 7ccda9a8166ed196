"""MoA: windows whose span is a rule for all lengths."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np

from dit_sparse.patterns import WINDOW
from dit_sparse.profiler.allocate import Solver, allocate
from dit_sparse.profiler.assignment import Assignment
from dit_sparse.profiler.budget import Budget
from dit_sparse.profiler.candidates import candidates
from dit_sparse.profiler.problem import Problem
from dit_sparse.profiler.recipe import Ask, register_recipe


@register_recipe("moa", budget=Budget(density=0.25), source="MoA, arXiv 2406.14909")
def moa(ask: Ask) -> Assignment:
    """A window for every head whose span is alpha + beta * N, which extrapolates to other lengths.

    MoA (arXiv 2406.14909), there for causal language models. The spans of all heads are chosen by
    sensitivity-weighted error at every recorded length; a line through the span at the profile's own length
    is fitted to the others by least squares, alpha in [0, span]. With one length alpha is 0: spans grow with
    the sequence. Deviations: windows on the (T, H, W) grid at the recorded proportions instead of sinks and
    a sliding window; the length's weight in the fit is its distance; no second search on the rules' own
    error.
    """
    ask.only_as_published()
    given = _windows(ask.problem, ask.limit, ask.solver)
    if not ask.lengths:
        warnings.warn(
            "recipe 'moa' has a recording of one length: spans grow in proportion to the sequence (alpha is "
            "0); give lengths=, recordings at others, to fit alpha",
            stacklevel=2,
        )
        return given
    ask.density()
    tokens = ask.problem.layout.num_tokens
    span = given.pairs / ask.problem.total * tokens
    product, square = np.zeros(span.shape), 0.0
    for other in ask.lengths:
        length = other.layout.num_tokens
        if other.sizes != ask.problem.sizes or length == tokens:
            raise ValueError(
                f"recordings of other lengths must have {ask.problem.sizes} (step groups, layers, heads) and "
                f"another number of tokens than {tokens}, got {other.sizes} and {length}"
            )
        there = _windows(other, ask.limit, ask.solver)
        lever = 1 - length / tokens
        product += lever * (there.pairs / other.total * length - span * length / tokens)
        square += lever**2
    alpha = np.clip(product / square, 0.0, span)
    return replace(given, constant=np.where(given.kind == WINDOW, alpha, 0.0))


def _windows(problem: Problem, budget: Budget, solver: Solver) -> Assignment:
    """Windows or dense, at any density, least output error."""
    offered = candidates(problem, ("window", "dense"), continuous=("window",))
    return allocate(problem, offered, budget, solver=solver)
