"""GNA against the definition of NATTEN, token by token, on any grid."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pattern_problems import blocks_of, built, layout_of, mask_of, planned, random_qkv

from dit_sparse.engine import SparseMethod
from dit_sparse.orderings import AxisPermutation, Cubes, Raster, SpatialTemporal, Tiles
from dit_sparse.orderings.cubes import cube_tile
from dit_sparse.selectors import Window, geometry

GRID = st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 9))


def seen(query, length, window, stride=1, dilation=1):
    """Keys of a query along one axis, as NATTEN's reference kernel finds them."""
    line = query % dilation
    size = len(range(line, length, dilation))
    window = min(window, size)
    left, right = window // 2, window // 2 + (window % 2 - 1)
    leader = min(query // dilation // stride * stride + stride // 2, size - 1)
    start = max(leader - left, 0) + (leader + right >= size) * (size - right - leader - 1)
    return {line + dilation * i for i in range(start, start + window)}


def neighbourhood(grid, window, stride=(1, 1, 1), dilation=(1, 1, 1)):
    """The rule for tokens, bool ``[Nv, Nv]`` in raster order."""
    rule = torch.ones(1, 1, dtype=torch.bool)
    for length, *axis in zip(grid, window, stride, dilation, strict=True):
        one = torch.tensor([[k in seen(q, length, *axis) for k in range(length)] for q in range(length)])
        rule = torch.kron(rule.int(), one.int()).bool()
    return rule


@settings(max_examples=40)
@given(
    GRID,
    st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 7)),
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3)),
    st.sampled_from([0, 5, 20]),
    st.sampled_from(["first", "last"]),
    st.sampled_from([None, (1, 3, 4), (2, 2, 4)]),
)
def test_a_pair_is_kept_when_a_query_sees_a_key(grid, window, stride, dilation, text, position, tile):
    layout = layout_of(grid, text, position)
    method = built("gna", window=window, stride=stride, dilation=dilation, tile=tile)
    _, plan = planned(method, layout)
    stride = tuple(min(s, w) for s, w in zip(stride, window, strict=True))
    rule = neighbourhood(grid, window, stride, dilation)
    expected = blocks_of(rule, layout, plan.q_order, 16)
    assert torch.equal(plan.block_map.to_mask(), expected.expand(1, 2, -1, -1))


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 5))
def test_every_token_sees_a_whole_window(length, window, stride):
    """The oracle itself: shifting at the border keeps the count, and the stride shares windows."""
    for query in range(length):
        keys = seen(query, length, window, min(stride, window))
        assert len(keys) == min(window, length)
        assert keys <= set(range(length))
        if stride == 1 and window % 2:
            assert query in keys


def test_a_window_of_one_stride_is_blocked_attention():
    grid = (2, 8, 8)
    mask = mask_of(built("gna", window=(1, 4, 4), stride=(1, 4, 4), tile=(1, 4, 4)), layout_of(grid))
    assert torch.equal(mask[0, 0], torch.eye(8, dtype=torch.bool))


def test_shares_of_the_grid_are_the_papers_window():
    layout = layout_of((5, 8, 10))
    by_share = mask_of(built("gna"), layout)
    assert torch.equal(by_share, mask_of(built("gna", window=(3, 4, 3)), layout))
    assert by_share.float().mean() < 0.8
    selector = built("gna", family="hunyuan_video").selector
    assert selector.stride == (16, 8, 8)
    assert [share * n for share, n in zip(selector.window, (30, 48, 80), strict=True)] == [18, 24, 24]


def test_a_density_scales_the_window_in_proportion():
    layout = layout_of((4, 12, 12))
    window = mask_of(built("gna", window=(2, 6, 6)), layout)
    share = window[0, 0].float().mean().item()
    assert 0.1 < share < 0.9
    # The density of a window gives that window; half of its proportions are the same proportions.
    for same in ((2, 6, 6), (1, 3, 3), (4, 12, 12)):
        assert torch.equal(mask_of(built("gna", window=same, density=share), layout), window)
    kept = [mask_of(built("gna", density=d), layout) for d in (0.1, 0.3, 0.6)]
    assert (kept[0] <= kept[1]).all() and (kept[1] <= kept[2]).all(), "wider windows contain narrower ones"


def test_borders_may_cut():
    layout = layout_of((1, 6, 16))
    cut = SparseMethod("t", Window((1, 3, 3)), Tiles((1, 2, 8)), block_size=16)
    shifted = SparseMethod("t", Window((1, 3, 3), border="shift"), Tiles((1, 2, 8)), block_size=16)
    _, h, w = torch.unravel_index(torch.arange(96), layout.grid)
    near = ((h[:, None] - h).abs() <= 1) & ((w[:, None] - w).abs() <= 1)
    _, plan = planned(cut, layout)
    assert torch.equal(plan.block_map.to_mask()[0, 0], blocks_of(near, layout, plan.q_order, 16))
    assert (plan.block_map.to_mask() <= mask_of(shifted, layout)).all()


def test_heads_with_orders_of_their_own_that_depend_on_the_grid_are_exact():
    layout = layout_of((3, 4, 8))
    window = Window((3, 1, 1))
    qkv = random_qkv(layout, heads=4, scale=3.0)
    method = SparseMethod("t", window, SpatialTemporal(rows=8), block_size=16)
    _, plan = planned(method, layout, qkv)
    mask = plan.block_map.to_mask()
    for head in range(4):
        t, h, w = torch.unravel_index(torch.arange(96), layout.grid)
        same_place = (h[:, None] == h) & (w[:, None] == w) & ((t[:, None] - t).abs() <= 1)
        assert torch.equal(mask[0, head], blocks_of(same_place, layout, plan.q_order[0, head], 16))


def test_bounding_boxes_stand_in_where_every_head_has_another_order():
    layout = layout_of((2, 8, 8))
    orders = AxisPermutation(("THW", "WHT"))
    mask = mask_of(SparseMethod("t", Window((1, 3, 3)), orders, block_size=16), layout)[0]
    for head, axes in enumerate(orders.axes):
        one = SparseMethod("t", Window((1, 3, 3)), AxisPermutation(axes), block_size=16)
        exact = mask_of(one, layout)[0, 0]
        assert (exact <= mask[head]).all(), "boxes hold at least what their tokens see"
        assert mask[head].float().mean() < 1


def test_the_pattern_is_computed_once_per_layout():
    method, layout = built("gna", density=0.3), layout_of((3, 7, 11))
    mask_of(method, layout)
    before = geometry._distance.cache_info()
    mask_of(method, layout, seed=1)
    mask_of(built("gna", density=0.6), layout)
    after = geometry._distance.cache_info()
    assert after.misses == before.misses
    assert after.hits == before.hits + 2


@pytest.mark.parametrize("block", [16, 32, 64, 128])
def test_cubes_fill_a_block(block):
    grid = (4, 16, 16)
    ordering, q = Cubes(), random_qkv(layout_of(grid))[0]
    method = SparseMethod("t", Window((1, 1, 1)), ordering, block_size=block)
    _, plan = planned(method, layout_of(grid), [q, q, q])
    t, h, w = torch.unravel_index(plan.q_order.view(-1, block), grid)
    for axis, size in zip((t, h, w), cube_tile(block, 4), strict=True):
        assert (axis.amax(1) - axis.amin(1) == size - 1).all()
    assert plan.block_map.to_mask()[0, 0].sum() == len(t), "no block touches another"
    raster = mask_of(SparseMethod("t", Window((1, 3, 3)), Raster(), block_size=128), layout_of(grid))
    cubes = mask_of(SparseMethod("t", Window((1, 3, 3)), ordering, block_size=128), layout_of(grid))
    assert cubes.shape == raster.shape
