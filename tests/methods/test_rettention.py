"""Re-ttention: the band, rho by its definition, exact output where rho is fresh, refresh, the cost of R."""

import pytest
import torch
from planted import dense, densities, groups, observed_steps, random, relative_error, run

from dit_sparse.corrections import PooledCompensation, StatisticalReshape, correction_named
from dit_sparse.corrections.reshape import RESIDUAL, RHO
from dit_sparse.engine import SparseMethod, observed_attention, sparse_attention
from dit_sparse.layout import BlockMap, Site, TokenLayout
from dit_sparse.methods import SVG2, Draft, ModelInfo, Rettention, make_method
from dit_sparse.orderings import AxisPermutation, Raster, SemanticClusters, Tiles
from dit_sparse.schedule import Schedule
from dit_sparse.selectors import FrameBand, ObservedMass, TopK, TopP
from dit_sparse.state import LayerState

MODEL = ModelInfo("wan", 1, 16)
ALWAYS = {"dense_steps": 0, "min_tokens": 0, "block_size": 16}
PLENTY = 2**24
RAGGED = (TokenLayout(3, 5, 7), TokenLayout(3, 5, 7, 9, "first"), TokenLayout(3, 5, 7, 9, "last"))


def composed(selector, ordering, **fields):
    correction = StatisticalReshape(**fields)
    return SparseMethod("t", selector, ordering, correction, schedule=Schedule(min_tokens=0), block_size=16)


def call(method, x, layout, state, step=0, apply=sparse_attention):
    context = method.context(layout, Site(0, step, 10), state, head_dim=x[0].shape[-1])
    return apply(*x, method=method, context=context)


@pytest.mark.parametrize("axes", ["THW", "HWT"])
def test_the_band_is_that_of_the_paper(axes):
    """Token by token: near in the frame, whatever the frames; a pair of blocks is kept where one token is."""
    layout = TokenLayout(4, 6, 8)
    band = FrameBand(share=0.25)  # 12 of 48: up to 6 places apart
    method = SparseMethod("t", band, AxisPermutation(axes), schedule=Schedule(min_tokens=0), block_size=16)
    _, plan = call(method, random(192), layout, LayerState())
    place = (torch.arange(192) % 48)[plan.q_order]
    near = (place[:, None] - place).abs() <= 6
    expected = near.view(12, 16, 12, 16).any(3).any(1)
    assert torch.equal(plan.block_map.to_mask(), expected.expand(1, 3, -1, -1))


def test_frames_side_by_side_make_the_band_a_few_blocks():
    layout = TokenLayout(8, 8, 8)
    density = {}
    for axes in ("THW", "HWT"):
        method = SparseMethod("t", FrameBand(0.1), AxisPermutation(axes), block_size=16)
        density[axes] = float(call(method, random(512), layout, LayerState())[1].density)
    assert density["HWT"] < 0.6 * density["THW"]


def test_attention_along_time_is_exact_under_the_band():
    layout = TokenLayout(4, 8, 8)
    x = groups(layout, "T", "T")
    method = Rettention(share=0.031, **ALWAYS).build(MODEL)
    out, runtime = run(method, x, layout, 2)
    assert relative_error(out[1], dense(*x)[0]).max() < 2e-3
    assert densities(runtime)[0] < 0.2


@pytest.mark.parametrize("layout", RAGGED, ids=str)
def test_rho_is_the_ratio_of_the_denominators(layout):
    x, state = random(layout.num_tokens, batch=2, sharp=2.0), LayerState()
    method = composed(FrameBand(density=0.4), AxisPermutation("HWT"))
    call(method, x, layout, state, apply=observed_attention)
    _, plan = call(method, x, layout, state)
    kept = plan.block_map.to_mask().repeat_interleave(16, -1).repeat_interleave(16, -2)
    n = layout.num_tokens
    kept = kept[..., :n, :n]
    q, k = (y.transpose(1, 2)[:, :, plan.q_order].double() for y in x[:2])
    exponentials = (q @ k.mT / 4).exp()
    expected = (exponentials * kept).sum(-1) / exponentials.sum(-1)
    rho = state.values[f"{RHO}.batched"].float()[..., plan.q_order]
    torch.testing.assert_close(rho.double(), expected, rtol=1e-3, atol=1e-3)
    assert rho.min() < 0.8


SELECTIONS = {
    "band": (FrameBand(density=0.35), AxisPermutation("HWT")),
    "svg2": (TopP(density=0.35, score="centroid"), SemanticClusters(8, 8, 4, 4)),
    "draft": (TopK(0.35), Tiles((1, 4, 4))),
    "adaspa": (ObservedMass(0.35, "row", 0.8), Raster()),
}


@pytest.mark.parametrize("layout", RAGGED, ids=str)
@pytest.mark.parametrize("name", SELECTIONS)
def test_with_a_fresh_rho_and_the_residual_the_output_is_dense(name, layout):
    x, state = random(layout.num_tokens, batch=2, sharp=2.0), LayerState()
    method = composed(*SELECTIONS[name], residual_bytes=PLENTY)
    exact = dense(*x)[0]
    call(method, x, layout, state, apply=observed_attention)
    corrected, plan = call(method, x, layout, state)
    if name != "svg2":  # whose k-means goes on between the two calls, so that its mask is another one
        torch.testing.assert_close(corrected.double(), exact, rtol=1e-4, atol=1e-4)
    plain = SparseMethod("t", *SELECTIONS[name], schedule=Schedule(min_tokens=0), block_size=16)
    uncorrected, _ = call(plain, x, layout, state)
    assert plan.density < 0.75
    assert relative_error(corrected, exact).max() < 0.35 * relative_error(uncorrected, exact).max()


@pytest.mark.parametrize("layout", RAGGED, ids=str)
def test_without_the_residual_the_output_is_the_unnormalised_part(layout):
    x, state = random(layout.num_tokens, sharp=2.0), LayerState()
    method = composed(TopK(0.4), Tiles((1, 4, 4)), growth=0.0)
    call(method, x, layout, state, apply=observed_attention)
    out, plan = call(method, x, layout, state, step=1)
    kept = plan.block_map.to_mask().repeat_interleave(16, -1).repeat_interleave(16, -2)
    n = layout.num_tokens
    q, k, v = (y.transpose(1, 2)[:, :, plan.q_order].double() for y in x)
    share = (q @ k.mT / 4).softmax(-1) * kept[..., :n, :n]
    torch.testing.assert_close(
        out[:, plan.q_order].double(), (share @ v).transpose(1, 2), rtol=2e-3, atol=2e-3
    )


def test_rho_grows_up_to_one():
    layout, x, state = TokenLayout(3, 5, 7), random(105, sharp=2.0), LayerState()
    method = composed(TopK(0.4), Raster(), growth=0.1)
    call(method, x, layout, state, apply=observed_attention)
    rho = state.values[f"{RHO}.batched"].float()
    plain = SparseMethod("t", TopK(0.4), schedule=Schedule(min_tokens=0), block_size=16)
    sparse, _ = call(plain, x, layout, LayerState())
    for step in (0, 1, 4, 40):
        expected = sparse * (rho + 0.1 * step).clamp(max=1.0).transpose(1, 2)[..., None]
        torch.testing.assert_close(call(method, x, layout, state, step)[0], expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(call(method, x, layout, state, 40)[0], sparse)


@pytest.mark.parametrize(
    ("guard", "refresh", "expected"), [(0, 5, [0, 5, 10]), (3, 4, [6, 10]), (0, 1, list(range(12)))]
)
def test_refresh_steps_run_dense(guard, refresh, expected):
    layout = TokenLayout(3, 5, 7)
    method = Rettention(density=0.3, refresh_steps=refresh, **(ALWAYS | {"dense_steps": guard})).build(MODEL)
    x = random(105)
    out, runtime = run(method, x, layout, 12)
    assert observed_steps(runtime) == expected
    exact = dense(*x)[0]
    for step in expected:
        torch.testing.assert_close(out[step].double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "config", [SVG2(density=0.55, **ALWAYS), Draft(density=0.55, **ALWAYS)], ids=lambda c: c.name
)
def test_on_top_of_other_methods_by_name(config):
    layout = TokenLayout(3, 5, 7, 4, "last")
    x = random(109, batch=2, sharp=2.0)
    outputs = {}
    for name in ("none", "reshape", "reshape_residual"):
        method = make_method(config, correction=name).build(MODEL)
        outputs[name], runtime = run(method, x, layout, 3)
        assert observed_steps(runtime) == ([] if name == "none" else [0])
        assert densities(runtime)[-1] == pytest.approx(0.55, rel=0.1)
    errors = {name: relative_error(out[1], dense(*x)[0]).mean() for name, out in outputs.items()}
    assert errors["reshape_residual"] < 0.6 * errors["none"]


def test_the_residual_takes_what_fits_its_budget():
    layout, x = TokenLayout(4, 8, 8), random(256, dim=64, batch=2, sharp=2.0)
    elements, rows = x[0].numel(), 2 * 256 * 3
    exact, errors = dense(*x)[0], {}
    for budget, stored in ((4 * elements, 4), (4 * elements - 1, 2), (2 * elements - 1, 1)):
        state = LayerState()
        method = composed(TopK(0.2), Raster(), residual_bytes=budget)
        call(method, x, layout, state, apply=observed_attention)
        kept = state.values[f"{RESIDUAL}.batched"]
        assert kept[0].element_size() == stored and sum(t.nbytes for t in kept) <= budget
        assert state.nbytes == sum(t.nbytes for t in kept) + 2 * rows
        errors[stored] = (call(method, x, layout, state)[0] - exact).abs().amax()
    largest = state.values[f"{RESIDUAL}.batched"][1].max() * 127
    assert errors[4] < 1e-5 < errors[2] < largest / 2**8 and errors[1] < largest / 250
    smallest = elements + 4 * rows
    method = composed(TopK(0.2), Raster(), residual_bytes=smallest)
    call(method, x, layout, LayerState(), apply=observed_attention)
    method = composed(TopK(0.2), Raster(), residual_bytes=smallest - 1)
    with pytest.raises(
        ValueError, match=rf"residual_bytes={smallest - 1} .*{smallest} bytes.*residual_bytes=0"
    ):
        call(method, x, layout, LayerState(), apply=observed_attention)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    layout, x = TokenLayout(3, 5, 7), [t.to(dtype) for t in random(105, sharp=2.0)]
    state = LayerState()
    method = composed(TopK(0.3), AxisPermutation("HWT"), residual_bytes=PLENTY)
    call(method, x, layout, state, apply=observed_attention)
    out, _ = call(method, x, layout, state)
    assert out.dtype == dtype
    assert relative_error(out, dense(*x)[0]).max() < 0.01


def test_rows_that_keep_nothing_come_from_the_residual():
    class Skip:
        def select(self, given):
            return torch.zeros(given.shape, dtype=torch.bool)

    layout, x, state = TokenLayout(3, 5, 7), random(105), LayerState()
    method = composed(Skip(), Raster(), residual_bytes=PLENTY)
    call(method, x, layout, state, apply=observed_attention)
    assert state.values[f"{RHO}.batched"].eq(0).all()
    torch.testing.assert_close(call(method, x, layout, state)[0].double(), dense(*x)[0], rtol=1e-5, atol=1e-5)


def test_defaults_and_fields():
    method = Rettention().build(ModelInfo("cogvideox", 30, 64))
    assert method.schedule.dense_steps == 0.3  # 15 of 50
    assert Rettention().build(MODEL).schedule.dense_steps == 0.2
    assert method.correction == StatisticalReshape(5, 0.04, 2**29)
    assert Rettention(correction="pooled").build(MODEL).correction == PooledCompensation()
    assert Rettention(correction="none").build(MODEL).correction is None
    assert correction_named("reshape").residual_bytes == 0
    full = BlockMap.full(1, 3, 105, 105, (16, 16), torch.device("cpu"))
    assert torch.equal(
        call(Rettention(density=1.0, **ALWAYS).build(MODEL), random(105), TokenLayout(3, 5, 7), LayerState())[
            1
        ].block_map.to_mask(),
        full.to_mask(),
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: StatisticalReshape(0),
        lambda: StatisticalReshape(growth=1.5),
        lambda: StatisticalReshape(residual_bytes=-1),
        lambda: StatisticalReshape(residual_bytes=0.5),
        lambda: FrameBand(0.0),
        lambda: FrameBand(density=1.5),
    ],
)
def test_bad_fields_are_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()


def test_a_missing_rho_is_refused():
    with pytest.raises(ValueError, match="reshape.*observed before"):
        call(composed(TopK(0.3), Raster()), random(105), TokenLayout(3, 5, 7), LayerState())
