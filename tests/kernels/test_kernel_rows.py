"""Permutation and its inverse: bit-exact, for every form of order, on both implementations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_oracles import poisoned_empty, random_tokens

from dit_sparse.kernels import permute_rows, permute_together, restore_rows
from dit_sparse.kernels.dispatch import installed

IMPLEMENTATIONS = ["reference"]
if installed("triton") and not torch.cuda.is_available():
    IMPLEMENTATIONS.append("triton")


def random_order(generator: torch.Generator, form: str, batch: int, heads: int, tokens: int) -> torch.Tensor:
    shape = {"N": (tokens,), "HN": (heads, tokens), "BHN": (batch, heads, tokens)}[form]
    return torch.rand(shape, generator=generator).argsort(dim=-1)


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int16 if x.element_size() == 2 else torch.int32)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 2),
    tokens=st.integers(1, 90),
    heads=st.integers(1, 3),
    dim=st.sampled_from([1, 32, 40, 72, 128]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    layout=st.sampled_from(["contiguous", "transposed", "sliced"]),
    form=st.sampled_from(["N", "HN", "BHN"]),
    seed=st.integers(0, 2**16),
)
def test_permute_follows_the_definition_and_restore_inverts(
    impl, batch, tokens, heads, dim, dtype, layout, form, seed
):
    g = torch.Generator().manual_seed(seed)
    x = random_tokens(g, (batch, tokens, heads, dim), dtype, layout)
    order = random_order(g, form, batch, heads, tokens)
    with poisoned_empty():
        moved = permute_rows(x, order, impl=impl)
        back = restore_rows(moved, order, impl=impl)
    rows = order.expand(batch, heads, tokens)
    for b in range(batch):
        for h in range(heads):
            assert torch.equal(moved[b, :, h], x[b, rows[b, h], h])
    assert moved.is_contiguous()
    assert back.is_contiguous()
    assert torch.equal(bits(back), bits(x.contiguous()))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("form", ["N", "BHN"])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("alike", [True, False])
def test_tensors_that_share_an_order_move_as_each_alone(impl, form, count, alike):
    g = torch.Generator().manual_seed(0)
    layouts = ["contiguous"] * 3 if alike else ["contiguous", "transposed", "sliced"]
    tensors = [random_tokens(g, (2, 70, 3, 40), torch.bfloat16, layout) for layout in layouts[:count]]
    order = random_order(g, form, 2, 3, 70)
    with poisoned_empty():
        together = permute_together(tensors, order, impl=impl)
    assert len(together) == count
    for moved, x in zip(together, tensors):
        assert moved.is_contiguous()
        assert torch.equal(moved, permute_rows(x, order, impl="reference"))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_bytes_are_moved(impl):
    x = torch.arange(-120, 120, dtype=torch.int8).view(1, 20, 3, 4).repeat(2, 1, 1, 1)
    order = torch.randperm(20)
    moved = permute_rows(x, order, impl=impl)
    assert moved.dtype == torch.int8
    assert torch.equal(moved, x[:, order])
    assert torch.equal(restore_rows(moved, order, impl=impl), x)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(("dtype", "integer"), [(torch.float16, torch.int16), (torch.float32, torch.int32)])
def test_every_bit_pattern_survives(impl, dtype, integer):
    """Signalling NaNs, denormals, negative zero."""
    info = torch.iinfo(integer)
    patterns = torch.linspace(info.min, info.max, 64 * 32, dtype=torch.float64).to(integer).view(1, 64, 1, 32)
    order = torch.randperm(64)
    moved = permute_rows(patterns.view(dtype), order, impl=impl)
    assert torch.equal(moved.view(integer), patterns[:, order])
    assert torch.equal(restore_rows(moved, order, impl=impl).view(integer), patterns)


def test_bad_orders_are_named():
    x = torch.randn(2, 8, 3, 4)
    with pytest.raises(ValueError, match=r"got \(2, 8\)"):
        permute_rows(x, torch.arange(16).view(2, 8))
    with pytest.raises(ValueError, match=r"int64 or int32.*float32"):
        restore_rows(x, torch.arange(8.0))
    with pytest.raises(ValueError, match=r"must be \[N\].*\(2, 9, 3, 4\).*got \(8,\)"):
        permute_together((x, torch.randn(2, 9, 3, 4)), torch.arange(8))
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"one to 3 tensors can be moved together, got {count}"):
            permute_together((x,) * count, torch.arange(8))
    with pytest.raises(ValueError, match=r"unknown impl 'fast'"):
        permute_rows(x, torch.arange(8), impl="fast")
