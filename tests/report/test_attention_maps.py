"""Maps, kept blocks, curves and points are what float64 definitions say, on attention made by hand."""

import math

import pytest
import torch
from attention_samples import GRID, layout, planted_call, random_call, softmax_of

from dit_sparse.kernels import VariableBlocks
from dit_sparse.layout import BlockMap
from dit_sparse.methods import make_method
from dit_sparse.orderings import with_text
from dit_sparse.orderings.grid import axis_order, tile_order
from dit_sparse.report.attention_look import DENSITIES, Looker
from dit_sparse.report.attention_maps import (
    block_map_of,
    heads_of,
    kept_density,
    kept_share,
    oracle_recall,
    text_blocks,
)
from dit_sparse.report.attention_points import check_points, patterns, point_rows, uniform_pattern

CPU = torch.device("cpu")
LAYOUTS = [layout(), layout(7, "first"), layout(7, "last")]
layouts = pytest.mark.parametrize("where", LAYOUTS, ids=["none", "first", "last"])


def by_blocks(share, q_size, k_size):
    """Sums over keys, means over queries, of float64 ``[H, N, N]``."""
    rows = [part.mean(1) for part in share.split(q_size, dim=1)]
    return torch.stack([torch.stack([c.sum(-1) for c in r.split(k_size, dim=-1)], -1) for r in rows], 1)


@layouts
@pytest.mark.parametrize("block", [(16, 16), (1, 1), (7, 12)])
def test_maps_are_sums_of_the_softmax(where, block):
    call = random_call(where)
    expected = by_blocks(softmax_of(call), *block)
    found = block_map_of(call, block)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]))


@layouts
def test_a_reordered_map_is_the_raster_map_permuted(where):
    call = random_call(where)
    q_order = with_text(axis_order(GRID, "HWT", CPU), where)
    kv_order = torch.stack(
        [
            with_text(torch.randperm(where.video_tokens, generator=torch.Generator().manual_seed(h)), where)
            for h in range(3)
        ]
    )
    raster = block_map_of(call, (1, 1))
    found = block_map_of(call, (1, 1), q_order, kv_order)
    for head in range(3):
        torch.testing.assert_close(found[head], raster[head][q_order][:, kv_order[head]])
    share = torch.stack([s[q_order][:, order] for s, order in zip(softmax_of(call), kv_order)])
    blocks = block_map_of(call, (16, 16), q_order, kv_order)
    torch.testing.assert_close(blocks.double(), by_blocks(share, 16, 16), rtol=1e-4, atol=1e-6)


def test_heads_are_those_asked_for():
    call = random_call(layout(), heads=4)
    part = heads_of(call, (3, 1))
    torch.testing.assert_close(block_map_of(part, (16, 16)), block_map_of(call, (16, 16))[[3, 1]])
    assert torch.equal(part.out, call.out[:, :, [3, 1]])


def test_the_oracle_takes_the_heaviest_blocks():
    call = random_call(layout(3, "last"))  # 63 tokens in blocks of 16: the last one is ragged
    mass = block_map_of(call, (16, 16)).double()
    weight = torch.tensor([16.0, 16, 16, 15]).double() / 63
    found = oracle_recall(block_map_of(call, (16, 16)), DENSITIES, 63, 16)
    for head in range(3):
        pairs = sorted((mass[head] * weight[:, None]).flatten().tolist(), reverse=True)
        for column, density in enumerate(DENSITIES):
            best = sum(pairs[: max(1, round(density * 16))])
            assert found[head, column] == pytest.approx(best, abs=1e-5)
    assert found[:, -1].tolist() == pytest.approx([1.0] * 3, abs=1e-5)


def test_kept_share_of_clusters_is_counted_pair_by_pair():
    generator = torch.Generator().manual_seed(2)
    lengths = [torch.tensor([[[10, 0, 25, 5], [8, 8, 12, 12]]]), torch.tensor([[[13, 27], [40, 0]]])]
    mask = torch.rand(1, 2, 4, 2, generator=generator) > 0.5
    blocks = VariableBlocks(*lengths, mask)
    found = kept_share(blocks, (1, 0), (16, 7))
    for place, head in enumerate((1, 0)):
        q, k = (torch.repeat_interleave(torch.arange(n.shape[-1]), n[0, head]) for n in lengths)
        tokens = mask[0, head][q][:, k].double()
        expected = torch.stack(
            [torch.stack([c.mean() for c in r.split(7, dim=1)]) for r in tokens.split(16, dim=0)]
        )
        torch.testing.assert_close(found[place].double(), expected)
        assert kept_density(blocks, (1, 0))[place] == pytest.approx(tokens.mean().item())


def test_kept_share_of_fixed_blocks_is_the_mask():
    mask = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(0)) > 0.6
    block_map = BlockMap.from_mask(mask, 61, 75, (16, 16))
    assert torch.equal(kept_share(block_map, (2, 0), (16, 16)), mask[0, [2, 0]].float())
    expected = mask[0, [2, 0]].double().mean(dim=(1, 2)).tolist()
    assert kept_density(block_map, (2, 0)) == pytest.approx(expected)


@layouts
def test_a_planted_location_is_where_the_heat_peaks(where):
    far = (2, 0, 4)
    points = [(0, 1, 2), (1, 3, 0)]
    call = planted_call(where, far)
    share, text = point_rows(call, points)
    exact = softmax_of(call)
    for index, point in enumerate(points):
        assert tuple(int(x) for x in torch.unravel_index(share[0, index].argmax(), GRID)) == point
        assert tuple(int(x) for x in torch.unravel_index(share[1, index].argmax(), GRID)) == far
        row = where.video_start + (point[0] * GRID[1] + point[1]) * GRID[2] + point[2]
        video = exact[:, row, where.video_start : where.video_start + 60].unflatten(-1, GRID)
        torch.testing.assert_close(share[:, index].double(), video, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(
            text[:, index].double(), 1 - video.sum(dim=(1, 2, 3)), rtol=1e-3, atol=1e-6
        )


@layouts
def test_patterns_are_their_definitions(where):
    call = random_call(where)
    exact = softmax_of(call)[:, where.video_start : where.video_start + 60]
    video = exact[..., where.video_start : where.video_start + 60]
    place = torch.stack(torch.unravel_index(torch.arange(60), GRID), -1).double()
    apart = (place[:, None] - place).abs()
    for head, found in enumerate(patterns(call, rows=60)):
        p = video[head]
        entropy = -(exact[head] * exact[head].log()).sum(-1).mean().item()
        near = (apart[..., 1:] ** 2).sum(-1).sqrt()
        expected = {
            "entropy": entropy,
            "effective_keys": math.exp(entropy),
            "same_frame": (p * (apart[..., 0] == 0)).sum(-1).mean().item(),
            "same_place": (p * (apart[..., 1:].sum(-1) == 0)).sum(-1).mean().item(),
            "neighbours": (p * (apart.amax(-1) <= 1)).sum(-1).mean().item(),
            "first_frame": p[:, :20].sum(-1).mean().item(),
            "text": 1 - p.sum(-1).mean().item(),
            "frame_distance": (p * apart[..., 0]).sum().item() / p.sum().item(),
            "space_distance": (p * near).sum().item() / p.sum().item(),
        }
        assert found.model_dump() == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_chance_is_a_head_that_looks_everywhere():
    where = layout(6, "first")
    found = uniform_pattern(where)
    assert found.effective_keys == pytest.approx(66, rel=1e-4)
    assert found.same_frame == pytest.approx(20 / 66, rel=1e-4)
    assert found.same_place == pytest.approx(3 / 66, rel=1e-4)
    assert found.text == pytest.approx(6 / 66, rel=1e-3)


def test_points_are_checked_and_spread():
    assert check_points(((0, 0, 0), (2, 3, 4)), GRID) == [(0, 0, 0), (2, 3, 4)]
    spread = check_points(6, GRID)
    assert len(set(spread)) == 6
    assert {t for t, _, _ in spread} == {0, 1, 2}
    with pytest.raises(ValueError, match=r"0,4,0 is outside .* to 2,3,4"):
        check_points(((0, 4, 0),), GRID)
    with pytest.raises(ValueError, match="at least 1 point, got 0"):
        check_points(0, GRID)


def test_text_blocks():
    assert text_blocks(layout(), 16, reordered=False) is None
    assert text_blocks(layout(7, "first"), 16, reordered=False) == (0, 0)
    assert text_blocks(layout(7, "first"), 16, reordered=True) == (3, 4)
    assert text_blocks(layout(7, "last"), 4, reordered=False) == (15, 16)


@layouts
@pytest.mark.parametrize("name", ["draft", "svg2", "svg_ear", "adaspa", "gna"])
def test_what_a_method_keeps_holds_the_recall_it_reports(where, name):
    """Two ways to one number: the mass under the drawn mask, and the log-sum-exp over what was computed."""
    fields = {"execution": "clusters"} if name == "svg_ear" else {}
    config = make_method(name, density=0.4, block_size=16, **fields)
    heads = (0, 2)
    found = Looker(config, heads, "wan", 16).look(random_call(where), [(0, 0, 0)])
    weight = torch.full((-(-where.num_tokens // 16),), 16.0)
    weight[-1] = (where.num_tokens - 1) % 16 + 1
    for maps in found:
        figures = maps.figures
        if not fields:
            held = ((maps.in_order * maps.kept.float()).sum(-1) * weight).sum() / where.num_tokens
            assert held.item() == pytest.approx(figures.recall, abs=1e-3)
            assert maps.kept.float().mean().item() == pytest.approx(figures.density, abs=1e-6)
        assert 0 < figures.density < 1
        assert figures.error > 0
        curves = figures.curves
        assert curves.oracle.recall == sorted(curves.oracle.recall)
        for curve in (curves.method, curves.window):
            assert curve.recall[-1] == pytest.approx(1.0, abs=1e-4)
            assert curve.density[-1] == 1.0
        place = next(i for i, d in enumerate(curves.oracle.density) if d >= figures.density - 1e-6)
        if not fields:  # no choice of as many blocks holds more than the oracle's next point
            assert figures.recall <= curves.oracle.recall[place] + 1e-4
    assert [maps.figures.head for maps in found] == [0, 2]


def test_the_order_is_the_methods_own():
    call = random_call(layout())
    config = make_method("draft", density=0.4, block_size=16, patch=(2, 5))
    (maps,) = Looker(config, (1,), "wan", 16).look(call, [(0, 0, 0)])
    order = tile_order(GRID, (1, 2, 5), CPU)
    share = softmax_of(call)[1][order][:, order][None]
    assert maps.ordered is not None
    torch.testing.assert_close(maps.ordered.double(), by_blocks(share, 16, 16)[0], rtol=1e-4, atol=1e-6)
    (same,) = Looker(make_method("oracle", density=0.4, block_size=16), (1,), "wan", 16).look(
        call, [(0, 0, 0)]
    )
    assert same.ordered is None
    assert torch.equal(same.in_order, same.raster)


def test_the_oracle_method_is_the_oracle():
    """Its choice is exact: the diagonal, the heaviest pair of every row, then the heaviest of all."""
    call = random_call(layout())
    config = make_method("oracle", density=0.5, block_size=16, scope="head")
    (maps,) = Looker(config, (1,), "wan", 16).look(call, [(0, 0, 0)])
    first = torch.eye(4, dtype=torch.bool) | (maps.raster == maps.raster.amax(-1, keepdim=True))
    best = maps.raster.masked_fill(first, 9.0).flatten().topk(8).indices
    expected = torch.zeros(16).scatter_(0, best, 1.0).view(4, 4)
    assert torch.equal(maps.kept.float(), expected)


def test_a_method_that_learns_does_so_at_the_first_call_looked_at():
    config = make_method("adaspa", density=0.4, block_size=4)
    looker = Looker(config, (0,), "wan", 16)
    (first,) = looker.look(random_call(layout(), step=1), [(0, 0, 0)])
    (later,) = looker.look(random_call(layout(), seed=9, step=2), [(0, 0, 0)])
    (fresh,) = Looker(config, (0,), "wan", 16).look(random_call(layout(), seed=9, step=2), [(0, 0, 0)])
    assert torch.equal(later.kept, first.kept)
    assert not torch.equal(fresh.kept, first.kept)
    assert fresh.figures.recall > later.figures.recall
