"""The carried low-rank residual: what it holds, where it is added, and branches that share a plan."""

import pytest
import torch
from planted import dense, densities, generation, observed_steps, random, relative_error, run

from dit_sparse.corrections import LowRankResidual, PooledCompensation
from dit_sparse.corrections.residual import _directions
from dit_sparse.engine import SparseMethod
from dit_sparse.layout import Site, TokenLayout
from dit_sparse.methods import ModelInfo, Mosaic
from dit_sparse.orderings import AxisPermutation, Raster
from dit_sparse.runtime import Runtime
from dit_sparse.schedule import Schedule
from dit_sparse.selectors import TopK

LAYOUT = TokenLayout(2, 8, 8)
HERE = ModelInfo("wan", 1, 16)


def method(correction, density=0.3, ordering=None):
    schedule = Schedule(min_tokens=0)
    return SparseMethod("t", TopK(density, "head"), ordering or Raster(), correction, schedule, block_size=16)


def values_of(runtime):
    (state,) = runtime.state._layers.values()
    return state.values


@pytest.mark.parametrize("rank", [1, 3, 5, 16, 40])
def test_it_keeps_the_directions_of_most_energy(rank):
    generator = torch.Generator().manual_seed(0)
    lack = torch.randn(2, 3, 200, 16, generator=generator) * 0.5 ** torch.arange(16)
    lack = lack @ torch.linalg.qr(torch.randn(16, 16, generator=generator)).Q
    levels, directions = _directions(lack, rank)
    assert levels.dtype == torch.int8
    assert levels.shape == (2, 3, 200, min(rank, 16))
    best = torch.linalg.svdvals(lack)[..., rank:].square().sum(-1).sqrt()
    missed = (lack - levels.float() @ directions).square().sum((-1, -2)).sqrt()
    rounding = 0.01 * lack.square().sum((-1, -2)).sqrt()
    assert (missed <= 1.02 * best + rounding).all()


def test_a_residual_of_zeros_stays_zero():
    levels, directions = _directions(torch.zeros(1, 2, 30, 16), 4)
    assert not levels.any()
    assert torch.isfinite(directions).all()


@pytest.mark.parametrize(("text", "position"), [(0, "none"), (16, "first"), (5, "last")])
@pytest.mark.parametrize("base", [None, PooledCompensation()])
@pytest.mark.parametrize("ordering", [Raster(), AxisPermutation("WTH")])
def test_all_directions_restore_what_was_seen(text, position, base, ordering):
    layout = TokenLayout(2, 8, 8, text, position)
    x = random(layout.num_tokens, 3, 16, batch=2)
    exact = dense(*x)[0]
    plain, _ = run(method(base, ordering=ordering), x, layout, 1)
    out, runtime = run(method(LowRankResidual(16, base, None), ordering=ordering), x, layout, 2)
    assert densities(runtime) == [pytest.approx(0.3, rel=0.1)]
    assert relative_error(plain[0], exact).min() > 0.1
    assert relative_error(out[1], exact).max() < 0.02, "to the rounding of 8 bits"


def test_the_error_falls_with_the_rank():
    x = random(128, 3, 16)
    exact = dense(*x)[0]
    errors = [
        relative_error(run(method(LowRankResidual(rank, None, None)), x, LAYOUT, 2)[0][1], exact).mean()
        for rank in (1, 4, 12)
    ]
    none = relative_error(run(method(None), x, LAYOUT, 1)[0][0], exact).mean()
    assert none > errors[0] > 1.05 * errors[1] > 1.3 * errors[2]


def test_it_is_small_and_taken_again():
    before, after = random(128, 3, 16), random(128, 3, 16, seed=5)
    out, runtime = run(method(LowRankResidual(4, again=0.5)), [before] * 3 + [after] * 3, LAYOUT, 6)
    assert observed_steps(runtime) == [0, 3]
    assert runtime.state.nbytes == 128 * 3 * 4 + 3 * 4 * 16 * 4
    for step, x in ((2, before), (5, after)):
        exact = dense(*x)[0]
        pooled, _ = run(method(PooledCompensation()), x, LAYOUT, 1)
        assert relative_error(out[step], exact).max() < relative_error(pooled[0], exact).min()


def test_nothing_learnt_is_refused():
    runtime = Runtime(method(LowRankResidual()))
    context = runtime.method.context(LAYOUT, Site(0, 1, 4), runtime.state.layer(Site(0, 1, 4)), head_dim=16)
    with pytest.raises(ValueError, match=r"residual\..*observed before"):
        LowRankResidual().apply(type("Given", (), {"context": context})())


def test_samples_of_a_batch_have_their_own():
    one, other = random(128, 2, 16), random(128, 2, 16, seed=9)
    both = tuple(torch.cat(pair) for pair in zip(one, other))
    built = method(LowRankResidual(4, again=None))
    together = run(built, both, LAYOUT, 2)[0][1]
    for i, x in enumerate((one, other)):
        torch.testing.assert_close(together[i : i + 1], run(built, x, LAYOUT, 2)[0][1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("share", [True, False])
def test_branches_share_blocks_and_keep_residuals_apart(share):
    built = Mosaic(
        density=0.3, dense_steps=1, min_tokens=0, block_size=16, relearn=None, share_branches=share
    ).build(HERE)
    inputs = {"conditional": random(128, 2, 16), "unconditional": random(128, 2, 16, seed=9)}
    runtime = Runtime(built)
    out = generation(runtime, inputs, LAYOUT)
    assert [r.dense_reason for r in runtime.records if r.site.step == 1] == [None, None]
    assert len(runtime.state._layers) == (1 if share else 2)
    alone = Runtime(built)
    own = generation(alone, {"unconditional": inputs["unconditional"]}, LAYOUT)["unconditional", 1]
    assert torch.equal(own, out["unconditional", 1]) is not share, "with a plan of its own nothing differs"
    # Each branch's residual is its own: with the other's it would be no better than without.
    exact = dense(*inputs["unconditional"])[0]
    pooled = generation(
        Runtime(Mosaic(density=0.3, correction="pooled", dense_steps=1, min_tokens=0, block_size=16,
                       relearn=None, share_branches=share).build(HERE)), inputs, LAYOUT,
    )["unconditional", 1]  # fmt: skip
    assert relative_error(out["unconditional", 1], exact).max() < 0.9 * relative_error(pooled, exact).min()


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: LowRankResidual(0), "rank must be a whole number >= 1, got 0"),
        (lambda: LowRankResidual(2.5), "got 2.5"),
        (lambda: LowRankResidual(again=-1), "again must be in"),
        (lambda: Mosaic(residual_rank=0).build(HERE), "rank must be"),
    ],
)
def test_bad_fields_are_refused(make, hint):
    with pytest.raises(ValueError, match=hint):
        make()
