"""Attention over blocks of any length against masked attention in float64."""

import pytest
import torch
from kernel_oracles import attention64, random_tokens

from dit_sparse.kernels import (
    VariableBlocks,
    block_sparse_attention,
    compensate,
    pool_blocks,
    variable_blocks,
)
from dit_sparse.layout import BlockMap

TOKENS, DIM = 60, 8


def lengths(rows, seed):
    """Random lengths ``[2, 2, rows]`` that sum to TOKENS, some of them 0."""
    generator = torch.Generator().manual_seed(seed)
    cuts = torch.randint(0, TOKENS + 1, (2, 2, rows - 1), generator=generator).sort(dim=-1).values
    ends = torch.cat([cuts, torch.full((2, 2, 1), TOKENS)], -1)
    return torch.diff(ends, prepend=torch.zeros(2, 2, 1, dtype=torch.long))


def problem(seed=0, rows=7, columns=9):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        random_tokens(generator, (2, TOKENS, 2, DIM), torch.float32, x)
        for x in ("contiguous", "transposed", "sliced")
    )
    mask = torch.rand(2, 2, rows, columns, generator=generator) < 0.4
    q_lengths = lengths(rows, seed)
    mask[0, 1, q_lengths[0, 1].argmax()] = False
    return q, k, v, VariableBlocks(q_lengths, lengths(columns, seed + 1), mask)


def token_mask(blocks, b, h):
    rows = blocks.mask[b, h].repeat_interleave(blocks.q_lengths[b, h], 0)
    return rows.repeat_interleave(blocks.kv_lengths[b, h], 1)


@pytest.mark.parametrize("chunk_bytes", [1, 5_000, 2**26])
@pytest.mark.parametrize("seed", range(3))
def test_attention_is_masked_attention(monkeypatch, chunk_bytes, seed):
    monkeypatch.setattr(variable_blocks, "CHUNK_BYTES", chunk_bytes)
    q, k, v, blocks = problem(seed)
    out, lse = block_sparse_attention(q, k, v, blocks, return_lse=True)
    assert torch.equal(out, block_sparse_attention(q, k, v, blocks, impl="reference"))
    for b in range(2):
        for h in range(2):
            mask = token_mask(blocks, b, h)
            one = slice(b, b + 1), slice(None), slice(h, h + 1)
            expected, expected_lse = attention64(q[one], k[one], v[one], mask, DIM**-0.5)
            torch.testing.assert_close(out[one].double(), expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(lse[b, h].double(), expected_lse[0, 0], rtol=1e-4, atol=1e-5)
    assert torch.isneginf(lse[0, 1]).any()


def test_density_counts_query_key_pairs():
    _, _, _, blocks = problem()
    pairs = [token_mask(blocks, b, h).float().mean() for b in range(2) for h in range(2)]
    torch.testing.assert_close(blocks.density(), torch.stack(pairs).mean())


def test_equal_lengths_are_fixed_blocks():
    q, k, v, _ = problem()
    mask = torch.rand(2, 2, 4, 6, generator=torch.Generator().manual_seed(5)) < 0.5
    fixed = BlockMap.from_mask(mask, TOKENS, TOKENS, (15, 10))
    same = VariableBlocks(torch.full((2, 2, 4), 15), torch.full((2, 2, 6), 10), mask)
    torch.testing.assert_close(
        block_sparse_attention(q, k, v, same, return_lse=True),
        block_sparse_attention(q, k, v, fixed, return_lse=True, impl="reference"),
    )
    torch.testing.assert_close(same.density(), fixed.density())
    torch.testing.assert_close(variable_blocks.pool_variable(k, same.kv_lengths), pool_blocks(k, 10))
    parts = block_sparse_attention(q, k, v, same, return_lse=True)
    torch.testing.assert_close(
        compensate(q, k, v, *parts, same, scale=0.3),
        compensate(q, k, v, *parts, fixed, scale=0.3, impl="reference"),
    )


def test_compensation_is_exact_for_blocks_of_equal_keys():
    q, k, v, blocks = problem(1)
    for b in range(2):
        for h in range(2):
            ends = blocks.kv_lengths[b, h].cumsum(0).tolist()
            for start, end in zip([0, *ends], ends):
                k[b, start:end, h] = k[b, start:end, h].clone()[:1]
    parts = block_sparse_attention(q, k, v, blocks, scale=0.4, return_lse=True)
    out = compensate(q, k, v, *parts, blocks, scale=0.4)
    expected, _ = attention64(q, k, v, torch.ones(TOKENS, TOKENS, dtype=torch.bool), 0.4)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)


def test_no_kernel_is_promised():
    q, k, v, blocks = problem()
    with pytest.raises(ValueError, match=r"impl='triton'.*execution='fixed'"):
        block_sparse_attention(q, k, v, blocks, impl="triton")
    with pytest.raises(ValueError, match="precision='int8'"):
        block_sparse_attention(q, k, v, blocks, precision="int8")
