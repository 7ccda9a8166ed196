"""Methods that learn from dense attention on real diffusers classes: padded text, branches, generations,
carried bytes."""

import pytest
import torch
from tiny import FAMILIES, hunyuan_video_inputs, hunyuan_video_pipeline, run, wan_inputs, wan_pipeline

import dit_sparse

ALWAYS = {"dense_steps": 0, "dense_layers": [], "min_tokens": 0, "block_size": 16}
NAMES = ("adaspa", "mosaic", "paro", "rettention", "sparse_vdit")


@pytest.mark.parametrize("method", NAMES)
def test_padded_text_of_different_lengths(method):
    pipe, inputs = hunyuan_video_pipeline(), hunyuan_video_inputs(2, valid=(4, 11))
    latents = torch.randn(run(pipe, inputs).shape, generator=torch.Generator().manual_seed(3))
    with dit_sparse.sparse_attention(pipe, method, density=0.6, strict=True, **ALWAYS) as handle:
        together = run(pipe, inputs | {"latents": latents})
        stats = handle.stats()
        assert stats.fallbacks == [] and stats.density_sparse_sites == pytest.approx(0.6, rel=0.12)
        for i in range(2):
            one = {k: v[i : i + 1] if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
            alone = run(pipe, one | {"latents": latents[i : i + 1]})
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("correction", ["reshape", "reshape_residual"])
def test_svg2_with_statistical_reshape(family, correction):
    make, make_inputs = FAMILIES[family]
    pipe, inputs = make(), make_inputs()
    dense = run(pipe, inputs)
    with dit_sparse.sparse_attention(pipe, "svg2", density=0.5, correction=correction, **ALWAYS) as handle:
        first = run(pipe, inputs)
        stats = handle.stats()
        assert torch.equal(run(pipe, inputs), first), "state leaked from one generation to the next"
    assert stats.dense_sites == {"observed": len({r.site.branch for r in stats.records}) * 2}
    assert {r.site.step for r in stats.records if r.dense_reason is None} == {1, 2, 3}
    assert not torch.equal(first, dense) and torch.isfinite(first).all()
    with dit_sparse.sparse_attention(pipe, "svg2", density=1.0, correction=correction, **ALWAYS):
        torch.testing.assert_close(run(pipe, inputs), dense, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", NAMES)
def test_what_is_carried_shows_in_the_stats_and_branches_are_apart(method):
    pipe, inputs = wan_pipeline(), wan_inputs()
    with dit_sparse.sparse_attention(pipe, method, density=0.5, **ALWAYS) as handle:
        first = run(pipe, inputs)
        stats = handle.stats()
        assert torch.equal(run(pipe, inputs), first)
    observed = [(r.site.branch, r.site.layer, r.site.step) for r in stats.records if r.dense_reason]
    steps = (0, 2) if method in ("mosaic", "paro") else (0,)
    branches = ("conditional", "unconditional")
    assert sorted(observed) == sorted((b, layer, s) for b in branches for layer in range(2) for s in steps)
    # Mosaic's branches share blocks and orders, not residuals.
    sites, heads, tokens, blocks = 2 if method == "mosaic" else 4, 2, 105, 7
    mask = heads * blocks  # a byte holds a row of seven bits
    expected = {
        "adaspa": mask,
        "mosaic": mask + heads + 2 * (heads * tokens * 8 + heads * 8 * 16 * 4),
        "paro": mask + heads,
        "rettention": heads * tokens * (2 + 16 * 4),
        "sparse_vdit": mask + 2 * heads,
    }[method]
    # AdaSpa's log-sum-exp is gone after the second search, at step 3 of 4.
    assert stats.state_bytes == sites * expected


def test_both_experts_of_wan_2_2_learn():
    pipe, inputs = wan_pipeline(experts=2), wan_inputs()
    with dit_sparse.sparse_attention(pipe, "sparse_vdit", density=0.5, **ALWAYS) as handle:
        assert torch.isfinite(run(pipe, inputs)).all()
        records = handle.stats().records
    first = {}
    for record in records:
        first.setdefault((record.site.transformer, record.site.branch, record.site.layer), record)
    assert len(first) == 8
    assert all(record.dense_reason == "observed" for record in first.values())
    assert sum(record.dense_reason == "observed" for record in records) == 8


def test_a_residual_over_its_budget_says_what_would_fit():
    pipe, inputs = wan_pipeline(), wan_inputs()
    with dit_sparse.sparse_attention(pipe, "rettention", density=0.5, residual_bytes=1000, **ALWAYS):
        with pytest.raises(ValueError, match=r"residual_bytes=1000 .* 4200 bytes .* residual_bytes=0"):
            run(pipe, inputs)
