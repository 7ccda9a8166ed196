"""The multiple-choice knapsack: hulls, the sweep against the integer program, budgets."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_sparse.profiler.solver import exact, hull, steps, sweep


@st.composite
def problems(draw, items=6, candidates=5):
    """Costs and errors ``[n, C]`` of whole numbers, with gaps, ties and dominated candidates."""
    n, c = draw(st.integers(1, items)), draw(st.integers(1, candidates))
    numbers = st.lists(st.integers(0, 20), min_size=n * c, max_size=n * c)
    cost = np.array(draw(numbers), dtype=float).reshape(n, c)
    error = np.array(draw(numbers), dtype=float).reshape(n, c)
    gone = np.array(draw(st.lists(st.booleans(), min_size=n * c, max_size=n * c))).reshape(n, c)
    gone[:, 0] = False
    return cost, np.where(gone, np.inf, error)


def least(cost, error):
    """Cost of the cheapest choice."""
    return np.where(np.isfinite(error), cost, np.inf).min(axis=1).sum()


def total(values, choice):
    return values[np.arange(len(choice)), choice].sum()


def brute_force(cost, error, budget):
    best = {0.0: 0.0}  # spent -> least error
    for c, e in zip(cost, error):
        after = {}
        for spent, lost in best.items():
            for x, y in zip(c, e):
                if np.isfinite(y) and spent + x <= budget:
                    after[spent + x] = min(after.get(spent + x, np.inf), lost + y)
        best = after
    return min(best.values())


@given(problems(items=1, candidates=8))
def test_hull_is_the_lower_convex_hull(problem):
    cost, error = problem[0][0], problem[1][0]
    chain = hull(cost, error)
    assert (np.diff(cost[chain]) > 0).all() and (np.diff(error[chain]) < 0).all()
    slopes = -np.diff(error[chain]) / np.diff(cost[chain])
    assert (np.diff(slopes) <= 1e-12).all()
    # For every exchange rate some point of the hull is as good as the best of all.
    for rate in (0.0, 0.1, 0.5, 1.0, 2.0, 7.0):
        assert (error + rate * cost)[chain].min() == pytest.approx((error + rate * cost).min())
    exists = np.isfinite(error)
    assert cost[chain[0]] == cost[exists].min() and error[chain[-1]] == error.min()


@settings(max_examples=200)
@given(problems(), st.floats(0, 1))
def test_sweep_is_within_one_step_of_the_optimum(problem, part):
    cost, error = problem
    low, high = least(cost, error), np.where(np.isfinite(error), cost, 0).max(axis=1).sum()
    budget = low + part * (high - low)
    found = sweep(cost, error, budget)
    best = brute_force(cost, error, budget)
    assert total(cost, found.choice) <= budget + 1e-9
    lost = total(error, found.choice)
    walk = steps(cost, error)
    # The first step in order of slope that does not fit bounds what relaxation could still gain.
    paid = low + np.cumsum(walk.cost)
    missed = walk.gain[paid > budget + 1e-9]
    gap = missed[0] if len(missed) else 0.0
    assert best - 1e-9 <= lost <= best + gap + 1e-9
    if not len(missed) or np.isclose(paid, budget).any():
        assert lost == pytest.approx(best), "the hull is tight here"


@settings(max_examples=60)
@given(problems(), st.floats(0, 1))
def test_exact_is_the_optimum(problem, part):
    pytest.importorskip("scipy")
    cost, error = problem
    low, high = least(cost, error), np.where(np.isfinite(error), cost, 0).max(axis=1).sum()
    budget = np.floor(low + part * (high - low)) + 0.5
    found = exact(cost, error, budget)
    assert total(cost, found.choice) <= budget
    assert total(error, found.choice) == pytest.approx(brute_force(cost, error, budget))


@settings(max_examples=100)
@given(problems(), st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_more_budget_never_gives_more_error(problem, parts):
    cost, error = problem
    low, high = least(cost, error), np.where(np.isfinite(error), cost, 0).max(axis=1).sum()
    lost = [total(error, sweep(cost, error, low + p * (high - low)).choice) for p in sorted(parts)]
    assert (np.diff(lost) <= 1e-9).all()


@given(problems(), st.floats(0, 1))
def test_roles_can_be_exchanged(problem, part):
    """Least cost within an error: the limit holds, and no more than one step is wasted."""
    cost, error = problem
    finite = np.where(np.isfinite(error), cost, np.inf)
    best = error.min(axis=1).sum()
    limit = best + part * (total(error, finite.argmin(axis=1)) - best + 1)
    found = sweep(error, cost, limit)
    assert total(error, found.choice) <= limit + 1e-9


def test_a_partial_step_is_reported_and_ends_the_sweep():
    cost = np.array([[0.0, 4.0], [0.0, 1.0]])
    error = np.array([[8.0, 0.0], [1.5, 0.0]])
    whole = sweep(cost, error, 3.0)
    assert whole.choice.tolist() == [0, 1] and whole.partial is None
    part = sweep(cost, error, 3.0, joined=lambda item, a, b: item == 0)
    assert part.choice.tolist() == [0, 0] and part.partial == (0, 1)


def test_impossible_budgets_are_refused():
    cost, error = np.array([[1.0, 2.0]]), np.array([[1.0, 0.0]])
    with pytest.raises(ValueError, match=r"budget 0.5 is below the least possible 1"):
        sweep(cost, error, 0.5)
    with pytest.raises(ValueError, match="item 0 of 1 has no candidate"):
        sweep(cost, np.full((1, 2), np.inf), 5.0)
    pytest.importorskip("scipy")
    with pytest.raises(ValueError, match="no choice fits the budget 0.5"):
        exact(cost, error, 0.5)


def test_the_exact_solver_says_how_to_get_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r"pip install 'dit-sparse\[profile\]'"):
        exact(np.ones((1, 1)), np.ones((1, 1)), 2.0)
