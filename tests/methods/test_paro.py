"""PAROAttention: the axis order that makes a head's pattern blocks is found, and its blocks with it."""

import pytest
import torch
from planted import dense, densities, groups, observed_steps, random, relative_error, run

from dit_sparse.engine import SparseMethod, sparse_attention
from dit_sparse.layout import Site, TokenLayout
from dit_sparse.methods import PARO, ModelInfo
from dit_sparse.orderings import AXES, AXIS_ORDERS, AxisPermutation, CarriedAxes, LearntAxes
from dit_sparse.schedule import Schedule
from dit_sparse.selectors import FrameBand, ObservedMass, TopK
from dit_sparse.state import LayerState

MODEL = ModelInfo("wan", 1, 64)
ALWAYS = {"dense_steps": 0, "min_tokens": 0, "block_size": 16}


def choices(runtime):
    (state,) = runtime.state._layers.values()
    return [[AXIS_ORDERS[i] for i in sample] for sample in state.values[AXES].tolist()]


def test_every_head_gets_the_order_of_its_pattern():
    layout = TokenLayout(4, 8, 8)
    x = groups(layout, *"WTHTW")
    _, runtime = run(PARO(density=0.1, **ALWAYS).build(MODEL), x, layout, 1)
    # The axis along which a head attends must be the fastest: its groups are then runs of tokens.
    assert [axes[2] for axes in choices(runtime)[0]] == list("WTHTW")


def test_a_few_query_blocks_tell_the_order():
    layout = TokenLayout(4, 8, 8)
    x = groups(layout, *"WTHTW", batch=2)
    for blocks in (1, 3, 15, 16, 99):
        schedule = Schedule(min_tokens=0)
        method = SparseMethod("t", TopK(0.2), LearntAxes(0.07, None, blocks), None, schedule, 16)
        _, runtime = run(method, x, layout, 1)
        assert [[axes[2] for axes in sample] for sample in choices(runtime)] == [list("WTHTW")] * 2


@pytest.mark.parametrize(("text", "position"), [(0, "none"), (16, "first"), (5, "last")])
def test_patterns_that_no_common_order_serves_are_exact(text, position):
    layout = TokenLayout(4, 8, 8, text, position)
    x = groups(layout, "W", "T", "H", batch=2)
    method = PARO(density=0.22 if text else 0.1, **ALWAYS).build(MODEL)
    out, _ = run(method, x, layout, 2)
    exact = dense(*x)[0]
    video = slice(layout.video_start, layout.video_start + layout.video_tokens)
    assert relative_error(out[1][:, video], exact[:, video]).max() < 2e-3
    for axes in AXIS_ORDERS:
        one = SparseMethod(
            "t",
            ObservedMass(method.selector.density),
            AxisPermutation(axes),
            schedule=Schedule(min_tokens=0),
            block_size=16,
        )
        fixed, _ = run(one, x, layout, 2)
        assert relative_error(fixed[1][:, video], exact[:, video]).max() > 0.1


def test_samples_choose_for_themselves():
    layout = TokenLayout(4, 8, 8)
    along_rows, along_time = groups(layout, "W", "T"), groups(layout, "T", "W")
    x = tuple(torch.cat(pair) for pair in zip(along_rows, along_time))
    _, runtime = run(PARO(density=0.1, **ALWAYS).build(MODEL), x, layout, 1)
    first, second = choices(runtime)
    assert [axes[2] for axes in first] == ["W", "T"]
    assert [axes[2] for axes in second] == ["T", "W"]


def test_order_and_mask_are_learnt_again_halfway():
    layout = TokenLayout(4, 8, 8)
    before, after = groups(layout, "W", "W"), groups(layout, "T", "T")
    out, runtime = run(PARO(density=0.1, **ALWAYS).build(MODEL), [before] * 3 + [after] * 3, layout, 6)
    assert observed_steps(runtime) == [0, 3]
    assert [axes[2] for axes in choices(runtime)[0]] == ["T", "T"]
    for step, x in ((1, before), (2, before), (4, after), (5, after)):
        assert relative_error(out[step], dense(*x)[0]).max() < 2e-3
    _, runtime = run(
        PARO(density=0.1, recalibrate=None, **ALWAYS).build(MODEL), [before] * 3 + [after] * 3, layout, 6
    )
    assert observed_steps(runtime) == [0]


def test_a_guard_is_observed_at_its_last_step():
    layout = TokenLayout(4, 8, 8)
    _, runtime = run(PARO(density=0.2, **(ALWAYS | {"dense_steps": 2})).build(MODEL), random(256), layout, 6)
    reasons = [record.dense_reason for record in runtime.records]
    assert reasons == ["dense_step", "dense_step", None, "observed", None, None]
    late = PARO(density=0.2, **(ALWAYS | {"dense_steps": 3})).build(MODEL)
    assert observed_steps(run(late, random(256), layout, 4)[1]) == []  # learnt after halfway already


@pytest.mark.parametrize("selector", [TopK(0.1, "head", "mean_key"), FrameBand(density=0.2)])
def test_learnt_axes_serve_other_selectors(selector):
    layout = TokenLayout(4, 8, 8)
    x = groups(layout, "W", "T")
    schedule = Schedule(min_tokens=0)
    method = SparseMethod("t", selector, LearntAxes(0.1, None), schedule=schedule, block_size=16)
    out, runtime = run(method, x, layout, 2)
    assert densities(runtime) == [pytest.approx(selector.density, rel=0.1)]
    error = relative_error(out[1], dense(*x)[0])
    assert error[0, 1] < 2e-3
    assert error[0, 0] < 2e-3 or isinstance(selector, FrameBand)  # which is made for attention along time


def test_nothing_learnt_is_raster_order_and_a_missing_mask_is_refused():
    layout = TokenLayout(4, 8, 8)
    x = random(256)
    method = PARO(density=0.3, **ALWAYS).build(MODEL)
    context = method.context(layout, Site(0, 0, 4), LayerState(), head_dim=16)
    assert CarriedAxes().order(x[0], x[1], context).q is None
    with pytest.raises(ValueError, match="observed_mass.bits.*observed before"):
        sparse_attention(*x, method=method, context=context)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LearntAxes(0.0),
        lambda: LearntAxes(0.5, 1.5),
        lambda: LearntAxes(0.5, query_blocks=0),
        lambda: ObservedMass(0.5, "column"),
        lambda: ObservedMass(0.5, again=-0.1),
        lambda: ObservedMass(0.5, "head", tier_recall=0.8),
        lambda: PARO(density=None).build(MODEL),
    ],
)
def test_bad_fields_are_refused(make):
    with pytest.raises(ValueError, match="must be|needs|need"):
        make()
