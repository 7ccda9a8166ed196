"""Mosaic: every head finds the shape of block that serves it, judged by its output after compensation."""

import pytest
import torch
from planted import SHARP, dense, densities, groups, observed_steps, random, relative_error, run

from dit_sparse.corrections import PooledCompensation
from dit_sparse.engine import SparseMethod
from dit_sparse.layout import TokenLayout, unpack_bits
from dit_sparse.methods import ModelInfo, Mosaic
from dit_sparse.orderings import AXIS_ORDERS, LearntShapes, Raster, Tiles, block_tiles
from dit_sparse.orderings.shapes import CHOICE
from dit_sparse.schedule import Schedule
from dit_sparse.selectors import ObservedError, ObservedMass, forced_pairs
from dit_sparse.selectors.spend import spend

MODEL = ModelInfo("wan", 1, 64)
ALWAYS = {"dense_steps": 0, "min_tokens": 0, "block_size": 16, "relearn": None}
LAYOUT = TokenLayout(4, 8, 8)
NAMES = [*AXIS_ORDERS, *block_tiles(16, LAYOUT.grid)]


def choices(runtime):
    (state,) = runtime.state._layers.values()
    return [[NAMES[i] for i in sample] for sample in state.values[CHOICE].tolist()]


def tiled(layout, tile, heads=1, dim=64, seed=0):
    """q, k, v in which a token attends, evenly, to those of its tile."""
    position = torch.stack(torch.unravel_index(torch.arange(layout.video_tokens), layout.grid))
    label = torch.zeros(layout.video_tokens, dtype=torch.long)
    for axis, (length, size) in enumerate(zip(layout.grid, tile)):
        label = label * (length // size) + position[axis] // size
    code = SHARP * torch.nn.functional.one_hot(label, dim).float()
    code = code[None, :, None].expand(1, -1, heads, -1)
    return code, code.clone(), random(layout.num_tokens, heads, dim, 1, seed)[2]


def joined(*calls):
    """Calls side by side, as heads of one."""
    return tuple(torch.cat(parts, dim=2) for parts in zip(*calls))


@pytest.mark.parametrize("tile", block_tiles(16, LAYOUT.grid), ids=str)
def test_heads_that_attend_within_tiles_get_that_tile(tile):
    x = joined(tiled(LAYOUT, tile), groups(LAYOUT, "W"), groups(LAYOUT, "T"))
    _, runtime = run(Mosaic(density=0.1, **ALWAYS).build(MODEL), x, LAYOUT, 1)
    first, second, third = choices(runtime)[0]
    assert first == tile
    assert second[-1] == "W"
    assert third[-1] == "T" or third[0] == LAYOUT.frames  # whole columns of time, both


def test_no_common_order_serves_them_all():
    x = joined(tiled(LAYOUT, (4, 2, 2)), tiled(LAYOUT, (1, 4, 4)), groups(LAYOUT, "W"), groups(LAYOUT, "H"))
    out, runtime = run(Mosaic(density=0.1, **ALWAYS).build(MODEL), x, LAYOUT, 2)
    exact = dense(*x)[0]
    assert densities(runtime) == [pytest.approx(0.1, rel=0.1)]
    assert relative_error(out[1], exact).max() < 2e-3
    for tile in ((4, 2, 2), (1, 4, 4), None):
        one = SparseMethod(
            "t",
            ObservedMass(0.1, "layer"),
            Tiles(tile),
            PooledCompensation(),
            Schedule(min_tokens=0),
            block_size=16,
        )
        assert relative_error(run(one, x, LAYOUT, 2)[0][1], exact).max() > 0.1


def test_orders_are_judged_after_compensation():
    """Attention is spread over the whole sequence, but keys and values of a row are alike in all frames:
    blocks within a row lose nothing to their means."""
    position = torch.stack(torch.unravel_index(torch.arange(LAYOUT.video_tokens), LAYOUT.grid))
    row = position[1]  # one of 8: the same in all frames
    g = torch.Generator().manual_seed(0)
    codes, values = (torch.randn(8, 64, generator=g) for _ in range(2))
    k, v = (x[row][None, :, None] for x in (codes, values))
    q = torch.randn(1, LAYOUT.num_tokens, 1, 64, generator=g)
    out, runtime = run(Mosaic(density=0.1, **ALWAYS).build(MODEL), (q, k, v), LAYOUT, 2)
    ((order,),) = choices(runtime)
    assert order in ("HTW", "HWT")  # the only ones whose runs of 16 stay in one row
    assert relative_error(out[1], dense(q, k, v)[0]).max() < 1e-4
    raster = SparseMethod(
        "t", ObservedError(0.1), Raster(), PooledCompensation(), Schedule(min_tokens=0), block_size=16
    )
    assert relative_error(run(raster, (q, k, v), LAYOUT, 2)[0][1], dense(q, k, v)[0]).max() > 0.1


def test_the_heads_of_a_layer_share_the_budget():
    """A head that needs a run of 8 of 256 tokens leaves its share to one that attends everywhere."""
    x = joined(groups(LAYOUT, "W"), random(256, 1, 64))
    by_layer, runtime = run(Mosaic(density=0.3, **ALWAYS).build(MODEL), x, LAYOUT, 2)
    by_head, _ = run(Mosaic(density=0.3, scope="head", **ALWAYS).build(MODEL), x, LAYOUT, 2)
    assert densities(runtime) == [pytest.approx(0.3, rel=0.05)]
    exact = dense(*x)[0]
    assert relative_error(by_layer[1], exact)[0, 1] < 0.9 * relative_error(by_head[1], exact)[0, 1]
    assert relative_error(by_layer[1], exact)[0, 0] < 2e-3


def test_shapes_and_masks_are_learnt_again():
    before, after = groups(LAYOUT, "W"), tiled(LAYOUT, (4, 2, 2))
    x = [before] * 3 + [after] * 3
    twice = ALWAYS | {"relearn": 0.5}
    out, runtime = run(Mosaic(density=0.1, **twice).build(MODEL), x, LAYOUT, 6)
    assert observed_steps(runtime) == [0, 3]
    assert choices(runtime) == [[(4, 2, 2)]]
    for step in (1, 2, 4, 5):
        assert relative_error(out[step], dense(*x[step])[0]).max() < 2e-3
    assert observed_steps(run(Mosaic(density=0.1, **ALWAYS).build(MODEL), x, LAYOUT, 6)[1]) == [0]


@pytest.mark.parametrize(
    ("tokens", "grid"),
    [(128, (21, 45, 80)), (64, (13, 30, 45)), (32, (5, 16, 16)), (128, (1, 64, 64)), (8, (1, 2, 3))],
)
def test_tiles_hold_a_block_and_fit_the_grid(tokens, grid):
    tiles = block_tiles(tokens, grid)
    assert len(set(tiles)) == len(tiles)
    for depth, height, width in tiles:
        assert depth * height * width == tokens
        assert depth <= grid[0] and height <= grid[1] and width <= grid[2]


@pytest.mark.parametrize(("text", "position"), [(0, "none"), (16, "first"), (5, "last")])
def test_the_mask_holds_the_pairs_whose_means_serve_worst(text, position):
    """Against the definition: one pair at a time replaced by its means, in float64."""
    layout = TokenLayout(2, 8, 8, text, position)
    x = random(layout.num_tokens, 2, 16, sharp=3.0)
    method = SparseMethod(
        "t", ObservedError(0.4, "head"), Raster(), PooledCompensation(), Schedule(min_tokens=0), block_size=16
    )
    _, runtime = run(method, x, layout, 1)
    (state,) = runtime.state._layers.values()
    blocks = -(-layout.num_tokens // 16)
    mask = unpack_bits(state.values["observed_error.bits"], blocks)[0]
    q, k, v = (t[0].transpose(0, 1).double() for t in x)
    weights = (q @ k.transpose(1, 2) * 16**-0.5).softmax(dim=-1)
    out, lse = weights @ v, (q @ k.transpose(1, 2) * 16**-0.5).logsumexp(-1)
    errors = torch.zeros(2, blocks, blocks, dtype=torch.float64)
    for j in range(blocks):
        keys = slice(16 * j, 16 * (j + 1))
        count = len(range(layout.num_tokens)[keys])
        mean_weight = count * ((q @ k[:, keys].mean(1)[..., None]).squeeze(-1) * 16**-0.5 - lse).exp()
        exact = weights[..., keys] @ v[:, keys] - weights[..., keys].sum(-1, keepdim=True) * out
        means = mean_weight[..., None] * (v[:, keys].mean(1)[:, None] - out)
        squares = (exact - means).square().sum(-1)
        for i in range(blocks):
            errors[:, i, j] = squares[:, 16 * i : 16 * (i + 1)].mean(-1)
    forced = forced_pairs(layout.num_tokens, layout.text_start, text, (16, 16), q.device)
    expected = spend(-errors[None], forced, 0.4, "head")[0]
    assert torch.equal(mask | forced, expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LearntShapes(0.0),
        lambda: LearntShapes(0.5, 1.5),
        lambda: LearntShapes(0.5, query_blocks=0),
        lambda: ObservedError(0.0),
        lambda: ObservedError(0.5, "model"),
        lambda: ObservedError(0.5, again=2.0),
        lambda: ObservedError(0.5, rows=0),
        lambda: Mosaic(density=None).build(MODEL),
        lambda: Mosaic(scope="model").build(MODEL),
    ],
)
def test_bad_fields_are_refused(make):
    with pytest.raises(ValueError, match="must be|needs a"):
        make()
