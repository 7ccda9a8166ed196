"""Compensation, mean-key mass and pooling as compiled for a real GPU, against float64 at realistic sizes; the
CPU twins are in tests/kernels."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
from kernel_oracles import attention64, block_shape, map_of, poisoned_empty, random_mask, random_tokens
from pooled_oracles import mass64, means64, merged64, pooled64, relative_error, rounding_bound

from dit_sparse.kernels import (
    block_sparse_attention,
    compensate,
    mean_key_mass,
    pool_blocks,
    pooled_attention,
)
from dit_sparse.layout import BlockMap

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

BFLOAT, HALF, FLOAT = torch.bfloat16, torch.float16, torch.float32


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator(device="cuda").manual_seed(seed)


def draw(shape_q, num_keys, dtype, block, layout="contiguous", density=0.25):
    """q, k, v, a mask and its block map, and any output with any log-sum-exp to merge into."""
    batch, num_queries, heads, dim = shape_q
    g = generator(dim + num_queries)
    q = random_tokens(g, shape_q, dtype, layout, "cuda")
    k, v = (random_tokens(g, (batch, num_keys, heads, dim), dtype, layout, "cuda") for _ in range(2))
    mask = random_mask(g, block_shape(batch, heads, num_queries, num_keys, block), density, "cuda")
    out = random_tokens(g, shape_q, dtype, layout, "cuda")
    lse = torch.randn(batch, heads, num_queries, generator=g, device="cuda") + 5
    lse[0, 0, : block[0]] = -torch.inf  # the row of the mask that keeps nothing
    out[0, : block[0], 0] = 0
    return q, k, v, mask, map_of(mask, num_queries, num_keys, block), out, lse


def check(shape_q, num_keys, dtype, block, layout="contiguous", scale=None):
    """Everything against float64; the merge too, so that no dense attention is needed."""
    q, k, v, mask, block_map, out, lse = draw(shape_q, num_keys, dtype, block, layout)
    scale = shape_q[-1] ** -0.5 if scale is None else scale
    given = out.clone()
    with poisoned_empty():
        pooled, pooled_lse = pooled_attention(q, k, v, block_map, scale=scale, impl="triton")
        merged = compensate(q, k, v, out, lse, block_map, scale=scale, impl="triton")
        mass = mean_key_mass(q, k, block, scale, impl="triton")
        means = pool_blocks(k, block[1], impl="triton")

    torch.testing.assert_close(means.double(), means64(k, block[1]).transpose(1, 2), atol=1e-6, rtol=1e-5)
    expected, expected_lse = pooled64(q, k, v, mask, block, scale)
    some = torch.isfinite(expected_lse)
    assert torch.equal(torch.isfinite(pooled_lse), some)
    assert not pooled.transpose(1, 2)[~some].any()
    bound = rounding_bound(q, k, block[1], scale) + 1e-5
    torch.testing.assert_close(pooled_lse[some].double(), expected_lse[some], atol=bound, rtol=1e-5)
    tolerance = torch.finfo(dtype).eps + bound
    assert relative_error(pooled, expected) <= tolerance
    assert torch.equal(out, given)
    assert merged.dtype == dtype and merged.is_contiguous()
    assert relative_error(merged, merged64(out, lse, (expected, expected_lse))) <= tolerance
    full = ~some.transpose(1, 2)
    assert torch.equal(merged[full], out[full])

    shares = mass64(q, k, block, scale)
    torch.testing.assert_close(mass.double(), shares, atol=1e-7, rtol=2.02 * bound)
    torch.testing.assert_close(mass.sum(dim=-1), torch.ones_like(mass[..., 0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("tokens", "heads", "dim"), [(32_760, 4, 128), (75_600, 2, 128), (118_800, 1, 128), (17_776, 6, 64)]
)
def test_video_lengths(tokens, heads, dim):
    check((1, tokens, heads, dim), tokens, BFLOAT, (128, 128))


@pytest.mark.parametrize("dtype", [BFLOAT, HALF, FLOAT])
@pytest.mark.parametrize("dim", [64, 128])
def test_types(dim, dtype):
    check((2, 1500, 2, dim), 9000, dtype, (128, 128))


@pytest.mark.parametrize("block", [(64, 64), (32, 32), (64, 128), (256, 128), (48, 24)])
def test_blocks(block):
    check((2, 1500, 2, 64), 2345, BFLOAT, block)


@pytest.mark.parametrize("layout", ["transposed", "sliced"])
@pytest.mark.parametrize("dim", [32, 72, 80])
def test_head_sizes_and_strides(dim, layout):
    check((2, 1111, 3, dim), 1500, BFLOAT, (128, 128), layout)


@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 1), (128, 128), (129, 127), (257, 1), (50, 9000)])
def test_small_and_ragged(num_queries, num_keys):
    check((2, num_queries, 2, 64), num_keys, BFLOAT, (128, 128))


def test_large_logits():
    check((1, 1024, 2, 64), 2048, FLOAT, (128, 128), scale=8.0)


@pytest.mark.parametrize("tiles", [(128, 128, 8), (128, 64, 8), (128, 64, 4), (64, 128, 4), (64, 64, 4)])
def test_configurations(tiles):
    """The tiles that the tuning benchmark tries."""
    from dit_sparse.kernels import triton_compensation, triton_pooled

    if torch.cuda.get_device_capability()[0] not in (9, 10):
        pytest.skip("tiles for the shared memory of compute capability 9.0 and 10.x")
    block, scale = (128, 128), 128**-0.5
    q, k, v, mask, block_map, out, lse = draw((1, 2000, 2, 128), 20_000, BFLOAT, block)
    for stages in (2,) if tiles == (128, 128, 8) else (2, 3):
        config = triton_pooled.TileConfig(*tiles, stages)
        merged, _ = triton_compensation.attend(
            q, k, v, block_map, scale=scale, first=(out, lse), config=config
        )
        mass = triton_pooled.mass(q, k, block, scale=scale, config=config)
        expected = merged64(out, lse, pooled64(q, k, v, mask, block, scale))
        assert relative_error(merged, expected) <= torch.finfo(BFLOAT).eps
        bound = rounding_bound(q, k, block[1], scale)
        torch.testing.assert_close(mass.double(), mass64(q, k, block, scale), atol=1e-7, rtol=2.02 * bound)


@pytest.mark.parametrize("dtype", [BFLOAT, HALF, FLOAT])
def test_a_full_map_changes_nothing(dtype):
    q, k, v, _, _, out, lse = draw((1, 5000, 3, 64), 5000, dtype, (128, 128))
    full = BlockMap.full(1, 3, 5000, 5000, (128, 128), q.device)
    assert torch.equal(compensate(q, k, v, out, lse, full, scale=0.125, impl="triton"), out)


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5])
def test_compensation_is_dense_attention_when_the_keys_of_a_block_are_equal(density):
    tokens, dim = 8200, 128
    g = generator(5)
    q, k, v = (random_tokens(g, (1, tokens, 4, dim), BFLOAT, "contiguous", "cuda") for _ in range(3))
    k = k[:, torch.arange(tokens, device="cuda") // 128 * 128]
    mask = torch.rand(block_shape(1, 4, tokens, tokens, (128, 128)), generator=g, device="cuda") < density
    block_map = map_of(mask, tokens, tokens, (128, 128))
    out, lse = block_sparse_attention(q, k, v, block_map, return_lse=True)
    merged = compensate(q, k, v, out, lse, block_map, scale=dim**-0.5)
    for h in range(4):
        one = [x[:, :, h : h + 1] for x in (q, k, v)]
        dense, _ = attention64(*one, torch.ones(1, device="cuda", dtype=torch.bool), dim**-0.5)
        assert relative_error(merged[:, :, h : h + 1], dense) <= 2 * torch.finfo(BFLOAT).eps


def grown(run):
    """Bytes that ``run`` holds at its peak, beyond what was held before; its result included."""
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = run()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


def test_no_logits_in_memory():
    tokens, heads, dim = 32_760, 12, 128
    q, k, v, _, block_map, out, lse = draw((1, tokens, heads, dim), tokens, BFLOAT, (128, 128))
    # The result; means, and one float32 row per query block, are some percent of it.
    assert grown(lambda: compensate(q, k, v, out, lse, block_map, scale=0.1)) < 1.15 * out.nbytes
    assert grown(lambda: mean_key_mass(q, k, (128, 128))) < 0.15 * out.nbytes


def test_more_than_two_to_the_31_elements():
    """The last head of the last tokens lies beyond 32-bit offsets."""
    if torch.cuda.mem_get_info()[0] < 32 * 2**30:
        pytest.skip("needs 32 GiB of free GPU memory")
    tokens, heads, dim = 2**18 + 200, 64, 128
    x = torch.randn(1, tokens, heads, dim, generator=generator(), device="cuda", dtype=BFLOAT)
    lse = torch.zeros(1, heads, tokens, device="cuda")
    rows = -(-tokens // 128)
    diagonal = torch.arange(rows, device="cuda", dtype=torch.int32)
    indices = diagonal.expand(1, heads, rows)[..., None].contiguous()
    block_map = BlockMap(indices, torch.ones_like(indices[..., 0]), tokens, tokens, (128, 128))
    merged = compensate(x, x, x, x, lse, block_map, scale=0.05, impl="triton")
    mass = mean_key_mass(x, x, (128, 128), 0.05, impl="triton")
    for block in (0, rows - 2, rows - 1):
        at = slice(block * 128, min(block * 128 + 128, tokens))
        for h in (0, heads - 1):
            q, k = x[:, at, h : h + 1], x[:, :, h : h + 1]
            mask = (diagonal == block).expand(1, 1, 1, rows)
            pooled = pooled64(q, k, k, mask, (128, 128), 0.05)
            expected = merged64(q, lse[:, h : h + 1, at], pooled)
            assert relative_error(merged[:, at, h : h + 1], expected) <= torch.finfo(BFLOAT).eps
            shares = mass64(q, k, (128, 128), 0.05)[:, 0, 0]
            torch.testing.assert_close(mass[:, h, block].double(), shares, atol=1e-7, rtol=0.05)


def test_auto_runs_the_kernels():
    """Bit for bit what they give by name: the definition would differ in rounding."""
    q, k, v, _, block_map, out, lse = draw((1, 3000, 2, 64), 3000, BFLOAT, (128, 128))
    runs = [
        lambda impl: compensate(q, k, v, out, lse, block_map, scale=0.1, impl=impl),
        lambda impl: pooled_attention(q, k, v, block_map, scale=0.1, impl=impl)[0],
        lambda impl: mean_key_mass(q, k, (128, 128), impl=impl),
    ]
    for run in runs:
        assert torch.equal(run("auto"), run("triton"))
        assert not torch.equal(run("auto"), run("reference"))


def test_nothing_waits_for_the_gpu():
    q, k, v, _, block_map, out, lse = draw((1, 3000, 2, 64), 3000, BFLOAT, (128, 128))

    def step():
        compensate(q, k, v, out, lse, block_map, scale=0.1)
        mean_key_mass(q, k, (128, 128))
        pool_blocks(k, 128)

    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_one_compilation_serves_all_lengths(monkeypatch):
    triton = pytest.importorskip("triton")
    if not hasattr(getattr(triton, "knobs", None), "runtime"):
        pytest.skip("this triton has no compile hook")
    compiled = []

    def run(tokens):
        q, k, v, _, block_map, out, lse = draw((1, tokens, 3, 64), tokens, HALF, (128, 128))
        compensate(q, k, v, out, lse, block_map, scale=0.1)
        pooled_attention(q, k, v, block_map, scale=0.1)
        mean_key_mass(q, k, (128, 128))
        pool_blocks(k, 128)

    run(1000)
    monkeypatch.setattr(
        triton.knobs.runtime, "jit_post_compile_hook", lambda *args, **kwargs: compiled.append(kwargs)
    )
    for tokens in (100, 128, 1024, 1025, 2000, 4321, 32_760):
        run(tokens)
    assert not compiled
