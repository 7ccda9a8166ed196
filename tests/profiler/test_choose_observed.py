"""Choosing among what heads do by themselves and what they learn in the run."""

import dataclasses

import numpy as np
import pytest
import torch
from cost_samples import linear_table
from planted_recording import planted

from dit_sparse.patterns import DENSE, DYNAMIC, KINDS, MASK, OBSERVED
from dit_sparse.patterns.file import load_profile, save_profile
from dit_sparse.profiler.allocate import left_for_heads
from dit_sparse.profiler.assignment import step_cost
from dit_sparse.profiler.budget import Budget
from dit_sparse.profiler.candidates import candidates
from dit_sparse.profiler.choose import choose, make_profile
from dit_sparse.profiler.problem import Problem
from dit_sparse.profiler.recipe import Ask
from dit_sparse.profiler.recipe_any import whatever_serves_best
from dit_sparse.profiler.recipes import recipes

PLANNING = {"unpack": 0.01, "map": 0.01, "score": 0.05, "reorder": 0.1, "correct": 0.2}
TABLE = linear_table(lengths=(320,), planning=PLANNING)


def test_heads_learn_where_that_serves_them_best():
    recording = planted(observed=True, better=("observed", [1]), sharp=np.full((2, 3), 1.0))
    factor = torch.ones(len(recording.templates))
    factor[[t.kind == "observed" for t in recording.templates]] = 4.0
    error = recording.error.clone()
    error[:, :, [0, 2]] *= factor
    table, _ = choose(dataclasses.replace(recording, error=error), 0.3)
    assert (table.kind[:, :, 1] == OBSERVED).all() and (table.kind[:, :, [0, 2]] == MASK).all()
    assert (table.axes[table.kind == OBSERVED] == 0).all()


@pytest.mark.parametrize("text", [(0, "none"), (20, "last"), (20, "first")], ids=lambda t: t[1])
@pytest.mark.parametrize("wanted", [0.15, 0.25, 0.5, 0.8])
def test_density_budgets_are_met_at_any_density(text, wanted):
    recording = planted(((1, 3), (3, 10)), observed=True, text=text[0], position=text[1])
    if text[0]:
        wanted = max(wanted, 0.3)
    table, found = choose(recording, wanted)
    assert (table.kind == OBSERVED).any()
    share = torch.tensor([2, 7]) / 9
    mean = float(share @ table.density.mean(dim=(1, 2)))
    assert found.density == pytest.approx(mean, abs=1e-6)
    assert 0.98 * wanted <= mean <= wanted + 1e-6


def test_a_head_chooses_once_for_all_steps():
    """What is lacking is carried over the borders of step groups."""
    recording = planted(drift=0.5, observed=True)
    table, _ = choose(recording, 0.3, share=None)
    assert torch.equal(table.kind[0], table.kind[1]) and torch.equal(table.density[0], table.density[1])
    apart, _ = choose(recording, 0.3, share=None, kinds=[k for k in KINDS if k != "observed"])
    assert not torch.equal(apart.density[0], apart.density[1])


def test_the_header_names_the_correction(tmp_path):
    for recording, kinds, expected in (
        (planted(observed=True), None, "residual"),
        (planted(observed=True), ("mask",), "none"),
        (planted(), None, "none"),
    ):
        header, table = make_profile(recording, 0.3, kinds=kinds)
        assert header.correction == expected
        assert bool((table.kind == OBSERVED).any()) == (expected == "residual")
        save_profile(tmp_path / "a", header, table)
        assert load_profile(tmp_path / "a").header.correction == expected


def test_recordings_without_them_are_chosen_from_as_before():
    old, new = planted(), planted(observed=True)
    table, found = choose(old, 0.3)
    assert not (table.kind == OBSERVED).any()
    others = [kind for kind in KINDS if kind != "observed"]
    again, same = choose(new, 0.3, kinds=others)
    assert torch.equal(table.kind, again.kind) and torch.equal(table.density, again.density) and found == same
    with pytest.raises(ValueError, match="none of the kinds observed was recorded: there are dense, dynamic"):
        choose(old, 0.3, kinds=("observed",))


@pytest.mark.parametrize("name", ["paro", "adaspa", "sparse-vdit", "svoo", "moa"])
@pytest.mark.filterwarnings("ignore:recipe 'moa'")
def test_recipes_of_papers_stay_as_published(name):
    assert recipes()[name].source
    old, new = (choose(planted(observed=flag), 0.3, recipe=name)[0] for flag in (False, True))
    assert not (new.kind == OBSERVED).any()
    assert torch.equal(old.kind, new.kind) and torch.equal(old.density, new.density)


@pytest.mark.parametrize(
    ("groups", "part"),
    [
        (((2, 6), (6, 10)), 1 / 8),  # step 5
        (((4, 10),), 1 / 6),
        (((5, 10),), 0.0),  # the guard has just learnt
        (((6, 10),), 0.0),  # the guard is longer
        (((0, 10),), 2 / 10),  # no guard: step 0 too
        (((1, 3),), 0.0),  # the last step
    ],
)
def test_steps_at_which_heads_learn_are_counted(groups, part):
    assert Problem(planted(groups, observed=True)).relearning == pytest.approx(part)


@pytest.mark.parametrize("budget", [Budget(speedup=2.0), Budget(ms=8.0)])
def test_budgets_of_time_hold_with_the_dense_step(budget):
    problem = Problem(planted(observed=True), TABLE)
    given = whatever_serves_best(Ask(problem, budget))
    assert (given.kind == OBSERVED).any()
    cost = problem.time
    spent = step_cost(problem, given, cost)
    assert 0.9 * problem.limit(budget) < spent <= problem.limit(budget) * (1 + 1e-9)
    # By hand: every head unpacks its pairs, every layer is reordered and corrected; a step of eight is dense.
    heads = cost.heads(given.kind, given.pairs / problem.total).sum(axis=(1, 2))
    sparse = float(problem.share @ (heads + 2 * cost.reorder() + 2 * cost.correction()))
    assert cost.correction() > 0
    assert not (given.kind == DENSE).all(axis=-1).any()
    assert spent == pytest.approx(7 / 8 * sparse + 1 / 8 * cost.dense())


def test_a_budget_of_time_that_is_too_small_says_what_would_do():
    problem = Problem(planted(observed=True), TABLE)
    with pytest.raises(ValueError, match="the least by the cost table is") as caught:
        whatever_serves_best(Ask(problem, Budget(ms=0.5), kinds=("observed",)))
    least = float(str(caught.value).split()[-2])
    given = whatever_serves_best(Ask(problem, Budget(ms=1.01 * least), kinds=("observed",)))
    assert step_cost(problem, given, problem.time) <= 1.01 * least
    offered = candidates(problem, ("observed",))
    assert left_for_heads(problem, offered, problem.time, least) < least


def test_low_precisions_go_with_observed_heads():
    table = linear_table(lengths=(320,), precisions=("native", "int8"), planning={"reorder": 0.1})
    found, _ = choose(planted(observed=True), Budget(speedup=2.0), cost=table, low_bit=True)
    assert (found.kind == OBSERVED).any()


def test_no_head_is_dynamic_where_a_residual_is_carried_unless_asked_for():
    recording = planted(observed=True, better=("dynamic", [0, 1, 2]))
    assert not (choose(recording, 0.3)[0].kind == DYNAMIC).any()
    assert (choose(recording, 0.3, kinds=KINDS)[0].kind == DYNAMIC).any()
    assert (choose(planted(better=("dynamic", [0, 1, 2])), 0.3)[0].kind == DYNAMIC).any()
