"""Margins of 4-bit logits: exact for levels, near for random tokens, the largest of each block."""

import pytest
import torch
from kernel_oracles import random_tokens

from dit_sparse.kernels import low_bit, low_bit_margin


def exact_margin(q, k, lse, block, scale):
    logits = torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double()) * scale - lse.double()[..., None]
    rows = [
        torch.stack([part.amax(dim=(-1, -2)) for part in strip.split(block[1], dim=-1)], -1)
        for strip in logits.split(block[0], dim=-2)
    ]
    return torch.stack(rows, dim=-2)


def on_levels(shape, seed):
    """Tokens that 4 bits hold exactly: whole numbers to 7, 7 in every group; keys without a mean."""
    x = torch.randint(-6, 7, shape, generator=torch.Generator().manual_seed(seed)).float()
    x[:, ::32] = 7.0
    return x


@pytest.mark.parametrize("chunk_bytes", [1, 2**26])
@pytest.mark.parametrize(
    ("tokens", "block"), [(128, (32, 16)), (96, (16, 64)), (70, (32, 48)), (10, (16, 16))]
)
def test_the_margin_of_exact_levels_is_exact(monkeypatch, tokens, block, chunk_bytes):
    monkeypatch.setattr(low_bit, "CHUNK_BYTES", chunk_bytes)
    q, half = on_levels((2, tokens, 2, 16), 1), on_levels((2, tokens // 2, 2, 16), 2)
    # Pairs of opposite keys have a mean of nothing, so that levels stay levels; an offset is taken out again.
    k = torch.stack([half, -half], dim=2).flatten(1, 2)
    lse = torch.randn(2, 2, tokens, generator=torch.Generator().manual_seed(3))
    for offset in (0.0, 4.0):
        margin = low_bit_margin(q, k + offset, lse, block, 0.1)
        expected = exact_margin(q, k + offset, lse, block, 0.1)
        torch.testing.assert_close(margin.double(), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_estimate_is_near(dtype):
    generator = torch.Generator().manual_seed(0)
    q, k = (random_tokens(generator, (1, 200, 2, 32), dtype, "transposed") for _ in range(2))
    lse = torch.zeros(1, 2, 200)
    expected = exact_margin(q, k, lse, (32, 32), 32**-0.5)
    margin = low_bit_margin(q, k, lse, (32, 32)).double()
    # Rounding to 15 levels of the largest of 32 x 32 numbers moves a logit by about a seventh of its spread.
    assert (margin - expected).abs().mean() < 0.25
    assert torch.corrcoef(torch.stack([margin.flatten(), expected.flatten()]))[0, 1] > 0.9


def test_one_strong_key_among_weak_ones_is_found():
    q, k = torch.ones(1, 64, 1, 16), torch.zeros(1, 64, 1, 16)
    k[0, 37] = 8.0
    margin = low_bit_margin(q, k, torch.zeros(1, 1, 64), (16, 16), 1.0)[0, 0]
    assert margin.argmax(dim=-1).eq(2).all()
    torch.testing.assert_close(margin[:, 2], torch.full((4,), 128.0), rtol=0.1, atol=0)


def test_the_known_part_must_fit():
    q, k = torch.ones(1, 64, 1, 16), torch.ones(1, 64, 1, 16)
    with pytest.raises(ValueError, match=r"lse must be \[B, H, Nq\].*\(1, 64, 1\)"):
        low_bit_margin(q, k, torch.zeros(1, 64, 1), (16, 16))
