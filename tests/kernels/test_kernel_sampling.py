"""Attention of sampled rows and likeness of blocks, against their definitions, whole and in chunks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_sparse import kernels
from dit_sparse.kernels import sampling, similarity


def tensors(rows=5, tokens=37, heads=3, dim=7, batch=2):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(batch, rows, heads, dim, generator=generator)
    return q, torch.randn(batch, tokens, heads, dim, generator=generator)


def attention(q, k, scale):
    return (torch.einsum("brhd,bnhd->bhrn", q.double(), k.double()) * scale).softmax(dim=-1)


@pytest.mark.parametrize("chunk", [1, 2 * 5 * 37 * 4 * 2, 2**26])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_recall_and_block_mass_of_sampled_rows(monkeypatch, chunk, scale):
    monkeypatch.setattr(sampling, "CHUNK_BYTES", chunk)
    q, k = tensors()
    exact = attention(q, k, 7**-0.5 if scale is None else scale)
    masks = torch.rand(4, 5, 37, generator=torch.Generator().manual_seed(1)) < 0.4
    recall = kernels.sampled_recall(q, k, masks, scale)
    expected = (exact[:, :, None] * masks).sum(dim=-1).mean(dim=-1)
    torch.testing.assert_close(recall.double(), expected, rtol=1e-5, atol=1e-6)
    for block in (1, 8, 40):
        mass = kernels.sampled_block_mass(q, k, block, scale)
        for i in range(-(-37 // block)):
            part = exact[..., block * i : block * (i + 1)].sum(dim=-1)
            torch.testing.assert_close(mass[..., i].double(), part, rtol=1e-5, atol=1e-6)


def test_bad_masks_and_blocks_are_refused():
    q, k = tensors()
    with pytest.raises(ValueError, match=r"\[M, 5, 37\], got \(5, 37\)"):
        kernels.sampled_recall(q, k, torch.ones(5, 37, dtype=torch.bool))
    with pytest.raises(ValueError, match="block_k must be at least 1, got 0"):
        kernels.sampled_block_mass(q, k, 0)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("chunk", [1, 2**26])
def test_similarity_is_the_mean_cosine_over_all_pairs(monkeypatch, centred, chunk):
    monkeypatch.setattr(similarity, "CHUNK_BYTES", chunk)
    x = tensors()[1] + 0.5
    found = kernels.block_similarity(x, 16, centred=centred)
    assert found.shape == (2, 3, 3)
    x = x.double() - (x.double().mean(dim=1, keepdim=True) if centred else 0)
    x = torch.nn.functional.normalize(x, dim=-1)
    for i, part in enumerate(x.split(16, dim=1)):
        expected = torch.einsum("bnhd,bmhd->bhnm", part, part).mean(dim=(-1, -2))
        torch.testing.assert_close(found[..., i].double(), expected, rtol=1e-5, atol=1e-6)


def test_similarity_of_equal_and_of_orthogonal_tokens():
    assert kernels.block_similarity(torch.ones(1, 8, 1, 4), 4).eq(1).all()
    orthogonal = torch.eye(4)[None, :, None]
    torch.testing.assert_close(kernels.block_similarity(orthogonal, 4), torch.tensor([[[0.25]]]))


@settings(max_examples=100)
@given(tokens=st.integers(1, 3000), block=st.sampled_from([8, 24, 32, 100, 128]), rows=st.integers(1, 200))
def test_one_row_of_every_run_stands_for_its_block(tokens, block, rows):
    found = kernels.representative_rows(tokens, block, rows, torch.device("cpu"))
    run = block // rows if rows <= block and block % max(1, block // rows) == 0 else 1
    run = max(1, run)
    assert torch.equal(found // run, torch.arange(-(-tokens // run)))
    counts = torch.bincount(found // block)
    assert (counts[:-1] == block // run).all()


@pytest.mark.parametrize("tile", [(8, 4, 4), (4, 4, 8), (2, 8, 8), (1, 8, 16)])
def test_representatives_lie_in_all_columns_of_a_tile(tile):
    """A stride of 4 over 128 tokens would meet a quarter of the columns only."""
    found = kernels.representative_rows(128 * 50, 128, 32, torch.device("cpu"))
    inside = found % 128
    columns = torch.stack([inside // (tile[1] * tile[2]), inside // tile[2] % tile[1], inside % tile[2]])
    for axis, length in zip(columns, tile):
        shares = torch.bincount(axis, minlength=length) / len(found)
        torch.testing.assert_close(shares, torch.full((length,), 1 / length), rtol=0.1, atol=0)
