"""Selectors on attention whose right blocks are known, budgets met exactly, forced pairs never dropped."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_sparse.layout import BlockMap, Site, TokenLayout
from dit_sparse.orderings import PlanContext, Raster, SemanticClusters, Tiles
from dit_sparse.selectors import (
    SelectionInput,
    Static,
    TopK,
    TopP,
    Window,
    estimate_mass,
    forced_pairs,
    keep_smallest,
)
from dit_sparse.selectors.spend import spend, spend_by_head
from dit_sparse.state import LayerState


def given_for(q, k, layout, block=16, ordering=None, diagonal=True, v=None):
    """A selection problem as the engine poses it, for a layout without text or with raster order."""
    context = PlanContext(layout, Site(0, 0), q.shape[-1] ** -0.5, (block, block), LayerState())
    order = (ordering or Raster()).order(q, k, context)
    n = layout.num_tokens
    v = torch.zeros_like(k) if v is None else v
    if order.q is not None:
        q, k, v = (
            x.gather(1, o.expand(x.shape[0], x.shape[2], n).transpose(1, 2)[..., None].expand_as(x))
            for x, o in ((q, order.q), (k, order.kv), (v, order.kv))
        )
    forced = forced_pairs(
        n, layout.text_start, layout.text_tokens, (block, block), q.device, diagonal=diagonal
    )
    return SelectionInput(q, k, v, order, forced, layout.video_start, context)


def random_qk(tokens, heads=2, dim=8, batch=1, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(scale * torch.randn(batch, tokens, heads, dim, generator=generator) for _ in range(2))


def planted(blocks=8, block=16, dim=16):
    """q block i attends to k block (i + 3) mod blocks and to nothing else."""
    codes = 12 * torch.eye(blocks, dim)
    q = codes.repeat_interleave(block, 0)[None, :, None]
    k = codes.roll(3, 0).repeat_interleave(block, 0)[None, :, None]
    wanted = torch.eye(blocks, dtype=torch.bool).roll(3, 1)
    return q, k, wanted


SELECTORS = [TopP(density=0.25), TopK(0.25, "row"), TopK(0.25, "head"), TopK(0.25, "layer"), TopP(p=0.9)]


@pytest.mark.parametrize("selector", SELECTORS, ids=str)
def test_the_planted_block_is_found(selector):
    q, k, wanted = planted()
    mask = selector.select(given_for(q, k, TokenLayout(2, 8, 8)))
    assert mask[0, 0][wanted].all()


def test_top_p_keeps_no_more_than_it_needs():
    q, k, wanted = planted()
    mask = TopP(p=0.9).select(given_for(q, k, TokenLayout(2, 8, 8), diagonal=False))
    assert torch.equal(mask[0, 0], wanted)


def test_top_p_captures_p_of_the_estimated_mass():
    q, k = random_qk(256, heads=3, batch=2)
    problem = given_for(q, k, TokenLayout(4, 8, 8))
    mass = estimate_mass(problem, "pooled")
    torch.testing.assert_close(mass.sum(-1), torch.ones_like(mass[..., 0]))
    for p in (0.3, 0.7, 0.95):
        mask = TopP(p=p).select(problem)
        captured = (mass * mask).sum(-1)
        assert (captured >= p - 1e-5).all()
        # Without its lightest free block no row would reach p.
        free = mass.masked_fill(~mask | problem.forced, float("inf")).amin(-1)
        has_free = torch.isfinite(free)
        assert (captured[has_free] - free[has_free] < p + 1e-5).all()


@settings(max_examples=30)
@given(st.floats(0.12, 1.0), st.integers(0, 1000), st.sampled_from(["p", "row", "head", "layer", "window"]))
def test_density_is_met(density, seed, kind):
    q, k = random_qk(16 * 20, heads=3, batch=2, seed=seed)
    selector = {
        "p": TopP(density=density),
        "window": Window((3, 5, 5), density=density),
    }.get(kind) or TopK(density, kind)
    mask = selector.select(given_for(q, k, TokenLayout(5, 8, 8)))
    assert mask.shape == (2, 3, 20, 20)
    for sample in mask:
        assert sample.float().mean().item() == pytest.approx(density, rel=0.1, abs=0.026)
    assert mask.any(-1).all(), "a row without blocks"


def test_top_p_with_a_density_spends_where_heads_need_it():
    q, k = random_qk(16 * 20, heads=2)
    q[:, :, 0] *= 0.01  # nearly uniform attention
    q[:, :, 1] *= 8.0  # concentrated
    problem = given_for(q, k, TokenLayout(5, 8, 8))
    mask = TopP(density=0.3).select(problem)
    diffuse, concentrated = mask.float().mean(dim=(0, 2, 3))
    assert diffuse > 1.5 * concentrated
    # No split of the same budget, even over rows or over heads, captures more of the estimated mass.
    mass = estimate_mass(problem, "pooled")
    for scope in ("row", "head"):
        even = TopK(0.3, scope).select(problem)
        assert (mass * mask).sum() >= (mass * even).sum() * even.sum().clamp(max=mask.sum()) / even.sum()


def test_budgets_by_head_are_those_of_each_head_alone():
    cost = torch.rand(2, 4, 9, 11, generator=torch.Generator().manual_seed(0))
    forced = torch.eye(9, 11).bool()
    densities = (0.2, 0.6, 0.2, 1.0)
    pairs = [round(density * 99) for density in densities]
    together = spend_by_head(cost, forced, torch.tensor(pairs), max(pairs))
    assert together.sum(dim=(2, 3)).tolist() == [pairs] * 2
    for head, density in enumerate(densities):
        assert torch.equal(together[:, head], spend(cost[:, head : head + 1], forced, density, "head")[:, 0])
    few = spend_by_head(cost, forced, torch.ones(4, dtype=torch.int64), 1)
    assert torch.equal(few, forced.expand_as(few)), "forced pairs are kept beyond the budget"


def test_samples_of_a_batch_do_not_influence_one_another():
    q, k = random_qk(256, batch=3)
    layout = TokenLayout(4, 8, 8)
    for selector in SELECTORS:
        together = selector.select(given_for(q, k, layout))
        for i in range(3):
            alone = selector.select(given_for(q[i : i + 1], k[i : i + 1], layout))
            assert torch.equal(together[i], alone[0])


@pytest.mark.parametrize("selector", [*SELECTORS, Window((1, 1, 1))], ids=str)
@pytest.mark.parametrize("position", ["first", "last"])
def test_text_rows_columns_and_the_diagonal_are_kept(selector, position):
    layout = TokenLayout(4, 8, 8, 21, position)
    q, k = random_qk(layout.num_tokens)
    problem = given_for(q, k, layout)
    blocks = problem.forced.shape[0]
    text = [
        i
        for i in range(blocks)
        if any(layout.text_start <= t < layout.text_start + 21 for t in range(16 * i, 16 * i + 16))
    ]
    mask = selector.select(problem)
    assert mask[:, :, text].all()
    assert mask[:, :, :, text].all()
    assert mask.diagonal(dim1=-2, dim2=-1).all()


@given(st.integers(1, 90), st.integers(1, 40), st.integers(1, 40))
def test_the_diagonal_covers_every_token(tokens, q_block, k_block):
    forced = forced_pairs(tokens, tokens, 0, (q_block, k_block), torch.device("cpu"))
    position = torch.arange(tokens)
    assert forced[position // q_block, position // k_block].all()


def test_keep_smallest_is_exact_under_ties():
    mask = keep_smallest(torch.zeros(2, 3, 10, 10), 0.25, dims=2)
    assert mask.flatten(2).sum(-1).eq(25).all()


def test_window_keeps_near_blocks_on_any_ordering():
    grid = (4, 16, 16)
    q, k = random_qk(4 * 256)
    window = (3, 9, 9)
    problem = given_for(q, k, TokenLayout(*grid), block=64, ordering=Tiles((1, 8, 8)))
    mask = Window(window).select(problem)[0, 0]
    position = torch.stack(torch.unravel_index(problem.order.q, grid), dim=-1).view(16, 64, 3).float()
    near = (position[:, None, :, None] - position[None, :, None, :]).abs()
    expected = (near <= torch.tensor(window) / 2).all(-1).any(-1).any(-1)
    assert torch.equal(mask, expected | problem.forced)
    assert 0.1 < mask.float().mean() < 0.9


def test_centroid_mass_equals_exact_mass_for_tight_clusters():
    q, k, _wanted = planted(blocks=8, block=16)
    shuffle = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    ordering = SemanticClusters(64, 64, 1, 1, first_iterations=20)
    problem = given_for(q[:, shuffle], k[:, shuffle], TokenLayout(2, 8, 8), ordering=ordering, diagonal=False)
    mass = estimate_mass(problem, "centroid")
    attention = (problem.q[:, :, 0] @ problem.k[:, :, 0].mT / 4).softmax(-1)
    exact = attention.view(1, 8, 16, 8, 16).sum(-1).mean(2)
    torch.testing.assert_close(mass[:, 0], exact, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="pooled"):
        estimate_mass(given_for(q, k, TokenLayout(2, 8, 8)), "centroid")


def test_static_mask_is_used_and_checked():
    q, k = random_qk(128)
    problem = given_for(q, k, TokenLayout(2, 8, 8), diagonal=False)
    wanted = torch.rand(1, 2, 8, 8, generator=torch.Generator().manual_seed(5)) < 0.4
    block_map = BlockMap.from_mask(wanted, 128, 128, (16, 16))
    assert torch.equal(Static(block_map.pack()).select(problem), wanted)
    with pytest.raises(ValueError, match=r"\(1, 2, 4, 8\)"):
        Static(BlockMap.from_mask(wanted[:, :, :4], 64, 128, (16, 16))).select(problem)


@pytest.mark.parametrize(
    "make", [lambda: TopP(density=0.0), lambda: TopK(1.5), lambda: Window(density=-0.1), lambda: TopP(p=0)]
)
def test_bad_budgets_are_refused(make):
    with pytest.raises(ValueError, match="must be in"):
        make()


def test_mean_key_mass_is_exact_when_the_keys_of_a_block_are_equal():
    q, k = random_qk(150, heads=2, batch=2)
    k = k[:, torch.arange(150) // 16 * 16]
    problem = given_for(q, k, TokenLayout(1, 10, 15))
    mass = estimate_mass(problem, "mean_key")
    logits = torch.einsum("bnhd,bmhd->bhnm", q, k) * problem.context.scale
    padded = torch.nn.functional.pad(logits.softmax(-1), (0, 10)).unflatten(-1, (10, 16)).sum(-1)
    for block in range(10):
        expected = padded[:, :, 16 * block : 16 * block + 16].mean(2)
        torch.testing.assert_close(mass[:, :, block], expected, rtol=1e-4, atol=1e-5)
    pooled = estimate_mass(problem, "pooled")
    assert (pooled - mass).abs().max() > 1e-3, "pooling the queries too blurs the estimate"
