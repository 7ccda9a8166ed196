"""The kernels as compiled for a real GPU, against float64 at realistic sizes; the CPU twins are in
tests/kernels."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
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

from dit_sparse.kernels import (
    block_mass,
    block_sparse_attention,
    explain_backend,
    kmeans,
    permute_rows,
    pool_blocks,
    pooled_scores,
    restore_rows,
    sort_by_label,
)
from dit_sparse.kernels.dispatch import Request, resolve_backend
from dit_sparse.layout import BlockMap

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

BACKENDS = ["flash4", "triton", "gathered"]
BFLOAT, HALF, FLOAT = torch.bfloat16, torch.float16, torch.float32


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator(device="cuda").manual_seed(seed)


def skip_unless_able(impl, dtype, dim, block):
    """Skip with the dispatcher's own reason, e.g. that flash-attn-4 is not installed."""
    try:
        resolve_backend(impl, Request(torch.device("cuda"), dtype, dim, block, by_name=True))
    except ValueError as reason:
        pytest.skip(str(reason))


def check(
    impl, batch, heads, num_queries, num_keys, dim, block, dtype, layout="contiguous", density=0.4, scale=None
):
    skip_unless_able(impl, dtype, dim, block)
    g = generator(dim + num_queries)
    q = random_tokens(g, (batch, num_queries, heads, dim), dtype, layout, "cuda")
    k = random_tokens(g, (batch, num_keys, heads, dim), dtype, layout, "cuda")
    v = random_tokens(g, (batch, num_keys, heads, dim), dtype, layout, "cuda")
    mask = random_mask(g, block_shape(batch, heads, num_queries, num_keys, block), density, "cuda")
    with poisoned_empty():
        block_map = map_of(mask, num_queries, num_keys, block)
        out, lse = block_sparse_attention(q, k, v, block_map, scale=scale, return_lse=True, impl=impl)

    seen = tokens_of(mask, block, num_queries, num_keys)
    scale = dim**-0.5 if scale is None else scale
    expected, expected_lse = attention64(q, k, v, seen, scale)
    assert out.dtype == dtype
    assert out.is_contiguous()
    empty = ~seen.any(dim=-1)
    assert torch.equal(torch.isneginf(lse), empty)
    assert not out.transpose(1, 2)[empty].any()
    torch.testing.assert_close(lse[~empty].double(), expected_lse[~empty], atol=1e-4, rtol=1e-4)
    if dtype == FLOAT:
        torch.testing.assert_close(out.double(), expected, atol=2e-5, rtol=1e-4)
    else:
        assert error(out, expected) <= 2 * error(eager_attention(q, k, v, seen, scale), expected) + 1e-6


@pytest.mark.parametrize("impl", BACKENDS)
@pytest.mark.parametrize("block", [(128, 128), (128, 64), (64, 64), (64, 128)])
@pytest.mark.parametrize("dim", [64, 128])
def test_blocks_and_head_sizes(impl, block, dim):
    check(impl, 1, 2, 3000, 4321, dim, block, BFLOAT)


@pytest.mark.parametrize("impl", BACKENDS)
@pytest.mark.parametrize("dim", [32, 40, 72, 80, 96])
def test_odd_head_sizes(impl, dim):
    check(impl, 2, 3, 1111, 1500, dim, (128, 128), HALF)


@pytest.mark.parametrize("impl", BACKENDS)
@pytest.mark.parametrize("layout", ["transposed", "sliced"])
@pytest.mark.parametrize("dim", [64, 80, 128])
def test_strides(impl, layout, dim):
    check(impl, 2, 2, 1024, 1000, dim, (128, 128), BFLOAT, layout)


@pytest.mark.parametrize("impl", ["triton", "gathered"])
@pytest.mark.parametrize(
    ("dim", "block"), [(40, (128, 128)), (64, (64, 64)), (80, (128, 64)), (128, (128, 128))]
)
def test_float32(impl, dim, block):
    check(impl, 1, 2, 1111, 1300, dim, block, FLOAT)


@pytest.mark.parametrize("impl", BACKENDS)
@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 1), (128, 128), (129, 127), (257, 1), (640, 65)])
def test_small_and_ragged(impl, num_queries, num_keys):
    check(impl, 2, 2, num_queries, num_keys, 64, (128, 128), BFLOAT, density=0.7)


@pytest.mark.parametrize("impl", BACKENDS)
def test_large_logits(impl):
    check(impl, 1, 2, 1024, 1024, 64, (128, 128), BFLOAT, scale=4.0)


@pytest.mark.parametrize("impl", ["flash4", "triton"])
def test_output_does_not_depend_on_asking_for_the_lse(impl):
    skip_unless_able(impl, BFLOAT, 64, (128, 128))
    q, k, v = (random_tokens(generator(), (1, 1000, 2, 64), BFLOAT, "contiguous", "cuda") for _ in range(3))
    block_map = map_of(random_mask(generator(), (1, 2, 8, 8), 0.5, "cuda"), 1000, 1000, (128, 128))
    with_lse, _ = block_sparse_attention(q, k, v, block_map, return_lse=True, impl=impl)
    torch.testing.assert_close(block_sparse_attention(q, k, v, block_map, impl=impl), with_lse)


@pytest.mark.parametrize(("tma", "overlap"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(("dim", "tiles"), [(40, (64, 32)), (64, (64, 128)), (128, (128, 64))])
def test_triton_configurations(tma, overlap, dim, tiles):
    """Both ways to load K and V, with several tiles per block; products beside the softmax."""
    from dit_sparse.kernels import triton_forward

    if tma and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("tensor descriptors need compute capability 9.0")
    g = generator()
    q, k, v = (random_tokens(g, (2, 1500, 2, dim), BFLOAT, "transposed", "cuda") for _ in range(3))
    mask = random_mask(g, block_shape(2, 2, 1500, 1500, (128, 128)), 0.4, "cuda")
    config = triton_forward.TileConfig(*tiles, num_warps=4, num_stages=3, tma=tma, overlap=overlap)
    scale = dim**-0.5
    out, _ = triton_forward.forward(
        q, k, v, map_of(mask, 1500, 1500, (128, 128)), scale=scale, return_lse=True, config=config
    )
    seen = tokens_of(mask, (128, 128), 1500, 1500)
    expected, _ = attention64(q, k, v, seen, scale)
    assert error(out, expected) <= 2 * error(eager_attention(q, k, v, seen, scale), expected) + 1e-6


@pytest.mark.parametrize("impl", ["flash4", "triton"])
@pytest.mark.parametrize(("tokens", "heads", "dim"), [(32_760, 4, 128), (17_776, 8, 64)])
def test_video_lengths_agree_with_sdpa(impl, tokens, heads, dim):
    """Density 1 at the token counts of Wan 480p and CogVideoX."""
    skip_unless_able(impl, BFLOAT, dim, (128, 128))
    g = generator()
    q, k, v = (random_tokens(g, (1, tokens, heads, dim), BFLOAT, "contiguous", "cuda") for _ in range(3))
    out = block_sparse_attention(
        q, k, v, BlockMap.full(1, heads, tokens, tokens, (128, 128), q.device), impl=impl
    )
    dense = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
    torch.testing.assert_close(out, dense.transpose(1, 2), atol=3e-3, rtol=2e-2)


@pytest.mark.parametrize("impl", ["flash4", "triton"])
def test_more_than_two_to_the_31_elements(impl):
    """The last head of the last tokens lies beyond 32-bit offsets."""
    skip_unless_able(impl, BFLOAT, 128, (128, 128))
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free GPU memory")
    tokens, heads, dim = 2**18 + 200, 64, 128
    g = generator()
    q, k, v = (torch.randn(1, tokens, heads, dim, generator=g, device="cuda", dtype=BFLOAT) for _ in range(3))
    rows = -(-tokens // 128)
    indices = (
        torch.arange(rows, device="cuda", dtype=torch.int32).expand(1, heads, rows)[..., None].contiguous()
    )
    block_map = BlockMap(indices, torch.ones_like(indices[..., 0]), tokens, tokens, (128, 128))
    out = block_sparse_attention(q, k, v, block_map, impl=impl)
    for block in (0, rows - 2, rows - 1):
        at = slice(block * 128, min(block * 128 + 128, tokens))
        for h in (0, heads - 1):
            one = [x[:, at, h : h + 1] for x in (q, k, v)]
            expected, _ = attention64(*one, torch.ones(1, device="cuda", dtype=torch.bool), dim**-0.5)
            torch.testing.assert_close(out[:, at, h : h + 1].double(), expected, atol=1e-2, rtol=2e-2)


@pytest.mark.parametrize("form", ["N", "HN", "BHN"])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced"])
@pytest.mark.parametrize("dim", [40, 64, 128])
def test_rows_are_moved_bit_for_bit(form, layout, dim):
    g = generator()
    x = random_tokens(g, (2, 3001, 3, dim), BFLOAT, layout, "cuda")
    shape = {"N": (3001,), "HN": (3, 3001), "BHN": (2, 3, 3001)}[form]
    order = torch.rand(shape, generator=g, device="cuda").argsort(dim=-1)
    with poisoned_empty():
        moved = permute_rows(x, order)
        back = restore_rows(moved, order)
    assert torch.equal(moved, permute_rows(x, order, impl="reference"))
    assert torch.equal(back, x)


def test_rows_beyond_two_to_the_31_elements():
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free GPU memory")
    tokens = 2**18 + 200
    x = torch.randint(-(2**15), 2**15, (1, tokens, 64, 128), device="cuda", dtype=torch.int16).view(HALF)
    order = torch.arange(tokens - 1, -1, -1, device="cuda")
    moved = permute_rows(x, order)
    for i in (0, 1, tokens - 1):
        assert torch.equal(moved[:, i].view(torch.int16), x[:, tokens - 1 - i].view(torch.int16))
    assert torch.equal(restore_rows(moved, order).view(torch.int16), x.view(torch.int16))


@pytest.mark.parametrize("impl", ["flash_kmeans", "reference"])
@pytest.mark.parametrize("iterations", [0, 3])
@pytest.mark.parametrize("dtype", [BFLOAT, HALF])
def test_kmeans_invariants(impl, iterations, dtype):
    if impl == "flash_kmeans":
        pytest.importorskip("flash_kmeans")
    x = random_tokens(generator(), (2, 4321, 3, 64), dtype, "contiguous", "cuda")
    x = x + 3  # a common offset, as keys have
    result = kmeans(x, 50, iterations=iterations, impl=impl)
    distances = torch.cdist(x.transpose(1, 2).double(), result.centroids.to(dtype).double())
    chosen = distances.gather(-1, result.labels.long()[..., None])[..., 0]
    # A tie within rounding may go either way; the distances must be those of a nearest centroid all the same.
    torch.testing.assert_close(chosen, distances.min(dim=-1).values, atol=2e-2, rtol=5e-3)
    counted = torch.zeros(2, 3, 50, device="cuda", dtype=torch.int64)
    counted.scatter_add_(-1, result.labels.long(), torch.ones_like(result.labels, dtype=torch.int64))
    assert torch.equal(result.sizes.long(), counted)
    reference = kmeans(x, 50, iterations=iterations, impl="reference")
    spread = distances.min(dim=-1).values.mean()
    twin = torch.cdist(x.transpose(1, 2).double(), reference.centroids.double()).min(dim=-1).values.mean()
    assert spread <= twin * 1.02


def test_pooled_scores_and_mass_agree_with_cpu():
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, n, 2, 64, generator=g) for n in (700, 900))
    _, lse = attention64(q, k, k, torch.ones(1, dtype=torch.bool), 0.125)
    lse = lse.float()
    torch.testing.assert_close(pool_blocks(q.cuda(), 128).cpu(), pool_blocks(q, 128), atol=1e-6, rtol=1e-5)
    scores = pooled_scores(q.cuda(), k.cuda(), (128, 64))
    torch.testing.assert_close(scores.cpu(), pooled_scores(q, k, (128, 64)), atol=1e-5, rtol=1e-5)
    mass = block_mass(q.cuda(), k.cuda(), lse.cuda(), (128, 64))
    torch.testing.assert_close(mass.cpu(), block_mass(q, k, lse, (128, 64)), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("impl", ["flash4", "triton"])
def test_nothing_waits_for_the_gpu(impl):
    """Plan, permute, attend and restore once to compile, then again with synchronisation forbidden."""
    skip_unless_able(impl, BFLOAT, 64, (128, 128))
    q, k, v = (random_tokens(generator(), (1, 2000, 2, 64), BFLOAT, "contiguous", "cuda") for _ in range(3))

    def step():
        order = sort_by_label(kmeans(k, 10, iterations=2).labels)
        q_sorted, k_sorted, v_sorted = (permute_rows(x, order) for x in (q, k, v))
        scores = pooled_scores(q_sorted, k_sorted, (128, 128))
        block_map = BlockMap.from_mask(scores > scores.mean(dim=-1, keepdim=True), 2000, 2000, (128, 128))
        return restore_rows(block_sparse_attention(q_sorted, k_sorted, v_sorted, block_map, impl=impl), order)

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
        q, k, v = (
            random_tokens(generator(), (1, tokens, 3, 64), HALF, "contiguous", "cuda") for _ in range(3)
        )
        block_map = BlockMap.full(1, 3, tokens, tokens, (128, 128), q.device)
        block_sparse_attention(q, k, v, block_map, impl="triton")

    run(1000)
    monkeypatch.setattr(
        triton.knobs.runtime, "jit_post_compile_hook", lambda *args, **kwargs: compiled.append(kwargs)
    )
    for tokens in (1024, 1025, 2000, 4321):
        run(tokens)
    assert not compiled


def test_auto_choice_on_this_gpu():
    name, reason = explain_backend("cuda", BFLOAT, 128, (128, 128))
    assert name in ("flash4", "triton"), reason
