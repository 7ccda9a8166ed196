"""The error of skipping a block as compiled for a real GPU, against float64; the CPU twins are in
tests/kernels."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
from kernel_oracles import poisoned_empty, random_tokens
from pooled_oracles import skip_error64

from dit_sparse.kernels import dense_attention, skip_error

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

BFLOAT, HALF, FLOAT = torch.bfloat16, torch.float16, torch.float32


def check(shape_q, num_keys, dtype, block, layout="contiguous"):
    g = torch.Generator(device="cuda").manual_seed(shape_q[1])
    q = random_tokens(g, shape_q, dtype, layout, "cuda")
    k, v = (random_tokens(g, (shape_q[0], num_keys, *shape_q[2:]), dtype, layout, "cuda") for _ in range(2))
    scale = shape_q[-1] ** -0.5
    out, lse = dense_attention(q, k, v, scale=scale)
    for compensated in (True, False):
        with poisoned_empty():
            error = skip_error(q, k, v, out, lse, block, scale, compensated=compensated, impl="triton")
        expected, adds = skip_error64(q, k, v, out, lse, block, scale, compensated)
        rounding = 4 * torch.finfo(dtype).eps if dtype != FLOAT else 1e-4
        bound = rounding * (expected.sqrt() + rounding * adds.sqrt()) * adds.sqrt() * 2
        assert ((error.double() - expected).abs() <= bound + 1e-9).all()


@pytest.mark.parametrize(("tokens", "heads", "dim"), [(9216, 2, 64), (17_776, 1, 64), (16_380, 1, 128)])
def test_video_lengths(tokens, heads, dim):
    check((1, tokens, heads, dim), tokens, BFLOAT, (128, 128))


@pytest.mark.parametrize("dtype", [BFLOAT, HALF, FLOAT])
@pytest.mark.parametrize("dim", [64, 128])
def test_types(dim, dtype):
    check((2, 1500, 2, dim), 3000, dtype, (128, 128))


@pytest.mark.parametrize("block", [(64, 64), (32, 128), (8, 32), (64, 128), (256, 128), (48, 24)])
def test_blocks(block):
    check((2, 1500, 2, 64), 2345, BFLOAT, block)


@pytest.mark.parametrize("layout", ["transposed", "sliced"])
@pytest.mark.parametrize("dim", [32, 72, 80])
def test_head_sizes_and_strides(dim, layout):
    check((2, 1111, 3, dim), 1500, BFLOAT, (128, 128), layout)


@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 1), (128, 128), (129, 127), (257, 1), (50, 9000)])
def test_small_and_ragged(num_queries, num_keys):
    check((2, num_queries, 2, 64), num_keys, BFLOAT, (128, 128))
