"""CLEAR against dx^2 + dy^2 < r^2, token by token."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from pattern_problems import blocks_of, built, coordinates, layout_of, mask_of, planned


def circle(layout, radius, time_scale=0.0):
    """The rule for tokens in exact integers where the radius and the scale are whole."""
    t, h, w = coordinates(layout).double().unbind(-1)
    squared = (h[:, None] - h) ** 2 + (w[:, None] - w) ** 2 + (time_scale * (t[:, None] - t)) ** 2
    return squared < radius**2


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 11), st.integers(1, 13)),
    st.sampled_from([1, 2, 3, 5, 10, 0.5, 2.25, 4.5]),
    st.sampled_from([0.0, 1.0, 3.0]),
    st.sampled_from([0, 6, 20]),
    st.sampled_from(["first", "last"]),
)
def test_a_pair_is_kept_when_tokens_are_less_than_the_radius_apart(grid, radius, scale, text, position):
    layout = layout_of(grid, text, position)
    _, plan = planned(built("clear", radius=radius, time_scale=scale), layout)
    expected = blocks_of(circle(layout, radius, scale), layout, plan.q_order, 16)
    assert torch.equal(plan.block_map.to_mask(), expected.expand(1, 2, -1, -1))


def test_tokens_at_the_radius_itself_are_outside():
    """(3, 4) is 5 away, (5, 0) too; blocks of one token show every pair."""
    layout = layout_of((1, 8, 8))
    _, plan = planned(built("clear", radius=5, block=1), layout)
    mask = plan.block_map.to_mask()[0, 0]
    assert torch.equal(mask, circle(layout, 5)[plan.q_order][:, plan.q_order])
    where = torch.argsort(plan.q_order)
    assert not mask[where[0], where[3 * 8 + 4]] and not mask[where[0], where[5]]
    assert mask[where[0], where[3 * 8 + 3]] and mask[where[0], where[4]]


def test_videos_have_the_circle_in_every_frame():
    layout = layout_of((3, 8, 8))
    frames = mask_of(built("clear", radius=3), layout)[0, 0].view(3, 4, 3, 4)
    # Boustrophedon tiles run backwards in the middle frame.
    frames[1] = frames[1].flip(0)
    frames[:, :, 1] = frames[:, :, 1].flip(-1)
    first = frames[0, :, 0]
    assert all(torch.equal(frames[i, :, j], first) for i in range(3) for j in range(3))
    apart = mask_of(built("clear", radius=3, time_scale=3.0), layout)[0, 0].view(3, 4, 3, 4)
    assert not apart[0, :, 1:].any()


def test_a_density_sets_the_radius():
    layout = layout_of((1, 16, 16))
    by_radius = mask_of(built("clear", radius=6), layout)
    share = by_radius[0, 0].float().mean().item()
    assert 0.2 < share < 0.9
    for radius in (2, 6, 16):
        assert torch.equal(mask_of(built("clear", radius=radius, density=share), layout), by_radius)
