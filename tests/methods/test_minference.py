"""MInference: planted columns and diagonals are kept, and what sampled rows say is what all rows say."""

import torch
from pattern_problems import built, forced_of, layout_of, mask_of, random_qkv
from test_selectors import given_for

from dit_sparse.selectors import VerticalSlash

BLOCK, BLOCKS = 16, 24


def planted(columns=(), diagonals=(), sharpness=10.0):
    """q, k, v of one head: all queries attend to the blocks ``columns``, and query block i to key blocks
    i + d for every d in ``diagonals``."""
    dim = BLOCKS + 1
    block = torch.eye(BLOCKS).repeat_interleave(BLOCK, dim=0)
    k = torch.cat([block, torch.zeros(len(block), 1)], dim=1)
    q = torch.zeros_like(k)
    for d in diagonals:
        q[:, :BLOCKS] += torch.roll(block, d, dims=1)
    for column in columns:
        k[column * BLOCK : (column + 1) * BLOCK, BLOCKS] = 1
    q[:, BLOCKS] = 1
    q, k = (x[None, :, None] for x in (q * sharpness * dim**0.5, k))
    return [q, k, torch.zeros_like(k)]


def test_planted_columns_and_diagonals_are_kept():
    layout = layout_of((4, 8, 12))
    columns, diagonals = (3, 17), (5, -8)
    qkv = planted(columns, diagonals)
    mask = mask_of(built("minference", density=0.25), layout, qkv)[0, 0]
    assert mask[:, list(columns)].all()
    for d in diagonals:
        assert mask.diagonal(d).all()
    # With a budget for these lines (the planted diagonals go on at the other end) nothing else is kept.
    wanted = torch.eye(BLOCKS, dtype=torch.bool)
    wanted[:, list(columns)] = True
    for d in diagonals:
        wanted |= torch.eye(BLOCKS, dtype=torch.bool).roll(d, dims=1)
    exact = wanted.float().mean().item()
    assert torch.equal(mask_of(built("minference", density=exact), layout, qkv)[0, 0], wanted)


def test_columns_alone_and_diagonals_alone():
    layout = layout_of((2, 12, 16))
    both = [torch.cat(pair, dim=2) for pair in zip(planted((9,)), planted((), (4,)), strict=True)]
    mask = mask_of(built("minference", density=0.09), layout, both)[0]
    assert mask[0, :, 9].all() and not mask[0].diagonal(4).all()
    assert mask[1].diagonal(4).all() and not mask[1, :, 9].all()


def test_line_mass_of_all_rows_is_that_of_the_attention_map():
    layout = layout_of((2, 5, 8), 9, "first")
    q, k, _ = random_qkv(layout, batch=2, heads=3)
    problem = given_for(q, k, layout)
    columns, diagonals = VerticalSlash(rows=80).line_mass(problem)
    attention = torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double() * 8**-0.5).softmax(-1)[:, :, 9:]
    by_block = torch.nn.functional.pad(attention, (0, 7)).unflatten(-1, (6, 16)).sum(-1)
    torch.testing.assert_close(columns.double(), by_block.mean(dim=2), rtol=1e-4, atol=1e-6)
    row_block = (torch.arange(80) + 9) // 16
    for d in range(11):
        key_block = row_block + d - 5
        live = (key_block >= 0) & (key_block < 6)
        expected = (
            by_block[:, :, live].gather(-1, key_block[live].expand(2, 3, -1)[..., None]).mean(dim=(2, 3))
        )
        torch.testing.assert_close(diagonals[..., d].double(), expected, rtol=1e-4, atol=1e-6)


def test_rows_are_not_the_last_ones():
    """A column that only the first half of the grid attends to is found; a causal model's rows would not."""
    layout = layout_of((4, 8, 12))
    q, k, v = planted((3,))
    q[:, 192:, :, -1] = 0
    mask = mask_of(built("minference", density=0.1), layout, [q, k, v])[0, 0]
    assert mask[:, 3].all()


def test_text_is_kept_beside_the_lines():
    for position in ("first", "last"):
        layout = layout_of((3, 6, 8), 20, position)
        mask = mask_of(built("minference", density=0.5), layout)
        assert (mask | ~forced_of(layout, reordered=False)).all()


def test_block_sparse_keeps_the_heaviest_pooled_blocks_of_every_row():
    layout = layout_of((4, 8, 12))
    qkv = planted((), (7,))
    mask = mask_of(built("minference", pattern="block_sparse", density=0.1), layout, qkv)[0, 0]
    assert mask.diagonal(7).all()
    counts = mask.sum(dim=-1)
    assert counts.max() - counts.min() <= 1, "rows have equal budgets"
