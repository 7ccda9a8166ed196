"""Fused norm, RoPE and permutation as compiled for a GPU, at the widths of real models; CPU twins in
tests/kernels."""

import sys
from pathlib import Path

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.normalization import RMSNorm
from tiny import FAMILIES, run

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
from kernel_oracles import error, norm_rope64, poisoned_empty, random_tokens

from dit_sparse.adapters import find_adapter
from dit_sparse.adapters.fused import NormRopeFusion, make_fusion
from dit_sparse.adapters.processors import make_processor
from dit_sparse.kernels import inverse_order, norm_rope, permute_rows, rotary_table

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
BFLOAT, HALF, FLOAT = torch.bfloat16, torch.float16, torch.float32
EPS = 1e-6
WIDTHS = [(40, 128), (24, 128), (12, 128), (30, 64), (48, 64), (5, 80), (3, 96), (1, 40), (2, 2)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator(device="cuda").manual_seed(seed)


def tables(rows: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.rand(rows, dim // 2, generator=generator(9), device="cuda").mul(6.3)
    return angles.cos().repeat_interleave(2, dim=1), angles.sin().repeat_interleave(2, dim=1)


def random_weight(size: int, dtype: torch.dtype) -> torch.Tensor:
    return (1 + 0.3 * torch.randn(size, generator=generator(8), device="cuda")).to(dtype)


@pytest.mark.parametrize(("heads", "dim"), WIDTHS)
@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("dtype", [BFLOAT, HALF, FLOAT])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced"])
def test_float64_definition(heads, dim, across, dtype, layout):
    """Batch 2, text before and after the turned tokens, a ragged length."""
    video, text, start = 1111, 150, 77
    x = random_tokens(generator(), (2, video + text, heads, dim), dtype, layout, "cuda") * 3
    weight = random_weight(heads * dim if across else dim, dtype)
    cos, sin = tables(video, dim)
    with poisoned_empty():
        out = norm_rope(x, weight, rotary_table(cos, sin), eps=EPS, start=start)
    exact = norm_rope64(x, weight, cos, sin, EPS, start)
    rtol = torch.finfo(dtype).eps / 2 + 2e-6
    torch.testing.assert_close(out.double(), exact, rtol=rtol, atol=3e-5)
    assert out.is_contiguous()


@pytest.mark.parametrize("form", ["N", "HN", "BHN"])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize(("heads", "dim"), [(40, 128), (5, 80)])
def test_orders(form, index, heads, dim):
    tokens = 2345
    shape = {"N": (tokens,), "HN": (heads, tokens), "BHN": (2, heads, tokens)}[form]
    order = torch.rand(shape, generator=generator(), device="cuda").argsort(dim=-1).to(index)
    x = random_tokens(generator(), (2, tokens, heads, dim), BFLOAT, "contiguous", "cuda")
    weight, table = random_weight(heads * dim, BFLOAT), rotary_table(*tables(tokens, dim))
    expected = permute_rows(norm_rope(x, weight, table, eps=EPS), order)
    with poisoned_empty():
        ordered = norm_rope(x, weight, table, eps=EPS, order=order)
        placed = norm_rope(x, weight, table, eps=EPS, positions=inverse_order(order))
    assert torch.equal(ordered, expected)
    assert torch.equal(placed, expected)


@pytest.mark.parametrize("norm", ["torch", "diffusers"])
@pytest.mark.parametrize("dtype", [BFLOAT, HALF])
def test_rounds_where_the_stock_modules_round(norm, dtype):
    heads, dim, text = 24, 128, 100
    x = random_tokens(generator(), (1, 4000 + text, heads, dim), dtype, "contiguous", "cuda") * 2
    weight = random_weight(heads * dim if norm == "torch" else dim, dtype)
    module = torch.nn.RMSNorm(heads * dim, eps=EPS) if norm == "torch" else RMSNorm(dim, eps=EPS)
    module.weight = torch.nn.Parameter(weight, requires_grad=False)
    cos, sin = tables(4000, dim)
    normed = module(x.flatten(2)).view(x.shape) if norm == "torch" else module(x)
    turned = apply_rotary_emb(normed[:, :-text], (cos, sin), sequence_dim=1)
    stock = torch.cat([turned, normed[:, -text:]], dim=1)
    out = norm_rope(x, weight, rotary_table(cos, sin), eps=EPS, rounding=norm)
    exact = norm_rope64(x, weight, cos, sin, EPS)
    assert (out == stock).double().mean() > 0.98
    assert error(out, exact) <= 1.02 * error(stock, exact)
    assert error(norm_rope(x, weight, rotary_table(cos, sin), eps=EPS), exact) < error(stock, exact)


@pytest.mark.parametrize("across", [True, False])
def test_more_than_two_to_the_31_elements(across):
    """The last tokens lie beyond 32-bit offsets, on reading and on writing."""
    if torch.cuda.mem_get_info()[0] < 16 * 2**30:
        pytest.skip("needs 16 GiB of free GPU memory")
    tokens, heads, dim = 2**18 + 200, 64, 128
    x = torch.randn(1, tokens, heads, dim, generator=generator(), device="cuda", dtype=BFLOAT)
    weight, table = random_weight(heads * dim if across else dim, BFLOAT), rotary_table(*tables(tokens, dim))
    order = torch.arange(tokens - 1, -1, -1, device="cuda")
    out = norm_rope(x, weight, table, eps=EPS, order=order)
    for part in (slice(0, 300), slice(tokens - 300, tokens)):
        expected = norm_rope(x[:, part], weight, table[part], eps=EPS, impl="reference").flip(1)
        found = out[:, tokens - part.stop : tokens - part.start]
        torch.testing.assert_close(found, expected, rtol=2**-7, atol=1e-4)


def test_nothing_waits_for_the_gpu():
    x = random_tokens(generator(), (1, 2000, 12, 128), BFLOAT, "contiguous", "cuda")
    weight, (cos, sin) = random_weight(1536, BFLOAT), tables(2000, 128)
    order = torch.rand(12, 2000, generator=generator(), device="cuda").argsort(dim=-1)

    def step():
        table = rotary_table(cos, sin)
        norm_rope(x, weight, table, eps=EPS, rounding="torch")
        return norm_rope(x, weight, table, eps=EPS, order=order)

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

    def run(tokens, text=0):
        x = random_tokens(generator(), (1, tokens, 3, 64), HALF, "contiguous", "cuda")
        order = torch.arange(tokens, device="cuda").expand(3, tokens)
        table = rotary_table(*tables(tokens - text, 64))
        norm_rope(x, random_weight(192, HALF), table, eps=EPS, start=text, order=order)

    run(1000)
    monkeypatch.setattr(
        triton.knobs.runtime, "jit_post_compile_hook", lambda *args, **kwargs: compiled.append(kwargs)
    )
    for tokens, text in ((1024, 0), (1025, 1), (2000, 16), (4321, 77)):
        run(tokens, text)
    assert not compiled


@pytest.mark.parametrize("family", ["wan", "hunyuan_video"])
def test_processors_of_a_pipeline(family):
    """On a GPU, "auto" takes the kernel in every eager call; the latents agree with the stock chain's."""
    make, inputs = FAMILIES[family]
    pipe = make().to("cuda")
    given = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in inputs().items()}
    stock = run(pipe, given)
    layers = find_adapter(pipe.transformer).attention_layers(pipe.transformer)
    fusion = make_fusion("auto", layers)
    assert isinstance(fusion, NormRopeFusion)

    class Dense:
        def attend(self, q, k, v, mask, scale):
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)

    for _, module in layers:
        module.set_processor(make_processor(module.processor, Dense(), fusion))
    torch.testing.assert_close(run(pipe, given), stock, rtol=2e-3, atol=2e-3)
    assert fusion.summary() == "norm and RoPE fused in 16 attention calls"
