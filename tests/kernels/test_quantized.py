"""Attention in low precision: quantisation, the emulations and the kernel, against float64.

Triton's interpreter multiplies int8 and e4m3 exactly, so every mode of the kernel runs here. Its conversion
from float32 to e4m3 truncates; the kernel hands it numbers that are e4m3 already. What remains for a GPU is
the hardware's own rounding (tests/gpu/test_quantized_gpu.py).
"""

import itertools
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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

from dit_sparse.kernels import (
    PRECISIONS,
    block_sparse_attention,
    dispatch,
    explain_backend,
    flash4,
    quantize,
    quantized_gathered,
    quantized_reference,
)
from dit_sparse.kernels.dispatch import Request, installed, resolve_backend
from dit_sparse.layout import BlockMap

LOW = list(LEVELS)
FLOAT, BFLOAT, HALF = torch.float32, torch.bfloat16, torch.float16
needs_interpreter = pytest.mark.skipif(
    torch.cuda.is_available() or not installed("triton"),
    reason="needs triton; on a GPU, tests/gpu runs the compiled kernel",
)
CPU_BACKENDS = ["reference", "gathered"]
FLIPPED = 2e-3
"""A logit that float32 rounds the other way can move an e4m3 weight by a step, 1/16 to 1/8 of that weight."""
BACKENDS = [*CPU_BACKENDS, pytest.param("triton", marks=needs_interpreter)]


def tensors(seed, batch, heads, num_queries, num_keys, dim, dtype, layout="contiguous"):
    g = torch.Generator().manual_seed(seed)
    q = random_tokens(g, (batch, num_queries, heads, dim), dtype, layout)
    k, v = (random_tokens(g, (batch, num_keys, heads, dim), dtype, layout) for _ in range(2))
    return g, q, k, v


def check(
    impl, precision, batch, heads, num_queries, num_keys, dim, block, dtype, layout, density, seed, scale=None
):
    """One comparison: the error budget, agreement with the definition, log-sum-exp, empty rows, memory."""
    g, q, k, v = tensors(seed, batch, heads, num_queries, num_keys, dim, dtype, layout)
    mask = random_mask(g, block_shape(batch, heads, num_queries, num_keys, block), density)
    block_map = map_of(mask, num_queries, num_keys, block)
    with poisoned_empty():
        out, lse = block_sparse_attention(
            q, k, v, block_map, scale=scale, return_lse=True, impl=impl, precision=precision
        )
    seen = tokens_of(mask, block, num_queries, num_keys)
    scale = dim**-0.5 if scale is None else scale
    assert out.shape == q.shape and out.dtype == dtype and out.is_contiguous()
    assert lse.dtype == FLOAT and lse.shape == (batch, heads, num_queries)
    empty = ~seen.any(dim=-1)
    assert torch.equal(torch.isneginf(lse), empty)
    assert not out.transpose(1, 2)[empty].any()
    named = {"scale": scale, "return_lse": True, "precision": precision}
    defined, defined_lse = quantized_reference.forward(q, k, v, block_map, **named)
    for made in (out, defined):
        check_budget(precision, made, q, k, v, seen, scale)
    tolerance = 2 * {FLOAT: 1e-5, HALF: 2**-10, BFLOAT: 2**-7}[dtype]
    if precision in FP8_VALUES:
        tolerance = max(tolerance, FLIPPED)
    torch.testing.assert_close(out, defined, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(lse[~empty], defined_lse[~empty], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("precision", LOW)
@settings(max_examples=8)
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    num_queries=st.integers(40, 130),
    num_keys=st.integers(40, 130),
    dim=st.sampled_from([32, 40, 64]),
    block=st.tuples(st.integers(16, 70), st.integers(16, 70)),
    dtype=st.sampled_from([FLOAT, BFLOAT, HALF]),
    layout=st.sampled_from(["contiguous", "transposed", "sliced"]),
    density=st.sampled_from([0.2, 0.6, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_any_shape_keeps_the_budget(
    precision, batch, heads, num_queries, num_keys, dim, block, dtype, layout, density, seed
):
    check(
        "gathered", precision, batch, heads, num_queries, num_keys, dim, block, dtype, layout, density, seed
    )


@needs_interpreter
@pytest.mark.parametrize(
    ("precision", "dtype", "dim", "layout", "block", "num_queries", "num_keys", "batch"),
    [
        ("int8", FLOAT, 32, "contiguous", (32, 32), 70, 81, 2),
        ("int8_fp8", FLOAT, 32, "contiguous", (32, 32), 70, 81, 2),
        ("fp8", FLOAT, 32, "contiguous", (32, 32), 70, 81, 2),
        ("int4", FLOAT, 32, "contiguous", (32, 32), 70, 81, 2),
        ("int8", BFLOAT, 40, "transposed", (64, 32), 63, 111, 1),
        ("fp8", BFLOAT, 40, "transposed", (64, 32), 63, 111, 1),
        ("int8", HALF, 72, "sliced", (16, 48), 33, 65, 1),
        ("int8_fp8", HALF, 72, "sliced", (16, 64), 33, 65, 1),
        ("int8", BFLOAT, 80, "contiguous", (48, 96), 96, 200, 1),
        ("fp8", BFLOAT, 80, "contiguous", (48, 96), 96, 200, 1),
        ("int8", FLOAT, 128, "sliced", (128, 128), 130, 190, 1),
        ("fp8", FLOAT, 128, "sliced", (128, 128), 130, 190, 1),
    ],
)
def test_triton_keeps_the_budget(precision, dtype, dim, layout, block, num_queries, num_keys, batch):
    check("triton", precision, batch, 2, num_queries, num_keys, dim, block, dtype, layout, 0.5, seed=dim)


@needs_interpreter
@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize("block", [(128, 128), (128, 64), (64, 64)])
def test_triton_production_blocks(precision, block):
    check("triton", precision, 1, 2, 200, 333, 64, block, BFLOAT, "contiguous", 0.6, seed=1)


@needs_interpreter
@pytest.mark.parametrize("options", [{}, {"overlap": True}, {"split": True}])
@pytest.mark.parametrize("precision", ["int8", "int8_fp8"])
@pytest.mark.parametrize(
    ("tiles", "dim", "tma"), [((16, 32), 40, False), ((16, 32), 40, True), ((64, 128), 64, True)]
)
def test_triton_tiles(precision, tiles, dim, tma, options):
    """Key tiles shorter and longer than a group of keys, several per block, the last without any key."""
    from dit_sparse.kernels import triton_quantized
    from dit_sparse.kernels.triton_tiles import TileConfig

    g, q, k, v = tensors(3, 2, 2, 90, 133, dim, FLOAT, "transposed")
    mask = random_mask(g, block_shape(2, 2, 90, 133, (64, 128)), 0.6)
    block_map = map_of(mask, 90, 133, (64, 128))
    with poisoned_empty():
        levels = quantize.quantize(q, k, v, precision, impl="triton")
        out, lse = triton_quantized.attend(
            levels, block_map, scale=0.3, return_lse=True, config=TileConfig(*tiles, 4, 2, tma=tma, **options)
        )
    expected, expected_lse = quantized_reference.forward(
        q, k, v, block_map, scale=0.3, return_lse=True, precision=precision
    )
    tolerance = FLIPPED if precision in FP8_VALUES else 1e-5
    torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)
    assert error(out, expected.double()) < 1e-5
    torch.testing.assert_close(lse, expected_lse, atol=1e-5, rtol=1e-5)


@needs_interpreter
@pytest.mark.parametrize("options", [{"overlap": True}, {"split": True}])
@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("dtype", [FLOAT, BFLOAT, HALF])
@pytest.mark.parametrize("num_keys", [96, 100])
def test_triton_options_change_nothing(options, precision, dtype, num_keys):
    """Rows without a block, with the last one alone, with one whole block, and with several."""
    from dit_sparse.kernels import triton_quantized
    from dit_sparse.kernels.triton_tiles import TileConfig

    _, q, k, v = tensors(17, 1, 1, 160, num_keys, 64, dtype)
    mask = torch.zeros(1, 1, 5, -(-num_keys // 32), dtype=torch.bool)
    mask[..., 1, -1] = mask[..., 2, 0] = mask[..., 3, 1:] = mask[..., 4, :] = True
    levels = quantize.quantize(q, k, v, precision, impl="triton")
    results = [
        triton_quantized.attend(
            levels, map_of(mask, 160, num_keys, (32, 32)), scale=0.3, return_lse=True,
            config=TileConfig(32, 32, 4, 2, tma=True, **chosen),
        )
        for chosen in ({}, options)
    ]  # fmt: skip
    for plain, changed in zip(*results):
        torch.testing.assert_close(changed, plain, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("impl", BACKENDS)
@pytest.mark.parametrize("precision", ["int8", "int8_fp8"])
def test_large_logits_and_explicit_scale(impl, precision):
    """Logits in the hundreds: forgetting the maximum overflows, forgetting 448 shifts the lse by 6."""
    g, q, k, v = tensors(5, 1, 1, 64, 128, 64, FLOAT)
    mask = random_mask(g, (1, 1, 2, 4), 0.7)
    block_map = map_of(mask, 64, 128, (32, 32))
    named = {"scale": 12.0, "return_lse": True, "precision": precision}
    out, lse = block_sparse_attention(q, k, v, block_map, impl=impl, **named)
    expected, expected_lse = quantized_reference.forward(q, k, v, block_map, **named)
    seen = tokens_of(mask, (32, 32), 64, 128)
    check_budget(precision, out, q, k, v, seen, 12.0)
    torch.testing.assert_close(out, expected, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(lse, expected_lse, atol=2e-3, rtol=1e-5)


@pytest.mark.parametrize("impl", BACKENDS)
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_an_offset_of_all_keys_moves_the_lse_alone(impl, precision):
    """Smoothing takes any common offset out of k, exactly; the log-sum-exp gets scale * q . offset back."""
    _, q, k, v = tensors(6, 2, 2, 64, 96, 32, FLOAT)
    k = (k * 64).round() / 64  # so that adding the offset rounds nothing
    offset = torch.linspace(-8, 8, 32).mul(4).round() / 4
    block_map = BlockMap.full(2, 2, 64, 96, (32, 32), q.device)
    named = {"return_lse": True, "impl": impl, "precision": precision}
    out, lse = block_sparse_attention(q, k, v, block_map, **named)
    moved, moved_lse = block_sparse_attention(q, k + offset, v, block_map, **named)
    # The mean rounds differently, so a level at a tie may go the other way: few, and by one level.
    assert error(moved, out.double()) < 1e-3
    shift = (q @ offset).transpose(1, 2) * 32**-0.5
    assert error(moved_lse - shift, lse.double()) < 1e-3


@pytest.mark.parametrize(
    ("impl", "precision", "gain"),
    [
        ("reference", "int8", 2.5),
        ("reference", "int4", 2.0),
        ("reference", "int8_fp8", 1.3),
        ("reference", "fp8", 1.1),
        pytest.param("triton", "int8", 2.5, marks=needs_interpreter),
        pytest.param("triton", "fp8", 1.1, marks=needs_interpreter),
    ],
)
def test_smoothing_gains_where_key_channels_have_offsets(impl, precision, gain):
    """The error without smoothing is at least ``gain`` times the error with it. In e4m3 v and the weights are
    rounded as well, and an offset costs the other channels only their subnormal tail."""
    _, q, k, v = tensors(7, 1, 2, 96, 256, 64, FLOAT)
    k = with_key_offsets(k)
    block_map = BlockMap.full(1, 2, 96, 256, (32, 64), q.device)
    module = import_module("dit_sparse.kernels." + dispatch.BACKENDS[impl].quantized)
    expected, expected_lse = attention64(q, k, v, torch.ones(1, dtype=torch.bool), 64**-0.5)
    errors, lse_errors = [], []
    for smooth in (True, False):
        out, lse = module.forward(
            q, k, v, block_map, scale=64**-0.5, return_lse=True, precision=precision, smooth=smooth
        )
        errors.append(error(out, expected))
        lse_errors.append(error(lse, expected_lse))
    assert errors[1] >= gain * errors[0], errors
    assert lse_errors[1] >= 2 * lse_errors[0], lse_errors


@pytest.mark.parametrize("impl", BACKENDS)
def test_output_does_not_depend_on_asking_for_the_lse(impl):
    g, q, k, v = tensors(8, 1, 2, 64, 70, 32, BFLOAT)
    block_map = map_of(random_mask(g, (1, 2, 2, 3), 0.6), 64, 70, (32, 32))
    for precision in ("int8", "fp8"):
        named = {"impl": impl, "precision": precision}
        with_lse, _ = block_sparse_attention(q, k, v, block_map, return_lse=True, **named)
        assert torch.equal(block_sparse_attention(q, k, v, block_map, **named), with_lse)


@pytest.mark.parametrize("impl", BACKENDS)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_key_that_is_not_finite_shows(impl):
    """The mean key spreads a NaN over all keys; a kernel whose maximum passes over NaN would hide it."""
    _, q, k, v = tensors(9, 1, 2, 64, 96, 32, FLOAT)
    k[0, 40, 1, 3] = torch.nan
    block_map = BlockMap.full(1, 2, 64, 96, (32, 32), q.device)
    out = block_sparse_attention(q, k, v, block_map, impl=impl, precision="int8")
    assert out[:, :, 1].isnan().all()
    assert out[:, :, 0].isfinite().all()


def test_gathered_chunks_change_nothing(monkeypatch):
    g, q, k, v = tensors(10, 2, 2, 100, 130, 32, FLOAT)
    block_map = map_of(random_mask(g, block_shape(2, 2, 100, 130, (16, 16)), 0.5), 100, 130, (16, 16))
    named = {"impl": "gathered", "precision": "fp8", "return_lse": True}
    out, lse = block_sparse_attention(q, k, v, block_map, **named)
    monkeypatch.setattr(quantized_gathered, "CHUNK_BYTES", 1)
    chunked, chunked_lse = block_sparse_attention(q, k, v, block_map, **named)
    torch.testing.assert_close(chunked, out, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(chunked_lse, lse, atol=1e-6, rtol=1e-6)


def test_fewer_bits_cost_more():
    """float32 < int8 < int8_fp8 < fp8 < int4, by a clear margin: each name does what it says."""
    _, q, k, v = tensors(11, 1, 2, 256, 256, 64, FLOAT)
    block_map = BlockMap.full(1, 2, 256, 256, (64, 64), q.device)
    expected, _ = attention64(q, k, v, torch.ones(1, dtype=torch.bool), 64**-0.5)
    errors = [
        error(block_sparse_attention(q, k, v, block_map, precision=p), expected)
        for p in ("native", "int8", "int8_fp8", "fp8", "int4")
    ]
    assert all(more > 1.15 * less for less, more in itertools.pairwise(errors)), errors


# ---- quantisation ----


def test_integers_round_to_nearest_even():
    x = torch.zeros(1, 32, 1, 32)
    x[0, 0, 0, :8] = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 63.4, -63.6])
    levels, scales, _ = quantize.quantize_rows(x, 32, 127.0, torch.int8)
    assert levels[0, 0, 0, :8].tolist() == [127, 0, 2, 2, 0, -2, 63, -64]
    assert scales[0, 0, 0] == 1.0


@pytest.mark.parametrize("precision", LOW)
def test_levels_are_within_half_a_step_of_the_tokens(precision):
    low = quantize.LOW_PRECISIONS[precision]
    _, x, _, _ = tensors(12, 2, 3, 150, 1, 40, FLOAT)
    x = x * torch.logspace(-6, 6, 150)[None, :, None, None]
    levels, scales, _ = quantize.quantize_rows(x, 32, low.top, low.qk)
    assert levels.shape == (2, 3, 256, 64) and scales.shape == (2, 3, 8)
    assert levels.float().abs().amax() == low.top
    back = quantize.dequantize_rows(levels, scales, 150, 40)
    step = scales.repeat_interleave(32, dim=2)[:, :, :150, None].transpose(1, 2)
    half = step / 2 if low.qk == torch.int8 else torch.maximum(x.abs() / 16, step * 2**-10)
    assert ((back - x).abs() <= half * 1.001).all()
    assert not levels[:, :, 150:].float().any() and not levels[..., 40:].float().any()


def test_values_stand_where_they_are_said_to():
    """Each token has its own column, within its run of 16, and the levels there are the token's."""
    tokens = torch.arange(128)
    at = quantize.value_columns(tokens)
    assert at.sort().values.equal(tokens) and (at // 16).equal(tokens // 16)
    assert at[:16].tolist() == [0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15]
    _, v, _, _ = tensors(18, 2, 3, 100, 1, 40, FLOAT)
    levels, scales = quantize.quantize_channels(v)
    expected = (v / scales[:, None]).to(torch.float8_e4m3fn).float()
    assert torch.equal(levels[:, :, :40].float()[..., at[:100]], expected.permute(0, 2, 3, 1))
    assert not levels[..., at[100:]].float().any() and not levels[:, :, 40:].float().any()
    back = quantize.dequantize_channels(levels, scales, 100)
    assert torch.equal(back, expected * scales[:, None])


def test_groups_channels_and_heads_have_their_own_scale():
    """A giant in one place leaves the levels of all other groups, heads and channels alone."""
    _, x, _, _ = tensors(13, 1, 2, 96, 1, 32, FLOAT)
    giant = x.clone()
    giant[0, 40, 1, 5] = 1e4
    before, after = (quantize.quantize_rows(y, 32, 127.0, torch.int8)[0] for y in (x, giant))
    changed = (before != after).any(dim=-1).unflatten(2, (-1, 32)).any(dim=-1)
    assert changed[0].tolist() == [[False] * 4, [False, True, False, False]]
    before, after = (quantize.quantize_channels(y)[0].float() for y in (x, giant))
    changed = (before != after).any(dim=-1)[0].nonzero().tolist()
    assert changed == [[1, 5]]


@pytest.mark.parametrize("impl", BACKENDS)
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_tokens_of_zeros_are_harmless(impl, precision):
    """All-zero q, k and v divide by nothing: attention to equal logits is the mean of v."""
    q, k = torch.zeros(1, 64, 1, 32), torch.zeros(1, 96, 1, 32)
    # Integers up to 7, of which 448 is a multiple, need no rounding in e4m3.
    v = torch.randint(-7, 8, (1, 96, 1, 32), generator=torch.Generator().manual_seed(14)).float()
    v[:, 0], v[..., 3] = 7.0, 0.0
    block_map = BlockMap.full(1, 1, 64, 96, (32, 32), q.device)
    out, lse = block_sparse_attention(q, k, v, block_map, impl=impl, precision=precision, return_lse=True)
    torch.testing.assert_close(out, v.mean(dim=1, keepdim=True).expand_as(out), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse, torch.full_like(lse, 96.0).log())


@needs_interpreter
@pytest.mark.parametrize("precision", ["int8_fp8", "fp8", "int4"])
@pytest.mark.parametrize("dtype", [FLOAT, BFLOAT, HALF])
@pytest.mark.parametrize(("layout", "dim", "tokens"), [("sliced", 40, 70), ("transposed", 128, 129)])
def test_triton_quantises_as_defined(precision, dtype, layout, dim, tokens):
    _, q, k, v = tensors(15, 2, 2, tokens, tokens + 5, dim, dtype, layout)
    k = with_key_offsets(k)
    with poisoned_empty():
        made = quantize.quantize(q, k, v, precision, impl="triton")
    defined = quantize.quantize(q, k, v, precision)
    for name in ("q_scale", "k_scale", "v_scale"):
        ours, theirs = getattr(made, name), getattr(defined, name)
        assert theirs is None or torch.equal(ours, theirs)
    torch.testing.assert_close(made.key_offset, defined.key_offset, atol=1e-4, rtol=1e-5)
    for name in ("q", "k", "v"):
        ours, theirs = getattr(made, name), getattr(defined, name)
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        assert torch.equal(ours.float(), theirs.float())


@needs_interpreter
def test_e4m3_rounds_like_torch():
    """Every e4m3 number, every midpoint between two, and their neighbours in float32."""
    numbers = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middles = (numbers[1:] + numbers[:-1]) / 2
    x = torch.cat([numbers, middles, middles * (1 + 2**-20), middles * (1 - 2**-20)])
    x = torch.cat([x, -x]).reshape(1, -1, 1, 1)
    # The peak of every channel is 448: scale 1, levels as they are.
    from dit_sparse.kernels import triton_quantize

    made, scales = triton_quantize.quantize_channels(x)
    assert scales.item() == 1.0
    found = quantize.dequantize_channels(made, scales, x.numel()).flatten()
    assert torch.equal(found, x.flatten().to(torch.float8_e4m3fn).float())


# ---- choice of a backend ----


def test_unknown_precision_lists_the_choices():
    q = torch.randn(1, 64, 2, 32)
    block_map = BlockMap.full(1, 2, 64, 64, (32, 32), q.device)
    with pytest.raises(ValueError, match=r"unknown precision 'int2'.*native.*int8.*int8_fp8.*fp8.*int4"):
        block_sparse_attention(q, q, q, block_map, precision="int2")
    with pytest.raises(ValueError, match="unknown precision"):
        explain_backend("cpu", FLOAT, 64, (128, 128), "int2")


def test_precisions_and_definitions_agree():
    assert ("native", *LEVELS) == PRECISIONS
    assert {p for p, low in quantize.LOW_PRECISIONS.items() if low.fp8_values} == set(FP8_VALUES)


@pytest.fixture
def gpu(monkeypatch):
    """Everything installed, on a GPU whose capability the test sets."""
    monkeypatch.setattr(dispatch, "installed", lambda module: True)
    monkeypatch.setattr(flash4, "import_error", lambda: None)
    monkeypatch.setattr(torch.version, "hip", None)

    def choose(capability):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)

    choose((9, 0))
    return choose


def test_auto_goes_to_triton_for_low_precision(gpu):
    for precision in LOW:
        name, reason = explain_backend("cuda", BFLOAT, 128, (128, 128), precision)
        assert name == "triton"
        assert f"flash4 serves precision 'native' only, got {precision!r}" in reason
    assert explain_backend("cuda", BFLOAT, 128, (128, 128), "native")[0] == "flash4"
    request = Request(torch.device("cuda"), BFLOAT, 128, (128, 128), precision="int8")
    assert resolve_backend("auto", request) == "triton"
    with pytest.raises(ValueError, match="impl 'flash4' cannot run here: it serves precision 'native' only"):
        resolve_backend("flash4", request)


def test_fp8_needs_a_gpu_that_multiplies_it(gpu, monkeypatch):
    gpu((8, 0))
    for precision in ("int8", "int4"):
        assert explain_backend("cuda", BFLOAT, 128, (128, 128), precision)[0] == "triton"
    for precision in FP8_VALUES:
        name, reason = explain_backend("cuda", BFLOAT, 128, (128, 128), precision)
        assert name == "gathered"
        assert (
            f"needs compute capability 8.9 or later for precision {precision!r}, this GPU has 8.0" in reason
        )
    gpu((8, 9))
    assert explain_backend("cuda", BFLOAT, 128, (128, 128), "fp8")[0] == "triton"
    assert explain_backend("cuda", BFLOAT, 128, (128, 48), "int8")[0] == "triton"
    name, reason = explain_backend("cuda", BFLOAT, 128, (128, 48), "fp8")
    assert name == "gathered" and "multiples of 32 for precision 'fp8', got (128, 48)" in reason
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert (
        "needs an NVIDIA GPU for precision 'fp8'"
        in explain_backend("cuda", BFLOAT, 128, (128, 128), "fp8")[1]
    )
    assert explain_backend("cuda", BFLOAT, 128, (128, 128), "int8")[0] == "triton"


def test_auto_on_cpu_emulates():
    _, q, k, v = tensors(16, 1, 2, 70, 70, 32, BFLOAT)
    block_map = BlockMap.full(1, 2, 70, 70, (32, 32), q.device)
    for precision in PRECISIONS:
        assert explain_backend("cpu", BFLOAT, 32, (32, 32), precision)[0] == "gathered"
        chosen = block_sparse_attention(q, k, v, block_map, precision=precision)
        named = block_sparse_attention(q, k, v, block_map, precision=precision, impl="gathered")
        assert torch.equal(chosen, named)
