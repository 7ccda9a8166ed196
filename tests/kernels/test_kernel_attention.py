"""Every backend of block-sparse attention against float64, over shapes, strides, types, empty and ragged
blocks."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_oracles import (
    attention64,
    block_shape,
    eager_attention,
    error,
    map_of,
    poisoned_empty,
    random_mask,
    random_tokens,
    tokens_of,
)

from dit_sparse.kernels import block_sparse_attention
from dit_sparse.kernels.dispatch import installed
from dit_sparse.layout import BlockMap

LAYOUTS = ["contiguous", "transposed", "sliced"]
CPU_BACKENDS = ["reference", "gathered"]
BACKENDS = [
    *CPU_BACKENDS,
    pytest.param(
        "triton", marks=pytest.mark.skipif(not installed("triton"), reason="triton is not installed")
    ),
]
on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU, tests/gpu runs the compiled kernel")


def check(
    impl,
    batch,
    heads,
    num_queries,
    num_keys,
    dim,
    block,
    dtype,
    layout,
    density,
    seed,
    scale=None,
    tolerance=1e-5,
):
    """One comparison with float64: output, log-sum-exp, empty rows, memory layout, nothing left unwritten."""
    g = torch.Generator().manual_seed(seed)
    q = random_tokens(g, (batch, num_queries, heads, dim), dtype, layout)
    k = random_tokens(g, (batch, num_keys, heads, dim), dtype, layout)
    v = random_tokens(g, (batch, num_keys, heads, dim), dtype, "contiguous")
    mask = random_mask(g, block_shape(batch, heads, num_queries, num_keys, block), density)
    block_map = map_of(mask, num_queries, num_keys, block)
    with poisoned_empty():
        out, lse = block_sparse_attention(q, k, v, block_map, scale=scale, return_lse=True, impl=impl)

    seen = tokens_of(mask, block, num_queries, num_keys)
    scale = dim**-0.5 if scale is None else scale
    expected, expected_lse = attention64(q, k, v, seen, scale)
    assert out.shape == q.shape
    assert out.dtype == dtype
    assert out.is_contiguous()
    assert lse.dtype == torch.float32
    assert lse.shape == (batch, heads, num_queries)
    empty = ~seen.any(dim=-1)
    assert torch.equal(torch.isneginf(lse), empty)
    assert not out.transpose(1, 2)[empty].any()
    torch.testing.assert_close(lse[~empty].double(), expected_lse[~empty], atol=2e-5, rtol=2e-5)
    if dtype == torch.float32:
        torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)
    else:
        assert error(out, expected) <= 2 * error(eager_attention(q, k, v, seen, scale), expected)


@pytest.mark.parametrize("impl", CPU_BACKENDS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    num_queries=st.integers(1, 150),
    num_keys=st.integers(1, 150),
    dim=st.sampled_from([1, 32, 40, 64]),
    block=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    layout=st.sampled_from(LAYOUTS),
    density=st.sampled_from([0.0, 0.2, 0.6, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_any_shape_matches_float64(
    impl, batch, heads, num_queries, num_keys, dim, block, dtype, layout, density, seed
):
    if dtype != torch.float32:  # a root mean square over a handful of numbers would be all chance
        num_queries, dim = num_queries + 64, 32
    check(impl, batch, heads, num_queries, num_keys, dim, block, dtype, layout, density, seed)


@on_cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("dim", "layout", "block", "num_queries", "num_keys", "batch"),
    [
        (32, "contiguous", (32, 32), 70, 81, 2),
        (40, "transposed", (64, 16), 63, 111, 1),
        (72, "sliced", (16, 64), 33, 65, 1),
        (80, "contiguous", (32, 64), 96, 128, 1),
        (96, "transposed", (48, 32), 96, 33, 1),
        (128, "sliced", (64, 64), 130, 190, 1),
    ],
)
def test_triton_matches_float64(dtype, dim, layout, block, num_queries, num_keys, batch):
    pytest.importorskip("triton")
    check("triton", batch, 2, num_queries, num_keys, dim, block, dtype, layout, 0.5, seed=dim)


@on_cpu
@pytest.mark.parametrize("block", [(128, 128), (128, 64), (64, 64), (64, 128)])
def test_triton_production_blocks(block):
    pytest.importorskip("triton")
    check("triton", 1, 2, 200, 333, 64, block, torch.float32, "contiguous", 0.6, seed=1)


@on_cpu
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("tma", [False, True])
@pytest.mark.parametrize("dim", [40, 64])
def test_triton_tiles_smaller_than_the_block(tma, dim, overlap):
    """Several tiles per block, and a ragged block whose last tiles hold no key at all."""
    triton_forward = pytest.importorskip("dit_sparse.kernels.triton_forward", exc_type=ImportError)
    g = torch.Generator().manual_seed(3)
    q = random_tokens(g, (2, 90, 2, dim), torch.float32, "transposed")
    k = random_tokens(g, (2, 133, 2, dim), torch.float32, "sliced")
    v = random_tokens(g, (2, 133, 2, dim), torch.float32, "contiguous")
    mask = random_mask(g, block_shape(2, 2, 90, 133, (64, 64)), 0.6)
    config = triton_forward.TileConfig(16, 16, 4, 2, tma=tma, overlap=overlap)
    block_map = map_of(mask, 90, 133, (64, 64))
    with poisoned_empty():
        out, lse = triton_forward.forward(q, k, v, block_map, scale=0.3, return_lse=True, config=config)
    expected, expected_lse = attention64(q, k, v, tokens_of(mask, (64, 64), 90, 133), 0.3)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-5, rtol=1e-5)


@on_cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_keys", [30, 32, 96, 100])
def test_triton_overlap_changes_nothing(dtype, num_keys):
    """Rows without a block, with the ragged one alone, with one whole block, and with several; values that
    the row does not keep are NaN."""
    triton_forward = pytest.importorskip("dit_sparse.kernels.triton_forward", exc_type=ImportError)
    g = torch.Generator().manual_seed(7)
    q, k, v = (
        random_tokens(g, (1, tokens, 1, 32), dtype, "contiguous") for tokens in (160, num_keys, num_keys)
    )
    blocks = -(-num_keys // 32)
    mask = torch.zeros(1, 1, 5, blocks, dtype=torch.bool)
    mask[..., 1, -1] = mask[..., 2, 0] = mask[..., 3, 1:] = mask[..., 4, :] = True
    for row in range(5):
        here = slice(row * 32, row * 32 + 32)
        hidden = ~mask[0, 0, row].repeat_interleave(32)[:num_keys]
        poisoned = v.masked_fill(hidden[None, :, None, None], torch.nan)
        one = map_of(mask[:, :, row : row + 1], 32, num_keys, (32, 32))
        results = [
            triton_forward.forward(
                q[:, here], k, poisoned, one, scale=0.3, return_lse=True,
                config=triton_forward.TileConfig(32, 16, 4, 2, tma=True, overlap=overlap),
            )
            for overlap in (False, True)
        ]  # fmt: skip
        for plain, overlapped in zip(*results):
            assert not overlapped.isnan().any()
            torch.testing.assert_close(overlapped, plain, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("impl", BACKENDS)
def test_full_map_is_dense_attention(impl):
    if impl == "triton" and torch.cuda.is_available():
        pytest.skip("on a GPU, tests/gpu runs the compiled kernel")
    g = torch.Generator().manual_seed(0)
    q, k, v = (random_tokens(g, (1, 77, 2, 64), torch.float32, "contiguous") for _ in range(3))
    block_map = BlockMap.full(1, 2, 77, 77, (32, 32), q.device)
    dense = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
    out = block_sparse_attention(q, k, v, block_map, impl=impl)
    torch.testing.assert_close(out, dense.transpose(1, 2), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("impl", BACKENDS)
def test_large_logits_and_explicit_scale(impl):
    """Logits in the hundreds: an online softmax that forgets its running maximum overflows here."""
    if impl == "triton" and torch.cuda.is_available():
        pytest.skip("on a GPU, tests/gpu runs the compiled kernel")
    # float32 rounds a logit of 300 by 1e-5, and the exponential passes that on.
    block = (32, 32)
    check(
        impl, 1, 1, 64, 128, 64, block, torch.float32, "contiguous", 0.7, seed=5, scale=12.0, tolerance=3e-4
    )


@pytest.mark.parametrize("impl", BACKENDS)
def test_skipped_tokens_are_never_read_into_the_result(impl):
    """NaN in every skipped key and value block, and behind the end of a ragged sequence."""
    if impl == "triton" and torch.cuda.is_available():
        pytest.skip("on a GPU, tests/gpu runs the compiled kernel")
    g = torch.Generator().manual_seed(4)
    q = random_tokens(g, (1, 64, 1, 32), torch.float32, "contiguous")
    storage_k, storage_v = (random_tokens(g, (1, 160, 1, 32), torch.float32, "contiguous") for _ in range(2))
    storage_k[:, 32:64] = storage_v[:, 32:64] = torch.nan
    storage_k[:, 110:] = storage_v[:, 110:] = torch.nan
    k, v = storage_k[:, :110], storage_v[:, :110]
    mask = torch.tensor([[True, False, False, True], [True, False, True, True]]).expand(1, 1, 2, 4)
    out = block_sparse_attention(q, k, v, BlockMap.from_mask(mask, 64, 110, (32, 32)), impl=impl)
    seen = tokens_of(mask, (32, 32), 64, 110)
    expected, _ = attention64(q, k.nan_to_num(), v.nan_to_num(), seen, 32**-0.5)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)


def test_gathered_buckets_change_nothing(monkeypatch):
    """Tiny batches and the padding of uneven counts to a bucket must not show in the result."""
    from dit_sparse.kernels import gathered

    monkeypatch.setattr(gathered, "GATHER_BYTES", 1)
    monkeypatch.setattr(gathered, "BUCKET_RATIO", 1)
    check("gathered", 2, 3, 130, 500, 32, (16, 16), torch.float32, "transposed", 0.4, seed=9)


@pytest.mark.parametrize("count", [1, 7, 8, 15, 16, 17, 31, 33, 100, 592])
def test_bucket_ceiling_wastes_at_most_its_ratio(count):
    from dit_sparse.kernels.gathered import BUCKET_RATIO, bucket_ceiling

    assert count <= bucket_ceiling(count) <= count * (1 + 1 / BUCKET_RATIO)
