"""Block means, pooled scores and exact block mass against loops over the definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_oracles import attention64, random_tokens

from dit_sparse.kernels import block_mass, pool_blocks, pooled_scores, pooling


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.integers(1, 70),
    block=st.integers(1, 80),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    layout=st.sampled_from(["contiguous", "transposed", "sliced"]),
)
def test_pool_blocks_is_the_mean_of_each_block(tokens, block, dtype, layout):
    x = random_tokens(torch.Generator().manual_seed(tokens), (2, tokens, 3, 8), dtype, layout)
    expected = [x[:, start : start + block].double().mean(dim=1) for start in range(0, tokens, block)]
    pooled = pool_blocks(x, block)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled.double(), torch.stack(expected, dim=2), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("num_queries", "num_keys", "block"), [(64, 64, (16, 16)), (50, 71, (16, 32)), (5, 9, (8, 4))]
)
def test_pooled_scores_are_exact_for_constant_blocks(num_queries, num_keys, block):
    """When all tokens of a block are equal, the softmax of the scores is the exact block mass."""
    g = torch.Generator().manual_seed(0)
    q, k = (random_tokens(g, (2, n, 2, 32), torch.float32, "contiguous") for n in (num_queries, num_keys))
    for x, size in ((q, block[0]), (k, block[1])):
        for start in range(0, x.shape[1], size):
            x[:, start : start + size] = x[:, start : start + 1].clone()
    scores = pooled_scores(q, k, block)
    _, lse = attention64(q, k, k, torch.ones(num_queries, num_keys, dtype=torch.bool), 32**-0.5)
    mass = block_mass(q, k, lse.float(), block)
    assert scores.shape == mass.shape
    torch.testing.assert_close(scores.softmax(dim=-1), mass, atol=1e-5, rtol=1e-4)
    first = (q[0, 0, 0] @ k[0, 0, 0]).item() * 32**-0.5 + math.log(min(block[1], num_keys))
    assert scores[0, 0, 0, 0].item() == pytest.approx(first, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("chunk_bytes", [1, 10_000, 2**26])
@pytest.mark.parametrize(
    ("num_queries", "num_keys", "block"), [(64, 64, (16, 16)), (50, 71, (16, 32)), (7, 100, (64, 7))]
)
def test_block_mass_is_the_softmax_share(monkeypatch, chunk_bytes, num_queries, num_keys, block):
    monkeypatch.setattr(pooling, "CHUNK_BYTES", chunk_bytes)
    g = torch.Generator().manual_seed(1)
    q, k = (random_tokens(g, (2, n, 2, 32), torch.float32, "transposed") for n in (num_queries, num_keys))
    _, lse = attention64(q, k, k, torch.ones(num_queries, num_keys, dtype=torch.bool), 0.4)
    weights = torch.softmax(torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) * 0.4, dim=-1)
    mass = block_mass(q, k, lse, block, scale=0.4)
    for i in range(mass.shape[2]):
        rows = weights[:, :, i * block[0] : (i + 1) * block[0]]
        for j in range(mass.shape[3]):
            share = rows[..., j * block[1] : (j + 1) * block[1]].sum(dim=-1).mean(dim=-1)
            torch.testing.assert_close(mass[:, :, i, j].double(), share, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(mass.sum(dim=-1), torch.ones(mass.shape[:3]), atol=1e-5, rtol=0)


def test_rows_that_saw_nothing_have_no_mass():
    q = torch.randn(1, 8, 1, 32)
    lse = torch.full((1, 1, 8), -torch.inf)
    assert not block_mass(q, q, lse, (4, 4)).any()


def test_bad_arguments_are_named():
    x = torch.randn(1, 8, 2, 32)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        pool_blocks(x, 0)
    with pytest.raises(ValueError, match=r"got \(0, 4\)"):
        pooled_scores(x, x, (0, 4))
    with pytest.raises(ValueError, match=r"lse must be .*\(1, 2, 8\), got \(1, 8, 2\)"):
        block_mass(x, x, torch.zeros(1, 8, 2), (4, 4))
