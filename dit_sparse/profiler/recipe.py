"""A recipe: which kinds of attention may be chosen, and by which rule."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass

from dit_sparse.profiler.allocate import Solver
from dit_sparse.profiler.assignment import Assignment
from dit_sparse.profiler.budget import Budget
from dit_sparse.profiler.problem import Problem


@dataclass(frozen=True)
class Ask:
    """What a recipe is asked for.

    Args:
        problem: the recording and the measured times.
        budget: the limit; None where the recipe has a rule of its own instead.
        kinds: kinds that may be chosen, None for the recipe's own.
        low_bit: let layers take lower precisions.
        sensitive: weigh the error of a layer by its sensitivity.
        solver: see :mod:`~dit_sparse.profiler.solver`.
        share: overlap from which step groups share masks; None for never.
        lengths: recordings of the same model at other lengths.
        recipe: name, for messages.
    """

    problem: Problem
    budget: Budget | None
    kinds: Collection[str] | None = None
    low_bit: bool = False
    sensitive: bool = True
    solver: Solver = "sweep"
    share: float | None = None
    lengths: tuple[Problem, ...] = ()
    recipe: str = ""

    @property
    def limit(self) -> Budget:
        """The budget.

        Raises:
            ValueError: where there is none.
        """
        if self.budget is None:
            raise ValueError(f"recipe {self.recipe!r} needs a budget, such as Budget(density=0.25)")
        return self.budget

    def density(self) -> float:
        """The budget of a recipe that knows densities only.

        Raises:
            ValueError: for another one.
        """
        if self.limit.name != "density":
            raise ValueError(
                f"recipe {self.recipe!r} takes a budget of density, got {self.limit.name}={self.limit.value}"
            )
        return self.limit.value

    def only_as_published(self) -> None:
        """For recipes that fix the kinds and the precision.

        Raises:
            ValueError: where other ones were asked for.
        """
        if self.kinds is not None or self.low_bit:
            asked = f"kinds={tuple(self.kinds)}" if self.kinds is not None else "low_bit=True"
            raise ValueError(
                f"recipe {self.recipe!r} has kinds of its own, got {asked}: 'balanced' takes any"
            )


Plan = Callable[[Ask], Assignment]


@dataclass(frozen=True)
class Recipe:
    """A named way to choose.

    Args:
        name: what the command line calls it.
        summary: one line.
        source: the paper; "" for our own.
        budget: taken where none is given; None where the recipe has a rule of its own.
        plan: does it.
    """

    name: str
    summary: str
    source: str
    budget: Budget | None
    plan: Plan


_RECIPES: dict[str, Recipe] = {}


def register_recipe(name: str, *, budget: Budget | None, source: str = "") -> Callable[[Plan], Plan]:
    """Decorator: make a recipe known; its summary is the first line of the function's docstring.

    Raises:
        ValueError: if the name is taken.
    """

    def register(plan: Plan) -> Plan:
        if name in _RECIPES:
            raise ValueError(f"recipe {name!r} is registered already")
        summary = (inspect.getdoc(plan) or "").partition("\n\n")[0].replace("\n", " ")
        _RECIPES[name] = Recipe(name, summary, source, budget, plan)
        return plan

    return register


def registered() -> dict[str, Recipe]:
    """All recipes by name, sorted."""
    return dict(sorted(_RECIPES.items()))
