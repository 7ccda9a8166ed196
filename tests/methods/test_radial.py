"""Radial attention against the formula of the paper, token by token."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from pattern_problems import blocks_of, built, layout_of, mask_of, planned


def radial(grid, decay=1.0, sink=True):
    """The rule for tokens, one pair at a time."""
    frames, place = grid[0], grid[1] * grid[2]
    rule = torch.zeros(frames, place, frames, place, dtype=torch.bool)
    for i in range(frames):
        for j in range(frames):
            narrow = 2 ** int(math.log2(max(abs(i - j), 1)))
            width = place / narrow * (decay if abs(i - j) >= 2 else 1.0)
            for k in range(place):
                for m in range(place):
                    in_turn = narrow > place and k == m and abs(i - j) % math.ceil(narrow / place) == 0
                    rule[i, k, j, m] = abs(k - m) + 1 <= width or in_turn or (sink and j == 0)
    return rule.view(frames * place, frames * place)


@given(
    st.sampled_from([(1, 3, 4), (2, 2, 5), (5, 3, 5), (9, 1, 2), (10, 1, 3), (17, 1, 1), (4, 4, 4)]),
    st.sampled_from([1.0, 0.5, 0.2]),
    st.booleans(),
    st.sampled_from([0, 6, 20]),
    st.sampled_from(["first", "last"]),
    st.sampled_from([1, 4, 16]),
)
def test_a_pair_is_kept_when_tokens_lie_in_the_band(grid, decay, sink, text, position, block):
    layout = layout_of(grid, text, position)
    mask = mask_of(built("radial", decay=decay, sink=sink, block=block), layout)
    expected = blocks_of(radial(grid, decay, sink), layout, None, block)
    assert torch.equal(mask, expected.expand(1, 2, -1, -1))


def test_the_band_halves_when_the_distance_in_time_doubles():
    layout = layout_of((9, 1, 16))
    mask = mask_of(built("radial", decay=1.0, sink=False, block=1), layout)[0, 0].view(9, 16, 9, 16)
    # The last place of the first frame: how many places of every later frame it reaches.
    assert mask[0, 15].sum(dim=-1).tolist() == [16, 16, 8, 8, 4, 4, 4, 4, 2]
    sink = mask_of(built("radial", decay=1.0, block=1), layout)[0, 0].view(9, 16, 9, 16)
    assert sink[:, :, 0].all() and not sink[:, :, 1].all()


def test_model_families():
    wan, hunyuan = (built("radial", family=name) for name in ("wan", "hunyuan_video"))
    assert (wan.selector.decay, hunyuan.selector.decay) == (0.2, 1.0)
    assert wan.schedule.dense_layers == frozenset({0}) and not hunyuan.schedule.dense_layers
    assert not built("radial", dense_layers=[]).schedule.dense_layers
    assert planned(wan, layout_of((3, 4, 4)))[1].q_order is None


def test_a_density_scales_all_bands_by_one_factor():
    layout = layout_of((9, 4, 16))
    fields = {"decay": 0.25, "sink": False}
    by_rule = mask_of(built("radial", **fields), layout)
    share = by_rule[0, 0].float().mean().item()
    assert share < 0.95
    assert torch.equal(mask_of(built("radial", density=share, **fields), layout), by_rule)
    # The kept pairs are those that the smallest factor reaches.
    kept = mask_of(built("radial", density=0.3, **fields), layout)[0, 0]
    t, place = torch.arange(576) // 64, torch.arange(576) % 64
    apart = (t[:, None] - t).abs()
    factor = ((place[:, None] - place).abs() + 1) * 2.0 ** torch.log2(apart.clamp(min=1).float()).floor()
    factor = torch.where(apart >= 2, factor / 0.25, factor)
    least = factor.view(36, 16, 36, 16).amin(dim=(1, 3))
    assert least[kept].max() <= least[~kept].min()
