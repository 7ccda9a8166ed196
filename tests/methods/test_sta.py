"""Sliding tile attention: tiles see tiles, nothing in part; other grids by the definition of tokens."""

import torch
from pattern_problems import blocks_of, built, layout_of, mask_of, planned
from test_gna import neighbourhood


def test_tiles_see_whole_tiles():
    """The paper's own description, tile by tile, on a grid that the tile divides."""
    grid, tile, window = (6, 12, 16), (2, 4, 4), (3, 3, 1)
    layout = layout_of(grid)
    _, plan = planned(built("sta", tile=tile, window=window, block=32), layout)
    mask = plan.block_map.to_mask()[0, 0]
    counts = [n // size for n, size in zip(grid, tile, strict=True)]
    position = torch.stack(torch.unravel_index(plan.q_order, grid), dim=-1).view(-1, 32, 3)
    tiles = position[:, 0] // torch.tensor(tile)
    for i, query in enumerate(tiles):
        half = torch.tensor(window) // 2
        centre = torch.minimum(torch.maximum(query, half), torch.tensor(counts) - 1 - half)
        expected = ((tiles - centre).abs() <= half).all(dim=-1)
        assert torch.equal(mask[i], expected)
    assert (mask.sum(dim=-1) == 9).all(), "every tile sees as many"


def test_no_block_is_computed_in_part():
    grid, tile = (4, 8, 8), (2, 4, 4)
    layout = layout_of(grid)
    _, plan = planned(built("sta", tile=tile, window=(1, 1, 1), block=16), layout)
    rule = neighbourhood(grid, tile, tile)
    inside = rule[plan.q_order][:, plan.q_order].float()
    share = inside.view(16, 16, 16, 16).mean(dim=(1, 3))
    assert ((share == 0) | (share == 1)).all()
    assert torch.equal(plan.block_map.to_mask()[0, 0], share == 1)


def test_ragged_grids_follow_the_tokens():
    for grid in ((5, 7, 9), (3, 10, 5), (1, 9, 13)):
        for text, position in ((0, "none"), (7, "first"), (30, "last")):
            layout = layout_of(grid, text, position)
            tile, window = (2, 4, 4), (1, 3, 1)
            _, plan = planned(built("sta", tile=tile, window=window), layout)
            tokens = tuple(n * size for n, size in zip(window, tile, strict=True))
            expected = blocks_of(neighbourhood(grid, tokens, tile), layout, plan.q_order, 16)
            assert torch.equal(plan.block_map.to_mask()[0, 0], expected)


def test_a_density_moves_the_window_with_the_tile():
    layout = layout_of((4, 16, 16))
    method = built("sta", tile=(2, 4, 4), density=0.25, block=32)
    _, plan = planned(method, layout)
    mask = plan.block_map.to_mask()[0, 0]
    assert abs(mask.float().mean() - 0.25) < 0.001
    # Queries of the middle reach as far to one side as to the other, to one tile.
    position = torch.stack(torch.unravel_index(plan.q_order, layout.grid), dim=-1).view(-1, 32, 3)
    centre = position.float().mean(dim=1)
    middle = ((centre - torch.tensor([1.5, 7.5, 7.5])).abs() <= torch.tensor([1.0, 2.0, 2.0])).all(dim=-1)
    for i in torch.arange(len(mask))[middle]:
        reach = centre[mask[i]] - centre[i]
        assert (reach.amax(0) + reach.amin(0)).abs().max() <= 4


def test_the_published_window_is_a_tenth_of_hunyuan_video():
    selector = built("sta", family="hunyuan_video").selector
    assert selector.window == (18, 24, 24)
    assert selector.stride == (6, 8, 8)
    assert mask_of(built("sta"), layout_of((2, 6, 8))).all(), "grids smaller than the window are dense"
