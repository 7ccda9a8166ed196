"""Profiles for another number of steps."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_profiles import assert_same, profiles, step_groups

from dit_sparse.layout import TokenLayout
from dit_sparse.patterns import Profile, resample
from dit_sparse.patterns.named_tensors import FIELDS
from dit_sparse.patterns.resample import scaled_groups


@given(profiles(), st.integers(1, 90))
@settings(max_examples=30)
def test_other_steps_leave_the_choices_as_they_are(made, steps):
    profile = Profile(*made)
    grid = profile.header.grid
    layout = TokenLayout(grid.frames, grid.height, grid.width, grid.text_tokens, grid.text_position)
    found = resample(profile, layout, grid.block_size, steps)
    rows, groups = scaled_groups(profile.header.schedule.groups, profile.header.schedule.num_steps, steps)
    assert found.header.schedule.groups == groups
    for name in FIELDS.keys() - {"mask_group"}:
        assert torch.equal(getattr(found.table, name), getattr(profile.table, name)[rows]), name
    for row, source in enumerate(rows):
        for layer in range(profile.header.model.layers):
            was, now = (int(x.table.mask_group[i, layer]) for x, i in ((profile, source), (found, row)))
            assert (was < 0) == (now < 0)
            if was >= 0:
                assert torch.equal(found.table.masks[now, layer], profile.table.masks[was, layer])
    if len(rows) == len(profile.header.schedule.groups):
        assert_same(found.table, profile.table)


@given(step_groups(), st.integers(1, 200))
def test_step_groups_keep_their_shares(groups, other):
    steps = groups[-1][1]
    rows, found = scaled_groups(groups, steps, other)
    assert rows == sorted(set(rows)) and len(rows) == len(found) >= 1
    assert found[-1][1] == other
    assert all(first < last for first, last in found)
    assert all(a[1] == b[0] for a, b in pairwise(found))
    for row, (first, _) in zip(rows, found):
        share = groups[row][0] * other / steps
        assert abs(first - share) <= 0.5 or first == other - 1
    if other >= 2 * steps:
        assert rows == list(range(len(groups)))
    if other == steps:
        assert found == groups


@pytest.mark.parametrize(
    ("groups", "steps", "other", "expected"),
    [
        (((10, 30), (30, 50)), 50, 25, ((5, 15), (15, 25))),
        (((10, 30), (30, 50)), 50, 100, ((20, 60), (60, 100))),
        (((3, 10), (10, 25)), 25, 10, ((1, 4), (4, 10))),
        (((0, 1), (1, 2), (2, 50)), 50, 10, ((0, 10),)),
        (((49, 50),), 50, 4, ((3, 4),)),  # one step is not dense
    ],
)
def test_step_groups_by_hand(groups, steps, other, expected):
    assert scaled_groups(groups, steps, other)[1] == expected
