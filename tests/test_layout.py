"""Token layouts and block maps: round trips for every shape, errors that quote the value."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dit_sparse.layout import BlockMap, TokenLayout, ceil_div


@st.composite
def masks(draw):
    batch, heads = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    block = (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    queries, keys = draw(st.integers(1, 70)), draw(st.integers(1, 150))
    seed, fill = draw(st.integers(0, 2**31)), draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    shape = (batch, heads, ceil_div(queries, block[0]), ceil_div(keys, block[1]))
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < fill
    return mask, queries, keys, block


@given(masks())
def test_block_map_round_trips_through_indices_and_bits(case):
    mask, queries, keys, block = case
    block_map = BlockMap.from_mask(mask, queries, keys, block)
    assert torch.equal(block_map.to_mask(), mask)
    packed = block_map.pack()
    assert packed.nbytes == mask[..., 0].numel() * ceil_div(mask.shape[-1], 8)
    again = packed.unpack()
    assert torch.equal(again.to_mask(), mask)
    assert (again.num_queries, again.num_keys, again.block_size) == (queries, keys, block)
    assert float(block_map.density()) == pytest.approx(mask.float().mean().item(), abs=1e-6)


@given(masks())
def test_rows_list_their_blocks_in_ascending_order(case):
    mask, queries, keys, block = case
    block_map = BlockMap.from_mask(mask, queries, keys, block)
    for row, indices, count in zip(
        mask.flatten(0, 2), block_map.indices.flatten(0, 2), block_map.counts.flatten(), strict=True
    ):
        assert indices[: int(count)].tolist() == row.nonzero().flatten().tolist()


def test_full_block_map_is_dense():
    block_map = BlockMap.full(2, 3, 100, 130, (64, 32), torch.device("cpu"))
    assert block_map.shape == (2, 3, 2, 5)
    assert block_map.to_mask().all()


def test_from_mask_refuses_a_mask_of_another_geometry():
    with pytest.raises(ValueError, match=r"\[B, H, 2, 3\], got \(1, 1, 3, 3\)"):
        BlockMap.from_mask(torch.ones(1, 1, 3, 3), 100, 130, (64, 64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4, 4), r"\(0, 4, 4\)"),
        ((1, 4, 4, 5), "text_tokens=5"),
        ((1, 4, 4, 0, "first"), "'first'"),
        ((1, 4, 4, 3, "middle"), "'middle'"),
    ],
)
def test_layout_refuses_contradictions(arguments, message):
    with pytest.raises(ValueError, match=message):
        TokenLayout(*arguments)


def test_layout_places_text():
    first, last, none = (
        TokenLayout(2, 3, 4, 5, "first"),
        TokenLayout(2, 3, 4, 5, "last"),
        TokenLayout(2, 3, 4),
    )
    assert (first.num_tokens, first.video_start, first.text_start) == (29, 5, 0)
    assert (last.num_tokens, last.video_start, last.text_start) == (29, 0, 24)
    assert (none.num_tokens, none.video_start, none.text_start) == (24, 0, 24)
