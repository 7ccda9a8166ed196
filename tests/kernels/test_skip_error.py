"""The error of skipping a block, definition and Triton, against float64: any shape, stride and type."""

import pytest
import torch
from kernel_oracles import poisoned_empty
from pooled_oracles import skip_error64
from test_pooled_kernels import FLOAT, IMPLEMENTATIONS, TYPED, draw, with_triton

from dit_sparse.kernels import dense_attention, skip_error


def check(q, k, v, block, scale, impl, compensated=True):
    out, lse = dense_attention(q, k, v, scale=scale, impl="reference")
    given = out.clone()
    with poisoned_empty():
        error = skip_error(q, k, v, out, lse, block, scale, compensated=compensated, impl=impl)
    expected, adds = skip_error64(q, k, v, out, lse, block, scale, compensated)
    assert error.dtype == FLOAT and torch.equal(out, given)
    # A distance of two vectors that are each known to a few roundings of the type; squared.
    precise = q.dtype == FLOAT or impl == "reference"
    rounding = 1e-5 if precise else 4 * torch.finfo(q.dtype).eps
    bound = rounding * (expected.sqrt() + rounding * adds.sqrt()) * adds.sqrt() * 2
    assert ((error.double() - expected).abs() <= bound + 1e-9).all()


@pytest.mark.parametrize("compensated", [True, False])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(("case", "dtype"), TYPED, ids=str)
def test_skip_error_matches_float64(case, dtype, impl, compensated):
    dim, layout, block, num_queries, num_keys, batch_heads = case
    q, k, v, _ = draw(dim, layout, block, num_queries, num_keys, batch_heads, dtype)
    check(q, k, v, block, dim**-0.5, impl, compensated)


@with_triton
def test_one_block_and_more_tiles_than_one():
    q, k, v, _ = draw(64, "contiguous", (32, 32), 150, 90, (1, 1), FLOAT)
    for block in [(150, 90), (256, 256)]:
        check(q, k, v, block, 0.3, "triton")
    check(q[:, :5], k, v, (1, 7), 0.3, "triton")


@with_triton
def test_a_block_of_equal_keys_and_values_costs_nothing():
    q, k, v, _ = draw(32, "contiguous", (16, 16), 40, 64, (1, 2), FLOAT)
    k[:, 16:32], v[:, 16:32] = k[:, 16:17], v[:, 16:17]
    out, lse = dense_attention(q, k, v, scale=0.5, impl="reference")
    error = skip_error(q, k, v, out, lse, (16, 16), 0.5, impl="triton")
    assert error[..., 1].max() < 1e-9 < 1e-5 < error[..., 0].min()


@with_triton
@pytest.mark.parametrize(("block", "queries"), [(32, 150), (16, 64), (16, 33), (8, 100), (1, 19), (6, 50)])
def test_short_query_blocks_share_a_tile(block, queries):
    """Whole tiles, a ragged last block, blocks that do not exist, and lengths that divide no tile."""
    q, k, v, _ = draw(64, "contiguous", (32, 32), queries, 70, (2, 3), FLOAT)
    check(q, k, v, (block, 32), 0.3, "triton")
