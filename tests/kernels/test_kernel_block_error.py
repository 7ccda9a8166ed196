"""Errors of skipped blocks against loops over their definitions, in float64."""

import pytest
import torch
from kernel_oracles import random_tokens

from dit_sparse.kernels import (
    VariableBlocks,
    block_error,
    centroid_error,
    cluster_error,
    dense_attention,
    moment_error,
    representative_rows,
    skip_error,
)
from dit_sparse.kernels.block_error import block_variances

SHAPES = [(64, (16, 16)), (50, (16, 8)), (71, (8, 32)), (9, (16, 16))]


def problem(tokens, dtype=torch.float32, batch=2, heads=2, dim=8, scale=1.5):
    generator = torch.Generator().manual_seed(tokens)
    layouts = ("contiguous", "transposed", "sliced")
    return [scale * random_tokens(generator, (batch, tokens, heads, dim), dtype, x) for x in layouts]


def runs(tokens, size):
    return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]


def one_head(x, b, h):
    return x[b, :, h].double()


def over_pairs(q, block, pair):
    """``pair(b, h, rows, columns)`` for every pair of blocks, ``[B, H, nQ, nK]``."""
    rows, columns = runs(q.shape[1], block[0]), runs(q.shape[1], block[1])
    return torch.tensor(
        [
            [[[pair(b, h, i, j) for j in columns] for i in rows] for h in range(q.shape[2])]
            for b in range(q.shape[0])
        ]
    )


@pytest.mark.parametrize("chunk_bytes", [1, 2**26])
@pytest.mark.parametrize("compensated", [True, False])
@pytest.mark.parametrize(("tokens", "block"), SHAPES)
def test_skip_error_is_the_first_order_error(monkeypatch, tokens, block, compensated, chunk_bytes):
    monkeypatch.setattr(block_error, "CHUNK_BYTES", chunk_bytes)
    q, k, v = problem(tokens)
    out, lse = dense_attention(q, k, v)

    def pair(b, h, i, j):
        keys, values, queries = one_head(k, b, h), one_head(v, b, h), one_head(q, b, h)[i]
        weights = (queries @ keys.T * 8**-0.5).softmax(dim=-1)
        o = weights @ values
        missing = weights[:, j] @ values[j] - weights[:, j].sum(-1, keepdim=True) * o
        if compensated:
            total = torch.logsumexp(queries @ keys.T * 8**-0.5, dim=-1)
            at_mean = (queries @ keys[j].mean(0) * 8**-0.5 - total).exp() * (j.stop - j.start)
            missing = missing - at_mean[:, None] * (values[j].mean(0) - o)
        return missing.square().sum(-1).mean().item()

    found = skip_error(q, k, v, out, lse, block, compensated=compensated)
    torch.testing.assert_close(found, over_pairs(q, block, pair), rtol=1e-3, atol=1e-6)


def test_skip_error_foretells_what_skipping_does():
    """Leaving out one light block changes the output by its error, to first order."""
    q, k, v = (x[:1, :, :1] for x in problem(64, scale=0.3))
    out, lse = dense_attention(q, k, v)
    error = skip_error(q, k, v, out, lse, (16, 4), compensated=False)[0, 0]
    for j in (0, 7, 15):
        kept = torch.ones(64, dtype=torch.bool)
        kept[4 * j : 4 * j + 4] = False
        without, _ = dense_attention(q, k[:, kept].contiguous(), v[:, kept].contiguous())
        change = (without - out).square().sum(-1)[0, :, 0].unflatten(0, (4, 16)).mean(1)
        torch.testing.assert_close(error[:, j], change, rtol=0.2, atol=0)


@pytest.mark.parametrize("chunk_bytes", [1, 2**26])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "block"), SHAPES)
def test_centroid_error_is_svg_ears(monkeypatch, tokens, block, dtype, chunk_bytes):
    monkeypatch.setattr(block_error, "CHUNK_BYTES", chunk_bytes)
    q, k, v = problem(tokens, dtype)

    def pair(b, h, i, j):
        keys, values, query = one_head(k, b, h), one_head(v, b, h), one_head(q, b, h)[i].mean(0)
        logits = keys @ query * 8**-0.5
        total = logits.logsumexp(0)
        mean = (keys[j].mean(0) @ query * 8**-0.5 - total).exp() * values[j].mean(0)
        return (mean - (logits[j] - total).exp()[:, None] * values[j]).square().sum().item()

    expected = over_pairs(q, block, pair)
    torch.testing.assert_close(centroid_error(q, k, v, block), expected, rtol=1e-3, atol=1e-6)


def test_centroid_error_survives_large_logits():
    q, k, v = problem(64, scale=30.0)
    error = centroid_error(q, k, v, (16, 16))
    assert torch.isfinite(error).all()
    assert (error.amax(-1) > 0).all()


def test_cluster_error_is_the_same_over_blocks_of_equal_length():
    q, k, v = problem(64)
    q_lengths, kv_lengths = (torch.full((2, 2, n), 64 // n) for n in (4, 8))
    blocks = VariableBlocks(q_lengths, kv_lengths, torch.ones(2, 2, 4, 8, dtype=torch.bool))
    torch.testing.assert_close(cluster_error(q, k, v, blocks), centroid_error(q, k, v, (16, 8)))
    # An empty cluster errs by nothing and moves nothing.
    kv_lengths = torch.cat(
        [kv_lengths[..., :3], torch.zeros(2, 2, 1, dtype=torch.long), kv_lengths[..., 3:]], -1
    )
    blocks = VariableBlocks(q_lengths, kv_lengths, torch.ones(2, 2, 4, 9, dtype=torch.bool))
    error = cluster_error(q, k, v, blocks)
    assert error[..., 3].eq(0).all()
    others = [0, 1, 2, 4, 5, 6, 7, 8]
    torch.testing.assert_close(error[..., others], centroid_error(q, k, v, (16, 8)))


@pytest.mark.parametrize("chunk_bytes", [1, 2**26])
@pytest.mark.parametrize(("tokens", "block"), SHAPES)
def test_moment_error_is_its_formula(monkeypatch, tokens, block, chunk_bytes):
    monkeypatch.setattr("dit_sparse.kernels.pooling.CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(block_error, "CHUNK_BYTES", chunk_bytes)
    q, k, v = problem(tokens)
    columns = runs(tokens, block[1])

    def pair(b, h, i, j):
        keys, values, queries = one_head(k, b, h), one_head(v, b, h), one_head(q, b, h)[i]
        logits = torch.stack(
            [queries @ keys[c].mean(0) * 8**-0.5 + torch.tensor(c.stop - c.start).log() for c in columns], -1
        )
        mass = logits.softmax(-1)[:, columns.index(j)]
        spread = queries.square() @ keys[j].var(0, correction=0) / 8
        values_spread = values[j].var(0, correction=0).sum()
        return (mass.square() * spread / (1 + spread) * values_spread).mean().item()

    expected = over_pairs(q, block, pair)
    torch.testing.assert_close(moment_error(q, k, v, block), expected, rtol=1e-3, atol=1e-7)


def test_moments_are_exact_for_nothing_to_lose():
    """A block of equal keys, or of equal values, is served by its means without error."""
    q, k, v = problem(64)
    block = torch.arange(64) // 16
    like_keys = k[:, block * 16].contiguous()
    like_values = v[:, block * 16].contiguous()
    assert moment_error(q, like_keys, v, (16, 16)).amax() < 1e-10
    assert moment_error(q, k, like_values, (16, 16)).amax() < 1e-10
    out, lse = dense_attention(q, like_keys, v)
    assert skip_error(q, like_keys, v, out, lse, (16, 16)).amax() < 1e-8
    assert skip_error(q, like_keys, v, out, lse, (16, 16), compensated=False).amax() > 1e-3
    assert centroid_error(q, like_keys, v, (16, 16)).amax() > 1e-3, "the paper's counts the spread of values"


def test_variances_do_not_cancel_beside_a_large_offset():
    x = random_tokens(torch.Generator().manual_seed(3), (1, 70, 2, 8), torch.float32, "contiguous") + 1000
    expected = torch.stack([x[:, r].double().var(1, correction=0) for r in runs(70, 16)], dim=2)
    torch.testing.assert_close(block_variances(x, 16).double(), expected, rtol=1e-3, atol=0)


def test_tensors_that_do_not_fit_are_refused():
    q, k, v = problem(64)
    with pytest.raises(ValueError, match="q and k must share"):
        centroid_error(q, k[:1], v[:1], (16, 16))
    with pytest.raises(ValueError, match="block_size must be"):
        moment_error(q, k, v, (0, 16))


@pytest.mark.parametrize(
    ("tokens", "block", "rows"), [(64, 16, 4), (71, 16, 8), (50, 24, 8), (40, 20, 7), (16, 16, 99)]
)
def test_some_rows_stand_for_their_block(tokens, block, rows):
    q, k, v = problem(tokens)
    out, lse = dense_attention(q, k, v)
    alone = skip_error(q, k, v, out, lse, (1, 8))
    some = representative_rows(tokens, block, rows, q.device)
    found = skip_error(q, k, v, out, lse, (block, 8), rows=rows)
    for i in range(found.shape[2]):
        inside = some[some // block == i]
        torch.testing.assert_close(found[:, :, i], alone[:, :, inside].mean(dim=2), rtol=1e-4, atol=1e-9)
