"""Compensation, mean-key mass and pooling, definition and Triton, against float64: any shape, stride and
type, rows that keep nothing or everything."""

import pytest
import torch
from kernel_oracles import (
    attention64,
    block_shape,
    map_of,
    poisoned_empty,
    random_mask,
    random_tokens,
    tokens_of,
)
from pooled_oracles import (
    compensated64,
    mass64,
    means64,
    merged64,
    pooled64,
    relative_error,
    rounding_bound,
)

from dit_sparse.kernels import (
    block_sparse_attention,
    compensate,
    mean_key_mass,
    merge_attention,
    pool_blocks,
    pooled_attention,
)
from dit_sparse.kernels.dispatch import installed
from dit_sparse.layout import BlockMap

IMPLEMENTATIONS = ["reference"]
if installed("triton") and not torch.cuda.is_available():
    IMPLEMENTATIONS.append("triton")
with_triton = pytest.mark.skipif("triton" not in IMPLEMENTATIONS, reason="needs Triton's interpreter")
BFLOAT, HALF, FLOAT = torch.bfloat16, torch.float16, torch.float32
# (head size, strides, block, queries, keys, (batch, heads)); the interpreter takes its time for every program
CASES = [
    (32, "contiguous", (32, 32), 40, 81, (2, 2)),
    (64, "transposed", (128, 128), 50, 40, (1, 2)),
    (80, "sliced", (32, 64), 96, 130, (1, 1)),
    (128, "transposed", (64, 32), 130, 100, (1, 1)),
    (64, "sliced", (128, 128), 200, 300, (1, 1)),
    (40, "contiguous", (48, 24), 100, 100, (1, 1)),
]
TYPED = [(case, dtype) for case in CASES for dtype in (FLOAT, BFLOAT)] + [(CASES[0], HALF), (CASES[2], HALF)]


def draw(dim, layout, block, num_queries, num_keys, batch_heads, dtype, density=0.5):
    """q, k, v and a mask, whose very first row keeps nothing and the very last everything."""
    batch, heads = batch_heads
    g = torch.Generator().manual_seed(dim + num_queries)
    q = random_tokens(g, (batch, num_queries, heads, dim), dtype, layout)
    k, v = (random_tokens(g, (batch, num_keys, heads, dim), dtype, layout) for _ in range(2))
    return q, k, v, random_mask(g, block_shape(batch, heads, num_queries, num_keys, block), density)


def sparse64(q, k, v, mask, block, scale):
    """The sparse attention to correct: float64 rounded once to the type of q, and float32 log-sum-exp."""
    out, lse = attention64(q, k, v, tokens_of(mask, block, q.shape[1], k.shape[1]), scale)
    return out.to(q.dtype), lse.float()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(("case", "dtype"), TYPED, ids=str)
def test_compensation_matches_float64(case, dtype, impl):
    q, k, v, mask = draw(*case, dtype)
    dim, layout, block, num_queries, num_keys, _ = case
    scale = dim**-0.5
    block_map = map_of(mask, num_queries, num_keys, block)
    out, lse = sparse64(q, k, v, mask, block, scale)
    if layout == "transposed":
        out = out.transpose(1, 2).contiguous().transpose(1, 2)
        lse = lse.transpose(1, 2).contiguous().transpose(1, 2)
    given = out.clone()
    with poisoned_empty():
        pooled, pooled_lse = pooled_attention(q, k, v, block_map, scale=scale, impl=impl)
        merged = compensate(q, k, v, out, lse, block_map, scale=scale, impl=impl)

    expected, expected_lse = pooled64(q, k, v, mask, block, scale)
    some = torch.isfinite(expected_lse)
    assert pooled.dtype == pooled_lse.dtype == FLOAT
    assert torch.equal(torch.isfinite(pooled_lse), some)
    assert not pooled.transpose(1, 2)[~some].any()
    bound = rounding_bound(q, k, block[1], scale)
    torch.testing.assert_close(pooled_lse[some].double(), expected_lse[some], atol=bound, rtol=1e-6)
    assert relative_error(pooled, expected) <= torch.finfo(dtype).eps + 1e-6

    union = compensated64(q, k, v, mask, block, scale)
    assert merged.dtype == dtype
    assert torch.equal(out, given)
    assert relative_error(merged, union) <= torch.finfo(dtype).eps + 1e-6
    if dtype == FLOAT:
        torch.testing.assert_close(pooled.double(), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(merged.double(), union, atol=1e-5, rtol=1e-5)
    full = ~some.transpose(1, 2)
    assert torch.equal(merged[full], out[full]), "rows that skip nothing are left as they are"


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(("case", "dtype"), TYPED, ids=str)
def test_mass_matches_float64(case, dtype, impl):
    q, k, _, _ = draw(*case, dtype)
    dim, _, block, *_ = case
    with poisoned_empty():
        mass = mean_key_mass(q, k, block, impl=impl)
    expected = mass64(q, k, block, dim**-0.5)
    bound = rounding_bound(q, k, block[1], dim**-0.5)
    assert mass.dtype == FLOAT
    # Numerator and denominator of a share move by at most the bound each.
    torch.testing.assert_close(mass.double(), expected, atol=1e-7, rtol=2.02 * bound)
    torch.testing.assert_close(mass.sum(dim=-1), torch.ones(mass.shape[:3]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [FLOAT, BFLOAT, HALF])
@pytest.mark.parametrize(
    ("tokens", "block", "dim", "layout"),
    [
        (1, 128, 64, "contiguous"),
        (11, 1, 40, "sliced"),
        (300, 128, 128, "transposed"),
        (97, 48, 80, "sliced"),
    ],
)
def test_pooling_matches_float64(tokens, block, dim, layout, dtype, impl):
    x = random_tokens(torch.Generator().manual_seed(tokens), (1, tokens, 2, dim), dtype, layout)
    with poisoned_empty():
        pooled = pool_blocks(x, block, impl=impl)
    assert pooled.dtype == FLOAT and pooled.is_contiguous()
    torch.testing.assert_close(pooled.double(), means64(x, block).transpose(1, 2), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [FLOAT, BFLOAT, HALF])
def test_a_full_map_changes_nothing(dtype, impl):
    """Bit for bit, whatever the output is: here it is no attention at all."""
    g = torch.Generator().manual_seed(2)
    q, k, v = (random_tokens(g, (2, 45, 1, 32), dtype, "contiguous") for _ in range(3))
    out = random_tokens(g, (2, 45, 1, 32), dtype, "transposed") * 1000
    lse = torch.randn(2, 1, 45, generator=g) * 30
    block_map = BlockMap.full(2, 1, 45, 45, (32, 32), q.device)
    assert torch.equal(compensate(q, k, v, out, lse, block_map, scale=0.2, impl=impl), out)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_an_empty_map_leaves_the_means_alone(impl):
    g = torch.Generator().manual_seed(3)
    q, k, v = (random_tokens(g, (1, 45, 2, 32), FLOAT, "contiguous") for _ in range(3))
    mask = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    nothing = torch.zeros(1, 45, 2, 32), torch.full((1, 2, 45), -torch.inf)
    merged = compensate(q, k, v, *nothing, map_of(mask, 45, 45, (32, 32)), scale=0.2, impl=impl)
    expected, _ = pooled64(q, k, v, mask, (32, 32), 0.2)
    torch.testing.assert_close(merged.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(("tokens", "block", "density"), [(90, 32, 0.3), (150, 64, 0.6), (45, 16, 0.0)])
def test_compensation_is_exact_when_the_keys_of_a_block_are_equal(tokens, block, density, impl):
    """Dense attention comes out, though only some blocks were attended to; the values may differ."""
    g = torch.Generator().manual_seed(tokens)
    q, k, v = (random_tokens(g, (1, tokens, 2, 32), FLOAT, "contiguous") for _ in range(3))
    k = k[:, torch.arange(tokens) // block * block]
    mask = torch.rand(block_shape(1, 2, tokens, tokens, (block, block)), generator=g) < density
    block_map = map_of(mask, tokens, tokens, (block, block))
    out, lse = block_sparse_attention(q, k, v, block_map, scale=0.3, return_lse=True)
    merged = compensate(q, k, v, out, lse, block_map, scale=0.3, impl=impl)
    dense, _ = attention64(q, k, v, torch.ones(1, dtype=torch.bool), 0.3)
    torch.testing.assert_close(merged.double(), dense, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_large_logits(impl):
    """Logits in the hundreds: a softmax that forgets its running maximum overflows here."""
    q, k, v, mask = draw(64, "contiguous", (32, 32), 64, 160, (1, 1), FLOAT)
    block_map = map_of(mask, 64, 160, (32, 32))
    out, lse = sparse64(q, k, v, mask, (32, 32), 40.0)
    merged = compensate(q, k, v, out, lse, block_map, scale=40.0, impl=impl)
    # float32 rounds a logit of 1000 by 1e-4, and the exponential passes that on.
    expected = compensated64(q, k, v, mask, (32, 32), 40.0)
    torch.testing.assert_close(merged.double(), expected, atol=2e-3, rtol=2e-3)
    mass = mean_key_mass(q, k, (32, 32), 40.0, impl=impl)
    torch.testing.assert_close(mass.double(), mass64(q, k, (32, 32), 40.0), atol=1e-4, rtol=2e-3)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_narrow_and_strided_maps(impl):
    """A map whose width is less than nK, cut out of wider tensors."""
    q, k, v, _ = draw(32, "contiguous", (16, 16), 60, 90, (1, 2), FLOAT)
    g = torch.Generator().manual_seed(8)
    kept = torch.rand(1, 2, 4, 6, generator=g).argsort(dim=-1)[..., :2].sort(dim=-1).values
    counts = torch.tensor([[[0, 1, 2, 1], [2, 2, 0, 1]]], dtype=torch.int32)
    wide = torch.full((1, 2, 4, 5), 3, dtype=torch.int32)
    wide[..., :2] = kept
    spread = torch.full((1, 2, 4, 2), 7, dtype=torch.int32)
    spread[..., 0] = counts
    block_map = BlockMap(wide[..., :2], spread[..., 0], 60, 90, (16, 16))
    mask = torch.zeros(1, 2, 4, 6, dtype=torch.bool)
    for h in range(2):
        for row in range(4):
            mask[0, h, row, kept[0, h, row, : counts[0, h, row]]] = True
    pooled, lse = pooled_attention(q, k, v, block_map, scale=0.3, impl=impl)
    expected, expected_lse = pooled64(q, k, v, mask, (16, 16), 0.3)
    torch.testing.assert_close(pooled.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-5, rtol=1e-5)


@with_triton
@pytest.mark.parametrize(
    ("block", "tiles"), [((64, 16), (16, 16)), ((40, 12), (16, 64)), ((40, 12), (64, 16))]
)
def test_tiles_smaller_and_larger_than_blocks(block, tiles):
    """Several tiles per query block, several tiles of mean keys, tiles that hold no row of theirs at all."""
    from dit_sparse.kernels import triton_compensation, triton_pooled

    q, k, v, mask = draw(32, "sliced", block, 90, 230, (1, 1), FLOAT)
    config = triton_pooled.TileConfig(*tiles, num_warps=4, num_stages=2)
    block_map = map_of(mask, 90, 230, block)
    out, lse = sparse64(q, k, v, mask, block, 0.3)
    with poisoned_empty():
        pooled, pooled_lse = triton_compensation.attend(q, k, v, block_map, scale=0.3, config=config)
        merged, _ = triton_compensation.attend(q, k, v, block_map, scale=0.3, first=(out, lse), config=config)
        mass = triton_pooled.mass(q, k, block, scale=0.3, config=config)
    expected = pooled64(q, k, v, mask, block, 0.3)
    torch.testing.assert_close(pooled.double(), expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pooled_lse.double(), expected[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(merged.double(), merged64(out, lse, expected), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mass.double(), mass64(q, k, block, 0.3), atol=1e-7, rtol=1e-4)


@with_triton
@pytest.mark.parametrize("num_blocks", [1, 40, 1024, 1025, 2600])
def test_skipped_blocks_are_those_that_a_row_lacks(num_blocks):
    """Rows that lack everything, nothing, and some; longer than a step of the kernel."""
    from dit_sparse.kernels import triton_compensation

    kept = torch.rand(1, 1, 3, num_blocks, generator=torch.Generator().manual_seed(num_blocks)) < 0.4
    kept[0, 0, 0], kept[0, 0, 1] = False, True
    with poisoned_empty():
        found = triton_compensation.skipped_blocks(map_of(kept, 3, num_blocks, (1, 1)))
    for row in range(3):
        lacking = (~kept[0, 0, row]).nonzero()[:, 0]
        assert torch.equal(found[0, 0, row, : len(lacking)].long(), lacking)


@with_triton
@pytest.mark.parametrize("dtype", [BFLOAT, FLOAT])
def test_two_tensors_are_pooled_as_each_alone(dtype):
    """In one launch, with strides of their own."""
    from dit_sparse.kernels import triton_pooled

    g = torch.Generator().manual_seed(6)
    k = random_tokens(g, (2, 75, 2, 40), dtype, "sliced")
    v = random_tokens(g, (2, 75, 2, 40), dtype, "transposed")
    with poisoned_empty():
        together = triton_pooled.padded_means((k, v), 32, 4)
    for x, means in zip((k, v), together, strict=True):
        assert means.shape == (2, 2, 4, 64) and means.dtype == dtype
        expected = torch.zeros(2, 2, 4, 64, dtype=torch.float64)
        expected[:, :, :3, :40] = means64(x, 32).transpose(1, 2)
        torch.testing.assert_close(means, expected.to(dtype), atol=1e-6, rtol=torch.finfo(dtype).eps)


def test_merging_weighs_by_log_sum_exp():
    g = torch.Generator().manual_seed(4)
    first, second = (torch.randn(1, 40, 2, 8, generator=g) for _ in range(2))
    lse = [torch.randn(1, 2, 40, generator=g) * 3 for _ in range(2)]
    lse[0][..., :10] = -torch.inf
    lse[1][..., 5:15] = -torch.inf
    first, second = (
        x.masked_fill(part.isneginf().transpose(1, 2)[..., None], 0) for x, part in zip((first, second), lse)
    )
    merged = merge_attention(first, lse[0], second, lse[1])
    expected = merged64(first, lse[0], (second.double(), lse[1].double()))
    torch.testing.assert_close(merged.double(), expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(merged[:, 5:10], torch.zeros(1, 5, 2, 8))
    assert torch.equal(merged[:, 10:15], first[:, 10:15])


@pytest.fixture
def call():
    q, k, v = (torch.randn(1, 64, 2, 32) for _ in range(3))
    block_map = BlockMap.full(1, 2, 64, 64, (32, 32), q.device)
    return {
        "q": q,
        "k": k,
        "v": v,
        "out": q,
        "lse": torch.zeros(1, 2, 64),
        "block_map": block_map,
        "scale": 0.2,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lse": torch.zeros(1, 64, 2)}, r"\[B, H, Nq\] = \(1, 2, 64\).*got torch.float32 \(1, 64, 2\)"),
        ({"lse": torch.zeros(1, 2, 64).double()}, "got torch.float64"),
        ({"out": torch.zeros(1, 64, 2, 16)}, r"out must match q \(1, 64, 2, 32\).*got \(1, 64, 2, 16\)"),
        ({"q": torch.randn(1, 63, 2, 32)}, "built for 64 queries"),
        ({"scale": -1.0}, "got -1.0"),
        ({"impl": "fast"}, r"unknown impl 'fast'.*auto.*triton.*reference"),
    ],
)
def test_bad_input_is_named(call, change, message):
    with pytest.raises(ValueError, match=message):
        compensate(**{**call, **change})


@with_triton
def test_triton_by_name_never_falls_back(monkeypatch):
    x = torch.randn(1, 64, 2, 160)
    with pytest.raises(
        ValueError, match="impl 'triton' cannot run here: it needs a head size up to 128, got 160"
    ):
        mean_key_mass(x, x, (32, 32), impl="triton")
    torch.testing.assert_close(pool_blocks(x, 32, impl="triton"), pool_blocks(x, 32, impl="reference"))
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="needs a GPU, the tensors are on cpu"):
        pool_blocks(x, 32, impl="triton")
