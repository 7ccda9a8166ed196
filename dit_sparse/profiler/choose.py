"""From a recording and a budget to what every head does."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from importlib.metadata import PackageNotFoundError, version

import torch

import dit_sparse
from dit_sparse.patterns import OBSERVED, Figures, PatternTable, ProfileHeader
from dit_sparse.profiler.allocate import Solver
from dit_sparse.profiler.assignment import figures
from dit_sparse.profiler.budget import Budget, as_budget
from dit_sparse.profiler.cost_table import CostTable
from dit_sparse.profiler.problem import Problem
from dit_sparse.profiler.recipe import Ask
from dit_sparse.profiler.recipes import recipe_named
from dit_sparse.profiler.recording import Recording
from dit_sparse.profiler.table import build_table

SHARED_FROM = 0.9
"""Overlap from which step groups share masks: at a density of 0.25, one pair in twenty differs."""


def choose(
    recording: Recording,
    budget: Budget | float | None = None,
    *,
    kinds: Collection[str] | None = None,
    recipe: str = "balanced",
    cost: CostTable | None = None,
    low_bit: bool = False,
    sensitive: bool = True,
    solver: Solver = "sweep",
    share: float | None = SHARED_FROM,
    lengths: Sequence[Recording] = (),
) -> tuple[PatternTable, Figures]:
    """Give every (step group, layer, head) what serves it best within a budget.

    Equal input gives an equal table. Without sharing of masks, more budget never gives more predicted error.

    Args:
        recording: what is known of the heads.
        budget: the limit; a number is a density; None takes the recipe's own.
        kinds: of :data:`~dit_sparse.patterns.KINDS`, those that may be chosen; None for the recipe's own. The
            recipes of papers take no others.
        recipe: see :func:`~dit_sparse.profiler.recipes.recipes`.
        cost: measured times, for budgets of time and predicted speed-ups. Without, the density is the cost.
        low_bit: let layers also take the precisions in the cost table, at a time or error budget.
        sensitive: let the error of a layer count by how much the transformer's output feels it; without,
            all layers count alike. The recipes of papers are as published.
        solver: "sweep", or "exact" (needs scipy; for small models).
        share: overlap (intersection over union) in [0, 1] of every head's masks from which step groups share
            them, within the budget; None for never.
        lengths: recordings of the same model at other numbers of tokens, for the recipe "moa".

    Returns:
        The table, and what it is predicted to do.

    Raises:
        ValueError: for an unknown recipe or kind, a budget that cannot be met, and options that a recipe does
            not take; the message says what would work.
    """
    if share is not None and not 0.0 <= share <= 1.0:
        raise ValueError(f"share must be in [0, 1] or None, got {share}")
    found = recipe_named(recipe)
    if lengths and recipe != "moa":
        raise ValueError(
            f"recipe {recipe!r} takes a recording of one length, got {1 + len(lengths)}: use 'moa'"
        )
    limit = found.budget if budget is None else as_budget(budget)
    problem = Problem(recording, cost)
    others = tuple(Problem(other) for other in lengths)
    ask = Ask(problem, limit, kinds, low_bit, sensitive, solver, share, others, recipe)
    table, given = build_table(problem, found.plan(ask))
    return table, figures(problem, given)


def make_profile(
    recording: Recording,
    budget: Budget | float | None = None,
    recipe: str = "balanced",
    command: str = "",
    *,
    device: str = "cpu",
    kinds: Collection[str] | None = None,
    cost: CostTable | None = None,
    low_bit: bool = False,
    sensitive: bool = True,
    solver: Solver = "sweep",
    share: float | None = SHARED_FROM,
    lengths: Sequence[Recording] = (),
) -> tuple[ProfileHeader, PatternTable]:
    """:func:`choose`, with the header that :func:`~dit_sparse.patterns.file.save_profile` takes.

    Args:
        recording, budget, recipe: see :func:`choose`.
        command: that made the profile, for its header.
        device: that the recording was made on.
        kinds, cost, low_bit, sensitive, solver, share, lengths: see :func:`choose`.
    """
    table, predicted = choose(
        recording,
        budget,
        kinds=kinds,
        recipe=recipe,
        cost=cost,
        low_bit=low_bit,
        sensitive=sensitive,
        solver=solver,
        share=share,
        lengths=lengths,
    )
    header = ProfileHeader(
        dit_sparse_version=dit_sparse.__version__,
        recipe=recipe,
        correction="residual" if bool((table.kind == OBSERVED).any()) else "none",
        model=recording.model,
        grid=recording.grid,
        schedule=recording.schedule,
        calibration=recording.calibration,
        figures=predicted,
        command=command,
        torch_version=torch.__version__,
        diffusers_version=_version("diffusers"),
        device=device,
    )
    return header, table


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
