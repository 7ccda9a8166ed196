"""Orderings are permutations of the video tokens that do what their name says, on any grid."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dit_sparse.layout import Site, TokenLayout
from dit_sparse.orderings import AXIS_ORDERS, AxisPermutation, PlanContext, Raster, SemanticClusters, Tiles
from dit_sparse.state import LayerState

GRIDS = st.tuples(st.integers(1, 7), st.integers(1, 19), st.integers(1, 19))


def context_for(grid, block=(64, 64), state=None):
    return PlanContext(TokenLayout(*grid), Site(0, 0), 0.25, block, state or LayerState())


def tokens(grid, heads=2, dim=4, batch=1, seed=0):
    count = grid[0] * grid[1] * grid[2]
    return torch.randn(batch, count, heads, dim, generator=torch.Generator().manual_seed(seed))


def is_permutation(order):
    return torch.equal(order.sort(dim=-1).values, torch.arange(order.shape[-1]).expand(order.shape))


@given(GRIDS, st.sampled_from(AXIS_ORDERS))
def test_axis_permutation_lists_the_slowest_axis_first(grid, axes):
    q = tokens(grid)
    order = AxisPermutation(axes).order(q, q, context_for(grid)).q
    assert is_permutation(order)
    coordinates = torch.stack(torch.unravel_index(order, grid), dim=-1)
    ranked = coordinates[:, ["THW".index(axis) for axis in axes]]
    sizes = torch.tensor([grid["THW".index(axis)] for axis in axes])
    rank = (ranked[:, 0] * sizes[1] + ranked[:, 1]) * sizes[2] + ranked[:, 2]
    assert torch.equal(rank, torch.arange(len(rank)))


def test_axis_permutation_per_head():
    q = tokens((2, 3, 4))
    order = AxisPermutation(("THW", "WHT")).order(q, q, context_for((2, 3, 4)))
    assert order.q is order.kv
    assert order.q.shape == (2, 24)
    assert order.q[0].tolist() == list(range(24))
    assert order.q[1, :3].tolist() == [0, 12, 4]
    with pytest.raises(ValueError, match="3 axis orders for 2 heads"):
        AxisPermutation(("THW",) * 3).order(q, q, context_for((2, 3, 4)))
    with pytest.raises(ValueError, match="'XYZ'"):
        AxisPermutation("XYZ")


@given(GRIDS, st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 17)))
def test_tiles_are_contiguous_runs(grid, tile):
    q = tokens(grid)
    order = Tiles(tile).order(q, q, context_for(grid)).q
    assert is_permutation(order)
    t, h, w = torch.unravel_index(order, grid)
    tile_id = torch.stack([t // tile[0], h // tile[1], w // tile[2]], dim=-1)
    changes = (tile_id[1:] != tile_id[:-1]).any(dim=-1)
    assert int(changes.sum()) + 1 == len(torch.unique(tile_id, dim=0))
    # Neighbouring tiles follow one another: one step along one axis at a time.
    steps = (tile_id[1:] - tile_id[:-1])[changes].abs().sum(dim=-1)
    assert (steps == 1).all()


def test_default_tiles_are_blocks_of_one_frame():
    grid = (2, 16, 32)
    q = tokens(grid)
    for block in (128, 64):
        order = Tiles().order(q, q, context_for(grid, (block, block))).q
        t, h, w = torch.unravel_index(order.view(-1, block), grid)
        assert (t == t[:, :1]).all()
        assert (h.amax(1) - h.amin(1) == 7).all()
        assert (w.amax(1) - w.amin(1) == block // 8 - 1).all()


def test_raster_costs_nothing():
    q = tokens((2, 3, 4))
    order = Raster().order(q, q, context_for((2, 3, 4)))
    assert order.q is None
    assert order.kv is None


def test_semantic_clusters_sort_planted_groups_together():
    grid, groups = (4, 8, 8), 4
    count = grid[0] * grid[1] * grid[2]
    generator = torch.Generator().manual_seed(1)
    label = torch.randint(groups, (1, count, 2), generator=generator)
    centres = 10 * torch.randn(groups, 8, generator=generator)
    q = centres[label] + 0.1 * torch.randn(1, count, 2, 8, generator=generator)
    ordering = SemanticClusters(
        groups * 4, groups * 4, min_tokens_per_q_cluster=1, min_tokens_per_kv_cluster=1
    )
    order = ordering.order(q, q.flip(1), context_for(grid))
    assert order.q is not order.kv
    assert is_permutation(order.q)
    assert is_permutation(order.kv)
    for head in range(2):
        sorted_labels = label[0, :, head][order.q[0, head]]
        assert int((sorted_labels[1:] != sorted_labels[:-1]).sum()) < 4 * groups
    assert int(order.q_clusters.sizes.sum()) == 2 * count


def test_semantic_clusters_continue_from_the_state():
    grid, state = (4, 8, 8), LayerState()
    q, k = tokens(grid, seed=2), tokens(grid, seed=3)
    ordering = SemanticClusters(8, 16, 1, 1, first_iterations=3, iterations=2)
    first = ordering.order(q, k, context_for(grid, state=state))
    assert torch.equal(state.values["semantic.q"], first.q_clusters.centroids)
    second = ordering.order(q, k, context_for(grid, state=state))
    cold = SemanticClusters(8, 16, 1, 1, first_iterations=5).order(q, k, context_for(grid))
    # 3 + 2 warm iterations are the same as 5 in one go.
    torch.testing.assert_close(second.q_clusters.centroids, cold.q_clusters.centroids)
    assert state.nbytes > 0


@pytest.mark.parametrize("field", ["q_clusters", "kv_clusters", "iterations", "first_iterations"])
def test_semantic_clusters_refuse_bad_counts(field):
    with pytest.raises(ValueError, match=field):
        SemanticClusters(**{field: -1})
