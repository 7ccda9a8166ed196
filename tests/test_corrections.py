"""Corrections: exact where theory says so, harmless where nothing was skipped."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_sparse import kernels
from dit_sparse.corrections import PooledCompensation, correction_named
from dit_sparse.engine import SparseMethod, sparse_attention
from dit_sparse.layout import BlockMap, Site, TokenLayout
from dit_sparse.schedule import Schedule
from dit_sparse.selectors import TopK
from dit_sparse.state import LayerState


def dense(q, k, v):
    q, k, v = (x.transpose(1, 2).double() for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def attend(q, k, v, layout, density, correction):
    method = SparseMethod(
        "t", TopK(density, "row"), correction=correction, schedule=Schedule(), block_size=16
    )
    context = method.context(layout, Site(0, 0), LayerState(), head_dim=q.shape[-1])
    return sparse_attention(q, k, v, method=method, context=context)[0]


def random(tokens, heads=2, dim=16, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, tokens, heads, dim, generator=generator) for _ in range(3)]


@settings(max_examples=20)
@given(st.integers(40, 150), st.floats(0.05, 0.9), st.integers(0, 99))
def test_pooling_is_exact_when_a_block_holds_equal_keys(tokens, density, seed):
    q, k, v = random(tokens, batch=2, seed=seed)
    block = torch.arange(tokens) // 16
    k = k[:, block]  # every key of a block alike; the values may differ
    out = attend(q, k, v, TokenLayout(1, 1, tokens), density, PooledCompensation())
    torch.testing.assert_close(out.double(), dense(q, k, v), rtol=1e-4, atol=1e-5)


def test_uniform_attention_needs_no_blocks():
    q, k, v = random(256)
    q = q * 1e-3
    layout, exact = TokenLayout(1, 16, 16), dense(q, k, v)
    plain = (attend(q, k, v, layout, 0.1, None) - exact).norm() / exact.norm()
    corrected = (attend(q, k, v, layout, 0.1, PooledCompensation()) - exact).norm() / exact.norm()
    assert corrected < 1e-2 < plain


def test_nothing_changes_at_density_one():
    q, k, v = random(100)
    layout = TokenLayout(1, 10, 10)
    assert torch.equal(attend(q, k, v, layout, 1.0, PooledCompensation()), attend(q, k, v, layout, 1.0, None))


def test_merging_the_attention_of_two_halves_is_the_attention_of_all(monkeypatch):
    q, k, v = random(90)
    mask = torch.rand(1, 2, 6, 6, generator=torch.Generator().manual_seed(4)) < 0.5
    mask[0, 0, 1] = False
    mask[0, 1, 2] = True
    halves = [BlockMap.from_mask(m, 90, 90, (16, 16)) for m in (mask, ~mask)]
    parts = [kernels.block_sparse_attention(q, k, v, half, return_lse=True) for half in halves]
    merged = kernels.merge_attention(*parts[0], *parts[1])
    torch.testing.assert_close(merged.double(), dense(q, k, v), rtol=1e-5, atol=1e-5)
    monkeypatch.setattr("dit_sparse.kernels.pooling.CHUNK_BYTES", 4 * 2 * 6 * 7)  # seven queries a chunk
    chunked = kernels.pooled_attention(q, k, v, halves[0], scale=0.25)
    monkeypatch.undo()
    whole = kernels.pooled_attention(q, k, v, halves[0], scale=0.25)
    torch.testing.assert_close(chunked, whole)
    assert torch.isneginf(whole[1][0, 1, 32:48]).all()
    assert whole[0][0, 32:48, 1].eq(0).all()


def test_unknown_corrections_are_refused():
    with pytest.raises(ValueError, match="'magic'.*pooled"):
        correction_named("magic")
