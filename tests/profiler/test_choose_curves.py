"""Errors between what was measured."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted_recording import planted

from dit_sparse.patterns import MASK
from dit_sparse.profiler.candidates import candidates
from dit_sparse.profiler.curves import between, by_missed_mass
from dit_sparse.profiler.problem import Problem


def test_between_two_densities_the_error_is_log_linear():
    at, error = np.array([[0.1, 0.3, 1.0]]), np.array([[1.0, 0.01, 0.0]])
    found = between(at, error, np.array([[0.05, 0.1, 0.2, 0.3, 0.65, 1.0]]))
    np.testing.assert_allclose(found, [[1.0, 1.0, 0.1, 0.01, 0.005, 0.0]])


@given(
    st.lists(st.floats(0.01, 1), min_size=2, max_size=6, unique=True),
    st.lists(st.floats(0, 5), min_size=6, max_size=6),
)
def test_interpolation_does_not_rise(at, error):
    at = np.sort(np.array(at))[None]
    error = -np.sort(-np.array(error))[None, : at.shape[1]]
    found = between(at, error, np.linspace(0, 1, 50)[None])
    assert (np.diff(found) <= 1e-12).all()
    np.testing.assert_allclose(between(at, error, at), error, rtol=1e-9)


def test_error_by_missed_mass_is_a_power_law_between_masks():
    missed, error = np.array([[0.4, 0.1, 0.0]]), np.array([[0.16, 0.01, 0.0]])
    found = by_missed_mass(missed, error, np.array([[0.0, 0.05, 0.1, 0.2, 0.4, 0.9]]))
    np.testing.assert_allclose(found, [[0.0, 0.005, 0.01, 0.04, 0.16, 0.16]])
    assert (by_missed_mass(missed * 0, error, np.array([[0.3]])) == 0).all()


def test_masks_have_candidates_between_those_that_were_recorded():
    problem = Problem(planted(text=20, position="last"))
    offered = candidates(problem, ("mask",))
    pairs, error = offered.pairs, offered.error
    assert (offered.kind == MASK).all() and pairs.shape[1] > 3 * len(problem.templates("mask"))
    assert (np.diff(pairs) >= 0).all() and (np.diff(error) <= 1e-12).all()
    assert pairs.min() >= int(problem.forced.sum()) and pairs.max() < problem.total
    for i in problem.templates("mask"):
        measured, there = problem.error[..., i].ravel(), problem.pairs[..., i].ravel()
        found = offered.error_at(np.arange(len(there)), 0, there)
        np.testing.assert_allclose(found, measured, rtol=1e-6)
    halfway = offered.error_at(np.arange(4), 0, (pairs[:4, 2] + pairs[:4, 3]) // 2)
    assert ((halfway <= error[:4, 2]) & (halfway >= error[:4, 3])).all()


def test_noise_does_not_make_more_pairs_worse():
    recording = planted()
    masks = Problem(recording).templates("mask")
    recording.error[..., masks[3]] *= 50
    offered = candidates(Problem(recording), ("mask",))
    assert (np.diff(offered.error) <= 1e-12).all()


def test_kinds_other_than_masks_stay_as_recorded():
    problem = Problem(planted())
    offered = candidates(problem, ("window", "dynamic"))
    recorded = problem.templates("window") + problem.templates("dynamic")
    assert offered.pairs.shape[1] == len(recorded) and not offered.continuous
    assert np.unique(offered.family).size == 3, "two shapes of windows, and dynamic"
    with pytest.raises(ValueError, match="unknown kind 'masks'"):
        problem.templates("masks")
