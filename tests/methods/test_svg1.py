"""SVG: heads built to attend in frames or along time are told apart, and keep their band."""

import pytest
import torch
from pattern_problems import built, coordinates, dense, layout_of, mask_of, planned, random_qkv

from dit_sparse.engine import SparseMethod
from dit_sparse.layout import Site
from dit_sparse.orderings import SpatialTemporal, TokenOrder, axis_order
from dit_sparse.orderings.sampling import spread_tokens
from dit_sparse.orderings.spatial_temporal import head_order
from dit_sparse.selectors import HeadBands
from dit_sparse.state import LayerState


def planted(layout, kinds, sharpness=12.0, seed=0):
    """q, k, v whose heads attend to their own frame ("s") or to their own location over time ("t"); ``kinds``
    has one string of heads per sample."""
    generator = torch.Generator().manual_seed(seed)
    t, h, w = coordinates(layout).unbind(-1)
    place = h * layout.width + w
    codes = {
        "s": torch.nn.functional.one_hot(t, layout.frames),
        "t": torch.nn.functional.one_hot(place, layout.height * layout.width),
    }
    dim = max(layout.frames, layout.height * layout.width)
    q = torch.zeros(len(kinds), layout.num_tokens, len(kinds[0]), dim)
    for b, heads in enumerate(kinds):
        for i, kind in enumerate(heads):
            q[b, :, i, : codes[kind].shape[1]] = codes[kind].float() * (sharpness * dim**0.5) ** 0.5
    return [q, q.clone(), torch.randn(q.shape, generator=generator)]


KINDS = ("stts", "tsst", "tttt")


@pytest.mark.parametrize("first_frame", [False, True])
def test_planted_heads_are_told_apart_and_served(first_frame):
    layout = layout_of((8, 4, 8))
    q, k, v = planted(layout, KINDS)
    # A frame is an eighth, and a band that holds a whole frame around every query a bit more.
    method = built("svg1", density=0.5, first_frame=first_frame)
    out, plan = planned(method, layout, [q, k, v])
    orders = [head_order(layout.grid, axes, first_frame, q.device) for axes in ("THW", "HWT")]
    for b, heads in enumerate(KINDS):
        for i, kind in enumerate(heads):
            assert torch.equal(plan.q_order[b, i], orders["st".index(kind)])
    assert (out - dense(q, k, v)).abs().max() < 0.01 * v.abs().max()


def test_the_choice_is_the_band_with_more_of_the_sampled_attention():
    layout = layout_of((5, 5, 7))
    q, k, _ = random_qkv(layout, heads=6, batch=2, scale=2.0)
    ordering, rows = SpatialTemporal(0.3, rows=32), spread_tokens(layout.grid, 32, q.device)
    given = built("svg1").context(layout, Site(0, 0), LayerState(), head_dim=8)
    choice = ordering.order(q, k, given).choice
    attention = torch.einsum("brhd,bnhd->bhrn", q[:, rows].double(), k.double() * 8**-0.5).softmax(dim=-1)
    recall = []
    for axes in ("THW", "HWT"):
        place = torch.argsort(axis_order(layout.grid, axes, q.device))
        distance = (place[rows, None] - place).abs().double()
        # The nearest 30% of the keys; of two at the same distance either may be in.
        kept = distance.argsort(dim=-1, stable=True)[:, : round(0.3 * 175)]
        recall.append(attention.gather(-1, kept.expand(2, 6, -1, -1)).sum(dim=-1).mean(dim=-1))
    clear = (recall[1] - recall[0]).abs() > 0.01
    assert clear.any()
    assert torch.equal(choice[clear], (recall[1] > recall[0]).long()[clear])


@pytest.mark.parametrize("kind", ["s", "t"])
def test_the_band_holds_the_nearest_blocks(kind):
    layout = layout_of((4, 6, 8))
    _, plan = planned(built("svg1", density=0.3, first_frame=False), layout, planted(layout, (kind,)))
    mask = plan.block_map.to_mask()[0, 0]
    distance = (torch.arange(192)[:, None] - torch.arange(192)).abs()  # in the head's own order
    least = distance.view(12, 16, 12, 16).amin(dim=(1, 3))
    assert least[mask].max() <= least[~mask].min()


@pytest.mark.parametrize("kind", ["s", "t"])
def test_the_first_frame_is_kept_where_it_fits(kind):
    layout = layout_of((9, 4, 8))
    qkv = planted(layout, (kind,))
    _, plan = planned(built("svg1", density=0.4), layout, qkv)  # Wan keeps it
    assert torch.equal(plan.q_order[0, 0, :32].sort().values, torch.arange(32))
    assert plan.block_map.to_mask()[0, 0, :, :2].all()
    # Queries of the first frame of a temporal head reach their locations in all frames.
    if kind == "t":
        rows = plan.block_map.to_mask()[0, 0, 0]
        tokens = plan.q_order[0, 0].view(-1, 16)
        here = torch.isin(tokens % 32, torch.arange(16)).all(dim=-1) & (tokens >= 32).all(dim=-1)
        assert here.sum() == 8 and rows[here].all()
    for other in (built("svg1", density=0.2), built("svg1", density=0.4, family="cogvideox")):
        assert not mask_of(other, layout, qkv)[0, 0, :, :2].all(), "too dear, or not this family's"


def test_families():
    assert (
        built("svg1").ordering.first_frame and not built("svg1", family="hunyuan_video").ordering.first_frame
    )
    assert built("svg1", family="hunyuan_video").schedule.dense_steps == 0.1
    assert built("svg1").schedule.dense_steps == 0.3
    assert built("svg1", dense_steps=0).schedule.dense_steps == 0


def test_bands_need_a_choice():
    class Raster:
        def order(self, q, k, context):
            return TokenOrder()

    with pytest.raises(ValueError, match=r"SpatialTemporal\(\)"):
        mask_of(SparseMethod("t", HeadBands(), Raster(), block_size=16), layout_of((2, 4, 4)))


@pytest.mark.parametrize("grid", [(1, 1, 7), (21, 45, 80), (5, 16, 16), (3, 1, 200)])
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_sampled_rows_are_spread_over_the_grid(grid, rows):
    tokens = spread_tokens(grid, rows, torch.device("cpu"))
    count = grid[0] * grid[1] * grid[2]
    assert len(tokens) == min(rows, count)
    assert (tokens[1:] > tokens[:-1]).all() and tokens[0] >= 0 and tokens[-1] < count
    for length, position in zip(grid, torch.unravel_index(tokens, grid), strict=True):
        # The first half of every axis holds its share of the rows.
        share = (2 * position < length).float().mean().item()
        assert rows == 1 or abs(share - (length + 1) // 2 / length) < (0.25 if rows < 64 else 0.05)
