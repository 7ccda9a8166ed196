"""Exact block mass, definition and Triton, against float64: any shape, stride and type, rows without mass."""

import pytest
import torch
from kernel_oracles import poisoned_empty, random_tokens
from pooled_oracles import block_mass64
from test_pooled_kernels import BFLOAT, FLOAT, HALF, IMPLEMENTATIONS, TYPED, with_triton

from dit_sparse.kernels import block_mass


def draw(dim, layout, num_queries, num_keys, batch_heads, dtype):
    """q, k and the dense log-sum-exp, one row of which is -inf and one far from the truth."""
    batch, heads = batch_heads
    g = torch.Generator().manual_seed(dim + num_queries)
    q = random_tokens(g, (batch, num_queries, heads, dim), dtype, layout)
    k = random_tokens(g, (batch, num_keys, heads, dim), dtype, layout)
    logits = torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double()) * dim**-0.5
    lse = logits.logsumexp(dim=-1).float()
    lse[:, :, 0] = -torch.inf
    lse[:, :, -1] += 3.0  # that of another step: the row sums to exp(-3)
    return q, k, lse


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(("case", "dtype"), TYPED, ids=str)
def test_block_mass_matches_float64(case, dtype, impl):
    dim, layout, block, num_queries, num_keys, batch_heads = case
    q, k, lse = draw(dim, layout, num_queries, num_keys, batch_heads, dtype)
    given = lse.clone()
    with poisoned_empty():
        mass = block_mass(q, k, lse, block, impl=impl)
    assert mass.dtype == FLOAT and torch.equal(lse, given)
    # Products of bfloat16 are exact in float32: only the sums round, whatever the type.
    torch.testing.assert_close(mass.double(), block_mass64(q, k, lse, block, dim**-0.5), atol=1e-6, rtol=2e-5)


@with_triton
@pytest.mark.parametrize("shape", ["[B, H, N] transposed", "float16"])
def test_a_log_sum_exp_of_any_stride_or_type(shape):
    q, k, lse = draw(32, "contiguous", 40, 50, (2, 2), FLOAT)
    if shape == "float16":
        other = lse.half()
        expected = block_mass64(q, k, other, (16, 16), 32**-0.5)
    else:
        other = lse.transpose(1, 2).contiguous().transpose(1, 2)
        expected = block_mass64(q, k, lse, (16, 16), 32**-0.5)
    mass = block_mass(q, k, other, (16, 16), impl="triton")
    torch.testing.assert_close(mass.double(), expected, atol=1e-6, rtol=2e-5)


@with_triton
@pytest.mark.parametrize("dtype", [BFLOAT, HALF])
def test_one_block_and_more_tiles_than_one(dtype):
    q, k, lse = draw(64, "contiguous", 150, 90, (1, 1), dtype)
    for block in [(150, 90), (256, 256), (1, 7)]:
        if block == (1, 7):
            q, lse = q[:, :5], lse[:, :, :5]
        mass = block_mass(q, k, lse, block, 0.3, impl="triton")
        torch.testing.assert_close(mass.double(), block_mass64(q, k, lse, block, 0.3), atol=1e-6, rtol=2e-5)
