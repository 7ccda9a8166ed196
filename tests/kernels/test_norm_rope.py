"""Fused norm, RoPE and permutation: against float64, against the stock modules, for every order and text
place."""

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb, get_1d_rotary_pos_embed
from diffusers.models.normalization import RMSNorm
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_oracles import error, norm_rope64, poisoned_empty, random_tokens

from dit_sparse.kernels import inverse_order, norm_rope, rotary_table
from dit_sparse.kernels.dispatch import installed

IMPLEMENTATIONS = ["reference"]
if installed("triton") and not torch.cuda.is_available():
    IMPLEMENTATIONS.append("triton")
implementations = pytest.mark.parametrize("impl", IMPLEMENTATIONS)
EPS = 1e-6


def rounding_error(dtype: torch.dtype, impl: str) -> float:
    """Relative error of one rounding: half a unit in the last place.

    Triton's interpreter cuts bfloat16 off instead of rounding it; what a GPU does is tested in tests/gpu.
    """
    cut_off = impl == "triton" and dtype == torch.bfloat16
    return torch.finfo(dtype).eps / (1 if cut_off else 2) + 1e-6


def tables(rows: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """diffusers' own cos and sin ``[R, D]``, of positions that turn the fastest pair all around."""
    return get_1d_rotary_pos_embed(dim, torch.arange(rows) * 1.7, use_real=True)


def random_weight(generator: torch.Generator, size: int, dtype: torch.dtype) -> torch.Tensor:
    return (1 + 0.3 * torch.randn(size, generator=generator)).to(dtype)


@implementations
@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 2),
    video=st.integers(1, 24),
    text=st.integers(0, 7),
    text_first=st.booleans(),
    heads=st.integers(1, 5),
    dim=st.sampled_from([2, 16, 40, 64, 80, 96, 128]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    layout=st.sampled_from(["contiguous", "transposed", "sliced"]),
    across=st.booleans(),
    form=st.sampled_from([None, "N", "HN", "BHN"]),
    index=st.sampled_from([torch.int32, torch.int64]),
    inverted=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_float64_definition(
    impl, batch, video, text, text_first, heads, dim, dtype, layout, across, form, index, inverted, seed
):
    g = torch.Generator().manual_seed(seed)
    tokens = video + text
    start = text if text_first else 0
    x = random_tokens(g, (batch, tokens, heads, dim), dtype, layout) * 3
    weight = random_weight(g, heads * dim if across else dim, dtype)
    cos, sin = tables(video, dim)
    expected = norm_rope64(x, weight, cos, sin, EPS, start)
    given_order = {}
    if form is not None:
        shape = {"N": (tokens,), "HN": (heads, tokens), "BHN": (batch, heads, tokens)}[form]
        order = torch.rand(shape, generator=g).argsort(dim=-1).to(index)
        given_order = {"positions": inverse_order(order)} if inverted else {"order": order}
        rows = order.long().expand(batch, heads, tokens)
        for b in range(batch):
            for h in range(heads):
                expected[b, :, h] = expected[b, rows[b, h], h].clone()
    with poisoned_empty():
        out = norm_rope(x, weight, rotary_table(cos, sin), eps=EPS, start=start, impl=impl, **given_order)
    assert out.dtype == dtype
    assert out.is_contiguous()
    torch.testing.assert_close(out.double(), expected, rtol=rounding_error(dtype, impl), atol=2e-5)


def stock_chain(x, weight, cos, sin, text, norm):
    """Norm and RoPE as the stock processors run them: video first, then text."""
    _, tokens, heads, dim = x.shape
    if norm == "torch":
        module = torch.nn.RMSNorm(heads * dim, eps=EPS)
    else:
        module = RMSNorm(dim, eps=EPS)
    module.weight = torch.nn.Parameter(weight)
    normed = module(x.flatten(2)).view(x.shape) if norm == "torch" else module(x)
    video = tokens - text
    turned = apply_rotary_emb(normed[:, :video], (cos, sin), sequence_dim=1)
    return torch.cat([turned, normed[:, video:]], dim=1).detach()


@pytest.mark.parametrize("norm", ["torch", "diffusers"])
@pytest.mark.parametrize(
    ("impl", "dtype"),
    [("reference", torch.bfloat16), *((impl, torch.float16) for impl in IMPLEMENTATIONS)],
)
def test_rounds_where_the_stock_modules_round(impl, norm, dtype):
    g = torch.Generator().manual_seed(0)
    text = 5
    x = random_tokens(g, (1, 45, 4, 32), dtype, "contiguous") * 2
    weight = random_weight(g, 128 if norm == "torch" else 32, dtype)
    cos, sin = tables(40, 32)
    stock = stock_chain(x, weight, cos, sin, text, norm)
    exact = norm_rope64(x, weight, cos, sin, EPS)

    def run(rounding):
        return norm_rope(x, weight, rotary_table(cos, sin), eps=EPS, rounding=rounding, impl=impl)

    same = {name: (run(name) == stock).double().mean().item() for name in ("end", "torch", "diffusers")}
    assert same.pop(norm) > 0.995, "only a float32 sum in another order may tip a rounding"
    assert max(same.values()) < 0.9, "the roundings inside must show, else this test shows nothing"
    assert error(run("end"), exact) < error(stock, exact)
    assert error(run(norm), exact) <= 1.05 * error(stock, exact)


@implementations
@pytest.mark.parametrize("norm", ["torch", "diffusers"])
def test_float32_equals_the_stock_modules(impl, norm):
    g = torch.Generator().manual_seed(1)
    x = random_tokens(g, (2, 31, 3, 80), torch.float32, "sliced")
    weight = random_weight(g, 240 if norm == "torch" else 80, torch.float32)
    cos, sin = tables(26, 80)
    stock = stock_chain(x, weight, cos, sin, 5, norm)
    for rounding in ("end", "torch", "diffusers"):
        out = norm_rope(x, weight, rotary_table(cos, sin), eps=EPS, rounding=rounding, impl=impl)
        torch.testing.assert_close(out, stock, rtol=1e-5, atol=1e-6)


@implementations
def test_eps_and_a_weight_of_another_precision(impl):
    """Tiny values meet eps; a float32 weight is not rounded to x's precision."""
    g = torch.Generator().manual_seed(2)
    x = random_tokens(g, (1, 9, 2, 16), torch.bfloat16, "contiguous") * 1e-3
    weight = random_weight(g, 32, torch.float32)
    cos, sin = tables(9, 16)
    out = norm_rope(x, weight, rotary_table(cos, sin), eps=1e-5, impl=impl)
    exact = norm_rope64(x, weight, cos, sin, 1e-5)
    torch.testing.assert_close(out.double(), exact, rtol=rounding_error(x.dtype, impl), atol=1e-6)


def test_rotary_table_takes_both_shapes_of_diffusers():
    cos, sin = tables(6, 8)
    table = rotary_table(cos, sin)
    assert torch.equal(rotary_table(cos[None, :, None], sin[None, :, None]), table)
    for pair in range(4):
        assert torch.equal(table[:, pair, 0], cos[:, 2 * pair])
        assert torch.equal(table[:, pair, 1], sin[:, 2 * pair])
    with pytest.raises(ValueError, match=r"\[R, D\] or \[1, R, 1, D\].*\(6, 8\).*\(5, 8\)"):
        rotary_table(cos, sin[:5])
    with pytest.raises(ValueError, match=r"got \(2, 3, 1, 8\)"):
        rotary_table(cos.view(2, 3, 1, 8), sin.view(2, 3, 1, 8))


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_inverse_order(index):
    order = torch.stack([torch.randperm(9), torch.randperm(9)]).to(index)
    for given_order in (order, order[0], order[0].expand(3, 9)):
        positions = inverse_order(given_order)
        assert positions.dtype == index
        gathered = positions.gather(-1, given_order.long())
        assert torch.equal(gathered, torch.arange(9, dtype=index).expand(given_order.shape))


def test_bad_input_is_named():
    x, weight, table = torch.randn(1, 8, 2, 4), torch.ones(4), torch.zeros(8, 2, 2)
    order = torch.arange(8)

    def run(x=x, weight=weight, rotary=table, **options):
        return norm_rope(x, weight, rotary, **({"eps": EPS} | options))

    with pytest.raises(ValueError, match=r"head size must be even.*\(1, 8, 2, 3\)"):
        run(torch.randn(1, 8, 2, 3))
    with pytest.raises(ValueError, match=r"\[4\] or \[H \* D\] = \[8\].*got \(5,\)"):
        run(weight=torch.ones(5))
    with pytest.raises(ValueError, match=r"rotary float32, got .*float64"):
        run(rotary=table.double())
    with pytest.raises(ValueError, match=r"\[R, 2, 2\].*got \(8, 4\)"):
        run(rotary=torch.zeros(8, 4))
    with pytest.raises(ValueError, match=r"8 angles from token 1 on do not fit 8 tokens"):
        run(start=1)
    with pytest.raises(ValueError, match=r"eps must be positive, got 0"):
        run(eps=0.0)
    with pytest.raises(ValueError, match=r"unknown rounding 'twice'.*diffusers"):
        run(rounding="twice")
    with pytest.raises(ValueError, match=r"give one of them"):
        run(order=order, positions=order)
    with pytest.raises(ValueError, match=r"got \(7,\)"):
        run(order=order[:7])
    with pytest.raises(ValueError, match=r"unknown impl 'fast'"):
        run(impl="fast")
