"""Attention in low precision as compiled for a real GPU, against float64; the CPU twin is
tests/kernels/test_quantized.py."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
from kernel_oracles import (
    attention64,
    block_shape,
    error,
    map_of,
    poisoned_empty,
    random_mask,
    random_tokens,
    tokens_of,
)
from quantized_oracles import FP8_VALUES, LEVELS, check_budget, with_key_offsets

from dit_sparse.kernels import block_sparse_attention, explain_backend, quantize
from dit_sparse.kernels.dispatch import Request, resolve_backend
from dit_sparse.layout import BlockMap

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

LOW = list(LEVELS)
BFLOAT, HALF, FLOAT = torch.bfloat16, torch.float16, torch.float32


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator(device="cuda").manual_seed(seed)


def skip_unless_able(precision, dtype=BFLOAT, dim=64, block=(128, 128)):
    """Skip with the dispatcher's own reason, e.g. that this GPU does not multiply e4m3."""
    request = Request(torch.device("cuda"), dtype, dim, block, by_name=True, precision=precision)
    try:
        resolve_backend("triton", request)
    except ValueError as reason:
        pytest.skip(str(reason))


def tensors(seed, batch, heads, num_queries, num_keys, dim, dtype, layout="contiguous"):
    g = generator(seed)
    q = random_tokens(g, (batch, num_queries, heads, dim), dtype, layout, "cuda")
    k, v = (random_tokens(g, (batch, num_keys, heads, dim), dtype, layout, "cuda") for _ in range(2))
    return g, q, k, v


def check(
    precision, batch, heads, num_queries, num_keys, dim, block, dtype, layout="contiguous", density=0.4
):
    skip_unless_able(precision, dtype, dim, block)
    g, q, k, v = tensors(dim + num_queries, batch, heads, num_queries, num_keys, dim, dtype, layout)
    mask = random_mask(g, block_shape(batch, heads, num_queries, num_keys, block), density, "cuda")
    block_map = map_of(mask, num_queries, num_keys, block)
    named = {"return_lse": True, "precision": precision}
    with poisoned_empty():
        out, lse = block_sparse_attention(q, k, v, block_map, impl="triton", **named)
    seen = tokens_of(mask, block, num_queries, num_keys)
    assert out.dtype == dtype
    assert out.is_contiguous()
    empty = ~seen.any(dim=-1)
    assert torch.equal(torch.isneginf(lse), empty)
    assert not out.transpose(1, 2)[empty].any()
    check_budget(precision, out, q, k, v, seen, dim**-0.5)
    # The definition has the same levels, and longer sums than Hopper's of e4m3 products.
    _, defined_lse = block_sparse_attention(q, k, v, block_map, impl="gathered", **named)
    tolerance = 2e-2 if precision == "fp8" else 1e-3
    torch.testing.assert_close(lse[~empty], defined_lse[~empty], atol=tolerance, rtol=0)


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("block", [(128, 128), (128, 64), (64, 64), (64, 128)])
@pytest.mark.parametrize("dim", [64, 128])
def test_blocks_and_head_sizes(precision, block, dim):
    check(precision, 1, 2, 3000, 4321, dim, block, BFLOAT)


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("dim", [32, 40, 72, 80, 96])
def test_odd_head_sizes(precision, dim):
    check(precision, 2, 3, 1111, 1500, dim, (128, 128), HALF)


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("layout", ["transposed", "sliced"])
@pytest.mark.parametrize("dim", [64, 80, 128])
def test_strides(precision, layout, dim):
    check(precision, 2, 2, 1024, 1000, dim, (128, 128), BFLOAT, layout)


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize(
    ("dim", "block"), [(40, (128, 128)), (64, (64, 64)), (80, (128, 64)), (128, (128, 128))]
)
def test_float32(precision, dim, block):
    check(precision, 1, 2, 1111, 1300, dim, block, FLOAT)


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize(("num_queries", "num_keys"), [(128, 128), (129, 127), (257, 33), (640, 65)])
def test_small_and_ragged(precision, num_queries, num_keys):
    check(precision, 2, 2, num_queries, num_keys, 64, (128, 128), BFLOAT, density=0.7)


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize(
    ("tma", "dim", "tiles", "warps", "options"),
    [
        *(
            (tma, dim, tiles, 4, {})
            for tma in (False, True)
            for dim, tiles in ((40, (64, 32)), (64, (64, 128)), (128, (128, 64)))
        ),
        (True, 128, (128, 64), 8, {"overlap": True}),
        (True, 128, (128, 64), 8, {"split": True, "registers": 128}),
    ],
)
def test_configurations(precision, tma, dim, tiles, warps, options):
    """Both ways to load tiles, with key tiles shorter and longer than a group of keys; the options."""
    from dit_sparse.kernels import triton_quantized
    from dit_sparse.kernels.triton_tiles import TileConfig

    skip_unless_able(precision, BFLOAT, dim)
    if tma and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("tensor descriptors need compute capability 9.0")
    g, q, k, v = tensors(1, 2, 2, 1500, 1500, dim, BFLOAT, "transposed")
    mask = random_mask(g, block_shape(2, 2, 1500, 1500, (128, 128)), 0.4, "cuda")
    block_map = map_of(mask, 1500, 1500, (128, 128))
    with poisoned_empty():
        levels = quantize.quantize(q, k, v, precision, impl="triton")
        out, _ = triton_quantized.attend(
            levels,
            block_map,
            scale=dim**-0.5,
            return_lse=True,
            config=TileConfig(*tiles, num_warps=warps, num_stages=3, tma=tma, **options),
        )
    check_budget(precision, out, q, k, v, tokens_of(mask, (128, 128), 1500, 1500), dim**-0.5)


@pytest.mark.parametrize("precision", ["int8_fp8", "fp8", "int4"])
@pytest.mark.parametrize("dtype", [BFLOAT, HALF, FLOAT])
@pytest.mark.parametrize(("layout", "dim", "tokens"), [("sliced", 40, 1001), ("transposed", 128, 4321)])
def test_quantises_as_defined(precision, dtype, layout, dim, tokens):
    skip_unless_able(precision, dtype, dim)
    _, q, k, v = tensors(2, 2, 2, tokens, tokens + 5, dim, dtype, layout)
    k = with_key_offsets(k)
    with poisoned_empty():
        made = quantize.quantize(q, k, v, precision, impl="triton")
    defined = quantize.quantize(q, k, v, precision)
    for name in ("q_scale", "k_scale", "v_scale", "key_offset"):
        ours, theirs = getattr(made, name), getattr(defined, name)
        assert theirs is None or torch.allclose(ours, theirs, atol=1e-4, rtol=1e-5)
    for name in ("q", "k", "v"):
        ours, theirs = (getattr(x, name) for x in (made, defined))
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        ours, theirs = ours.float(), theirs.float()
        # Rounded operations in the same order: a tie falls to the same side.
        assert torch.equal(ours, theirs), (name, (ours != theirs).double().mean())


def test_e4m3_rounds_like_torch():
    """The hardware's conversion: every e4m3 number, every midpoint, and their neighbours in float32."""
    skip_unless_able("fp8")
    from dit_sparse.kernels import triton_quantize

    numbers = torch.arange(127, dtype=torch.uint8).view(quantize.E4M3).float()
    middles = (numbers[1:] + numbers[:-1]) / 2
    x = torch.cat([numbers, middles, middles * (1 + 2**-20), middles * (1 - 2**-20)])
    x = torch.cat([x, -x]).reshape(1, -1, 1, 1)
    made, scales = triton_quantize.quantize_channels(x.cuda())
    assert scales.item() == 1.0
    found = quantize.dequantize_channels(made, scales, x.numel()).flatten().cpu()
    assert torch.equal(found, x.flatten().to(quantize.E4M3).float())


@pytest.mark.parametrize(
    ("precision", "gain"), [("int8", 2.5), ("int4", 2.0), ("int8_fp8", 1.3), ("fp8", 1.1)]
)
def test_smoothing_gains_where_key_channels_have_offsets(precision, gain):
    from dit_sparse.kernels import triton_quantized

    skip_unless_able(precision)
    _, q, k, v = tensors(3, 1, 2, 500, 1500, 64, BFLOAT)
    k = with_key_offsets(k)
    block_map = BlockMap.full(1, 2, 500, 1500, (128, 128), q.device)
    seen = torch.ones(1, device="cuda", dtype=torch.bool)
    expected, expected_lse = attention64(q, k, v, seen, 64**-0.5)
    outs, lse_errors = [], []
    for smooth in (True, False):
        out, lse = triton_quantized.forward(
            q, k, v, block_map, scale=64**-0.5, return_lse=True, precision=precision, smooth=smooth
        )
        outs.append(out)
        lse_errors.append(error(lse, expected_lse))
    check_budget(precision, outs[0], q, k, v, seen, 64**-0.5)
    assert error(outs[1], expected) >= gain * error(outs[0], expected)
    assert lse_errors[1] >= 2 * lse_errors[0], lse_errors


@pytest.mark.parametrize("precision", LOW)
def test_output_does_not_depend_on_asking_for_the_lse(precision):
    skip_unless_able(precision)
    g, q, k, v = tensors(4, 1, 2, 1000, 1000, 64, BFLOAT)
    block_map = map_of(random_mask(g, (1, 2, 8, 8), 0.5, "cuda"), 1000, 1000, (128, 128))
    named = {"impl": "triton", "precision": precision}
    with_lse, _ = block_sparse_attention(q, k, v, block_map, return_lse=True, **named)
    assert torch.equal(block_sparse_attention(q, k, v, block_map, **named), with_lse)


@pytest.mark.parametrize("precision", LOW)
def test_large_logits(precision):
    """Logits in the hundreds: forgetting the maximum overflows, forgetting 448 shifts the lse by 6."""
    skip_unless_able(precision)
    g, q, k, v = tensors(5, 1, 2, 1024, 1024, 64, BFLOAT)
    mask = random_mask(g, (1, 2, 8, 8), 0.7, "cuda")
    block_map = map_of(mask, 1024, 1024, (128, 128))
    named = {"scale": 4.0, "return_lse": True, "precision": precision}
    out, lse = block_sparse_attention(q, k, v, block_map, impl="triton", **named)
    _, defined_lse = block_sparse_attention(q, k, v, block_map, impl="gathered", **named)
    check_budget(precision, out, q, k, v, tokens_of(mask, (128, 128), 1024, 1024), 4.0)
    some = torch.isfinite(defined_lse)
    torch.testing.assert_close(lse[some], defined_lse[some], atol=0.2, rtol=2e-3)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_key_that_is_not_finite_shows(precision):
    skip_unless_able(precision)
    _, q, k, v = tensors(6, 1, 2, 300, 400, 64, BFLOAT)
    k[0, 40, 1, 3] = torch.nan
    block_map = BlockMap.full(1, 2, 300, 400, (128, 128), q.device)
    out = block_sparse_attention(q, k, v, block_map, impl="triton", precision=precision)
    assert out[:, :, 1].isnan().all()
    assert out[:, :, 0].isfinite().all()


@pytest.mark.parametrize("precision", LOW)
def test_a_video_length_agrees_with_the_definition(precision):
    """Density 0.1 at the token count of Wan 480p: thousands of e4m3 products are summed in a row."""
    skip_unless_able(precision, BFLOAT, 128)
    tokens = 32_760
    g, q, k, v = tensors(7, 1, 1, tokens, tokens, 128, BFLOAT)
    block_map = map_of(random_mask(g, (1, 1, 256, 256), 0.1, "cuda"), tokens, tokens, (128, 128))
    out = block_sparse_attention(q, k, v, block_map, impl="triton", precision=precision)
    defined = block_sparse_attention(q, k, v, block_map, impl="gathered", precision=precision)
    assert error(out, defined.double()) <= 0.05 * defined.double().square().mean().sqrt()


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_more_than_two_to_the_31_elements(precision):
    """The last head of the last tokens lies beyond 32-bit offsets, in the levels as in the input."""
    skip_unless_able(precision, BFLOAT, 128)
    if torch.cuda.mem_get_info()[0] < 36 * 2**30:
        pytest.skip("needs 36 GiB of free GPU memory")
    tokens, heads, dim = 2**18 + 200, 64, 128
    g = generator()
    q, k, v = (torch.randn(1, tokens, heads, dim, generator=g, device="cuda", dtype=BFLOAT) for _ in range(3))
    rows = -(-tokens // 128)
    indices = (
        torch.arange(rows, device="cuda", dtype=torch.int32).expand(1, heads, rows)[..., None].contiguous()
    )
    block_map = BlockMap(indices, torch.ones_like(indices[..., 0]), tokens, tokens, (128, 128))
    out = block_sparse_attention(q, k, v, block_map, impl="triton", precision=precision)
    for block in (0, rows - 2, rows - 1):
        at = slice(block * 128, min(block * 128 + 128, tokens))
        for h in (0, heads - 1):
            one = [x[:, at, h : h + 1] for x in (q, k, v)]
            expected, _ = attention64(*one, torch.ones(1, device="cuda", dtype=torch.bool), dim**-0.5)
            assert error(out[:, at, h : h + 1], expected) <= 0.1 * expected.square().mean().sqrt()


@pytest.mark.parametrize("precision", LOW)
def test_nothing_waits_for_the_gpu(precision):
    """Once to compile, then again with synchronisation forbidden."""
    skip_unless_able(precision)
    g, q, k, v = tensors(8, 1, 2, 2000, 2000, 64, BFLOAT)
    block_map = map_of(random_mask(g, (1, 2, 16, 16), 0.5, "cuda"), 2000, 2000, (128, 128))
    named = {"impl": "triton", "precision": precision, "return_lse": True}
    block_sparse_attention(q, k, v, block_map, **named)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        block_sparse_attention(q, k, v, block_map, **named)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_one_compilation_serves_all_lengths(monkeypatch, precision):
    triton = pytest.importorskip("triton")
    if not hasattr(getattr(triton, "knobs", None), "runtime"):
        pytest.skip("this triton has no compile hook")
    skip_unless_able(precision)
    compiled = []

    def run(tokens):
        _, q, k, v = tensors(9, 1, 3, tokens, tokens, 64, HALF)
        block_map = BlockMap.full(1, 3, tokens, tokens, (128, 128), q.device)
        block_sparse_attention(q, k, v, block_map, impl="triton", precision=precision)

    run(1000)
    monkeypatch.setattr(
        triton.knobs.runtime, "jit_post_compile_hook", lambda *args, **kwargs: compiled.append(kwargs)
    )
    for tokens in (1024, 1025, 2000, 4321):
        run(tokens)
    assert not compiled


def test_auto_choice_on_this_gpu():
    for precision in LOW:
        name, reason = explain_backend("cuda", BFLOAT, 128, (128, 128), precision)
        able = torch.cuda.get_device_capability() >= (8, 9) or precision not in FP8_VALUES
        assert name == ("triton" if able else "gathered"), reason
