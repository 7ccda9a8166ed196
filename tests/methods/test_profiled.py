"""A profile is followed to the block: every kind of head, orders, step groups, precision, other runs."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_profiles import LAYOUTS, make_header, make_table
from pattern_problems import forced_of, layout_of, mask_of, planned, random_qkv
from planted import dense, densities, random, relative_error, run
from profile_samples import AT_ONCE, built, checked, profile_of, with_facts
from test_pattern_contract import Watched

from dit_sparse.engine import SparseMethod, sparse_attention
from dit_sparse.layout import Site, unpack_bits
from dit_sparse.methods import list_methods
from dit_sparse.orderings import AXIS_ORDERS, AxisPermutation, axis_order, with_text
from dit_sparse.patterns import (
    DENSE,
    DYNAMIC,
    KINDS,
    MASK,
    RADIAL,
    SKIP,
    WINDOW,
    Profile,
    ProfileError,
    resample,
)
from dit_sparse.runtime import Runtime
from dit_sparse.schedule import Schedule
from dit_sparse.selectors import RadialBand, TopK, Window
from dit_sparse.state import LayerState

TEXTS = [(0, "none"), (9, "first"), (21, "last")]
texts = pytest.mark.parametrize(("text", "position"), TEXTS)
SHAPE = (0.5, 0.4, 1.0)
SELECTORS = {
    "window": Window(SHAPE, 0.4),
    "radial": RadialBand(0.35),
    "dynamic": TopK(0.3, "head", "mean_key"),
}


def random_mask(layout, heads, seed=0, block=16):
    blocks = -(-layout.num_tokens // block)
    return torch.rand(heads, blocks, blocks, generator=torch.Generator().manual_seed(seed)) < 0.3


def text_rows(layout, block=16):
    """Bool ``[nQ, 1]``; text lies last."""
    ends = (torch.arange(-(-layout.num_tokens // block)) + 1) * block
    return ((ends > layout.video_tokens) & (layout.text_tokens > 0))[:, None]


def one_of_each(layout):
    """A layer with a head of every kind, and one more that is dynamic."""
    mask = random_mask(layout, 1)
    heads = [
        ("dense", "THW", 1.0),
        ("skip", "HWT", 0.0),
        ("mask", "WTH", 0.5),
        ("window", "TWH", 0.4, SHAPE),
        ("radial", "WHT", 0.35),
        ("dynamic", "HTW", 0.3),
        ("dynamic", "THW", 0.6),
    ]
    return profile_of([[heads]], layout, masks={(0, 0): mask}), mask[0]


@texts
def test_every_kind_computes_what_it_says(text, position):
    layout = layout_of((3, 6, 7), text, position)
    profile, stored = one_of_each(layout)
    qkv = random_qkv(layout, batch=2, heads=7)
    mask = mask_of(built(profile), layout, qkv)
    forced = forced_of(layout, reordered=True)
    assert mask[:, 0].all()
    assert torch.equal(mask[:, 1], text_rows(layout).expand(mask[:, 1].shape))
    assert torch.equal(mask[:, 2], (stored | forced).expand(mask[:, 2].shape))
    for head, kind in ((3, "window"), (4, "radial"), (5, "dynamic")):
        axes = AXIS_ORDERS[int(profile.table.axes[0, 0, head])]
        alone = SparseMethod(kind, SELECTORS[kind], AxisPermutation(axes), block_size=16)
        assert torch.equal(mask[:, head], mask_of(alone, layout, qkv)[:, head]), kind
    assert mask[:, 6].sum() == 2 * max(round(0.6 * forced.numel()), int(forced.sum()))


@texts
def test_the_output_is_attention_under_the_mask_of_every_head_in_its_order(text, position):
    layout = layout_of((3, 6, 7), text, position)
    profile, _ = one_of_each(layout)
    q, k, v = random_qkv(layout, batch=2, heads=7)
    out, plan = planned(built(profile), layout, (q, k, v))
    blocks = plan.block_map.to_mask()
    for head in range(7):
        axes = AXIS_ORDERS[int(profile.table.axes[0, 0, head])]
        order = with_text(axis_order(layout.grid, axes, q.device), layout)
        pairs = blocks[:, head].repeat_interleave(16, 1).repeat_interleave(16, 2)
        pairs = pairs[:, : layout.num_tokens, : layout.num_tokens]
        back = order.argsort()
        pairs = pairs[:, back][:, :, back]
        logits = torch.einsum("bnd,bmd->bnm", q[:, :, head].double(), k[:, :, head].double()) * 8**-0.5
        weights = logits.masked_fill(~pairs, -torch.inf).softmax(-1).nan_to_num(nan=0.0)
        torch.testing.assert_close(
            out[:, :, head].double(), weights @ v[:, :, head].double(), rtol=1e-4, atol=1e-5
        )


@settings(max_examples=15)
@given(layout=LAYOUTS, seed=st.integers(0, 999), heads=st.integers(1, 5), block=st.sampled_from([8, 16, 24]))
def test_heads_have_the_density_of_the_table(layout, seed, heads, block):
    header = make_header(layout, ((0, 4),), 1, heads, (block, block))
    profile = Profile(header, make_table(header, seed, AT_ONCE))
    table = replace(profile.table, precision=torch.zeros_like(profile.table.precision))
    profile = checked(replace(profile, table=table))
    _, plan = planned(built(profile), layout, heads=heads, batch=2)
    mask, forced = plan.block_map.to_mask(), forced_of(layout, True, block)
    kinds, wanted = table.kind[0, 0].tolist(), table.density[0, 0].tolist()
    stored = iter(table.masks.get((0, 0), ()))
    for head, kept in enumerate(mask.sum(dim=(0, 2, 3)).tolist()):
        if kinds[head] == DENSE:
            expected = forced.numel()
        elif kinds[head] == SKIP:
            expected = int(text_rows(layout, block).sum()) * forced.shape[1]
        elif kinds[head] == MASK:
            expected = int((unpack_bits(next(stored), forced.shape[1]) | forced).sum())
        else:
            assert kinds[head] in (WINDOW, RADIAL, DYNAMIC)
            expected = max(round(wanted[head] * forced.numel()), int(forced.sum()))
        assert kept == 2 * expected, KINDS[kinds[head]]


@pytest.mark.parametrize("kind", ["dense", "window", "radial", "dynamic"])
@texts
def test_density_one_is_dense(kind, text, position):
    layout = layout_of((3, 5, 7), text, position)
    heads = [(kind, axes, 1.0, SHAPE if kind == "window" else (0.0, 0.0, 0.0)) for axes in ("WHT", "THW")]
    qkv = random_qkv(layout, batch=2)
    out, plan = planned(built(profile_of([[heads]], layout)), layout, qkv)
    assert plan.density == 1.0
    torch.testing.assert_close(out.double(), dense(*qkv)[0], rtol=1e-4, atol=1e-5)


def test_layers_of_dense_heads_alone_run_stock_unless_they_are_of_low_precision():
    layout = layout_of((3, 5, 7))
    rows = [[[("dense", "WHT", 1.0)] * 3]]
    x = random(layout.num_tokens)
    out, runtime = run(built(profile_of(rows, layout)), x, layout, 4)
    assert [record.dense_reason for record in runtime.records] == ["dense_layer"] * 4
    assert torch.equal(out[3], dense(*x)[0].to(out[3].dtype))
    low, runtime = run(built(profile_of(rows, layout, precision=[["int8"]])), x, layout, 4)
    assert [record.dense_reason for record in runtime.records] == [None] * 4
    assert 0 < relative_error(low[3], out[3]).max() < 0.02


def test_samples_of_a_batch_and_branches_are_alike():
    layout = layout_of((3, 6, 7), 9, "first")
    profile, _ = one_of_each(layout)
    method, qkv = built(profile), random_qkv(layout, batch=3, heads=7)
    together, plan = planned(method, layout, qkv)
    for i in range(3):
        alone, one = planned(method, layout, [x[i : i + 1] for x in qkv])
        assert torch.equal(plan.block_map.to_mask()[i : i + 1], one.block_map.to_mask())
        torch.testing.assert_close(together[i : i + 1], alone)
    runtime = Runtime(method)
    for branch in ("conditional", "unconditional"):
        site = Site(0, 0, 4, branch)
        context = method.context(layout, site, runtime.state.layer(site), head_dim=8)
        out, _ = sparse_attention(*qkv, method=method, context=context)
        torch.testing.assert_close(out, together)


def test_step_groups_change_at_their_steps():
    layout = layout_of((4, 8, 8))
    mask = random_mask(layout, 2)
    forced = forced_of(layout, True)
    rows = [
        [[("window", "THW", 0.5, SHAPE)] * 2],
        [[("mask", "WHT", 0.3)] * 2],
        [[("window", "HWT", 0.25, SHAPE), ("dynamic", "TWH", 0.75)]],
    ]
    profile = profile_of(rows, layout, masks={(1, 0): mask}, groups=((2, 3), (3, 6), (6, 8)))
    x = random(layout.num_tokens, heads=2)
    out, runtime = run(built(profile), x, layout, 8)
    assert [record.dense_reason for record in runtime.records] == ["dense_step"] * 2 + [None] * 6
    masked = (mask | forced).float().mean().item()
    assert densities(runtime) == pytest.approx([0.5, masked, masked, masked, 0.5, 0.5])
    assert torch.equal(out[3], out[5])
    assert not torch.equal(out[2], out[3]) and not torch.equal(out[5], out[6])
    fewer, runtime = run(built(profile, allow_resample=True), x, layout, 4)
    assert [record.dense_reason for record in runtime.records] == ["dense_step"] + [None] * 3
    assert torch.equal(fewer[2], out[3]) and torch.equal(fewer[3], out[6])


def test_an_own_guard_takes_the_place_of_the_profiles():
    layout = layout_of((4, 8, 8))
    profile = profile_of([[[("window", "THW", 0.5, SHAPE)] * 2]], layout, groups=((2, 8),))
    x = random(layout.num_tokens, heads=2)
    for fields, dense_steps, first in (
        ({}, [0, 1], 2),
        ({"dense_steps": 0}, [], 0),
        ({"dense_steps": 0.5}, [0, 1, 2, 3], 4),
        ({"dense_steps": [0, 7]}, [0, 7], 1),
        ({"dense_layers": [0]}, list(range(8)), 2),
        ({"min_tokens": 9999}, list(range(8)), 2),
    ):
        method = built(profile, **fields)
        _, runtime = run(method, x, layout, 8)
        assert [r.site.step for r in runtime.records if r.dense_reason] == dense_steps, fields
        assert method.schedule.first_sparse_step(8) == method.schedule.first_sparse_step(None) == first


@texts
def test_planning_reads_nothing_back_after_the_first_call_of_a_group(text, position):
    layout = layout_of((3, 6, 7), text, position)
    profile, _ = one_of_each(layout)
    method, state, x = built(profile), LayerState(), random_qkv(layout, heads=7)
    watched = replace(method, ordering=Watched(method.ordering), selector=Watched(method.selector))

    def call(method, step):
        context = method.context(layout, Site(0, step, 4), state, head_dim=8)
        return sparse_attention(*x, method=method, context=context)[0]

    first = call(method, 0)
    assert torch.equal(call(watched, 1), first)
    # What is carried: the maps of all heads as bits, their axes, the dynamic heads and their pairs.
    blocks = -(-layout.num_tokens // 16)
    assert state.nbytes == 7 * blocks * -(-blocks // 8) + 8 * (7 + 2 + 2)


def test_a_common_order_is_not_spelt_out_for_every_head():
    for text, position in TEXTS:
        layout = layout_of((3, 6, 7), text, position)
        qkv = random_qkv(layout)
        plans = {}
        for axes in ("THW", "WHT"):
            rows = [[[("window", axes, 0.4, SHAPE)] * 2]]
            plans[axes] = planned(built(profile_of(rows, layout)), layout, qkv)[1]
        assert plans["WHT"].q_order.shape == (layout.num_tokens,)
        assert (plans["THW"].q_order is None) == (position != "first")
        apart = profile_of([[[("window", "THW", 0.4, SHAPE), ("window", "WHT", 0.4, SHAPE)]]], layout)
        plan = planned(built(apart), layout, qkv)[1]
        for head, axes in enumerate(("THW", "WHT")):
            assert torch.equal(plan.block_map.to_mask()[:, head], plans[axes].block_map.to_mask()[:, head])


def test_precision_is_that_of_the_layer_and_step_group():
    layout = layout_of((4, 8, 8))
    rows = [[[("window", "THW", 0.5, SHAPE)] * 2] * 2] * 2
    names = [["native", "int8"], ["int4", "native"]]
    profile = profile_of(rows, layout, precision=names, groups=((0, 2), (2, 4)))
    method, x = built(profile), random(layout.num_tokens, heads=2, dim=8)
    assert method.precisions == ("int4", "int8", "native")
    native = built(profile_of(rows, layout, groups=((0, 2), (2, 4))))

    def out(method, layer, step):
        context = method.context(layout, Site(layer, step, 4), LayerState(), head_dim=8)
        return sparse_attention(*x, method=method, context=context)[0]

    for layer in range(2):
        for step in range(4):
            name = names[step // 2][layer]
            expected = out(replace(native, precision=name), layer, step)
            assert torch.equal(out(method, layer, step), expected), (layer, step)
            assert torch.equal(expected, out(native, layer, step)) == (name == "native")


@texts
def test_texts_of_other_lengths_change_nothing_for_the_video(text, position):
    layout = layout_of((3, 6, 7), text, position)
    profile, _ = one_of_each(layout)
    video = layout.video_tokens // 16  # whole blocks
    fixed = slice(0, 5)
    own = mask_of(built(profile), layout, heads=7)[:, fixed, :video, :video]
    for other in (0, 40):
        changed = layout_of(layout.grid, other, "last" if position == "none" else position)
        method = built(profile)
        assert method.schedule.dense_reason(Site(0, 0, 4), changed, 1) is None
        mask = mask_of(method, changed, heads=7)
        assert torch.equal(mask[:, [0, 2], :video, :video], own[:, [0, 2]])
        assert (mask | ~text_rows(changed)).all()
        kept = (mask | forced_of(changed, True)).equal(mask)
        assert kept or not mask[:, 1].any(dim=-1).all()  # the skipped head alone lacks forced pairs


def test_another_grid_is_followed_as_the_resampled_file_would_be():
    layout, other = layout_of((3, 6, 7), 9, "first"), layout_of((5, 7, 9), 9, "first")
    profile, _ = one_of_each(layout)
    carried = resample(profile, other, (16, 16))
    qkv = random_qkv(other, heads=7)
    mask = mask_of(built(profile, allow_resample=True), other, qkv)
    assert torch.equal(mask, mask_of(built(carried), other, qkv))
    assert torch.equal(mask[0, 2], unpack_bits(carried.table.masks[0, 0][0], mask.shape[-1]))


def test_constants_move_the_density_with_the_grid():
    layout, other = layout_of((3, 6, 7)), layout_of((5, 10, 12))
    profile = profile_of([[[("dynamic", "THW", 0.5), ("window", "THW", 0.5, SHAPE)]]], layout, constant=40.0)
    mask = mask_of(built(profile, allow_resample=True), other)
    expected = 0.5 - 40 / layout.num_tokens + 40 / other.num_tokens
    pairs = mask.shape[-1] ** 2
    assert (mask.sum(dim=(2, 3))[0] - expected * pairs).abs().max() <= 1


@pytest.mark.parametrize("name", ["pooled", "reshape", "reshape_residual"])
def test_corrections_work_on_top(name):
    layout = layout_of((4, 8, 8))
    rows = [[[("window", "HWT", 0.3, SHAPE), ("skip", "THW", 0.0), ("dynamic", "WHT", 0.3)]]]
    profile = profile_of(rows, layout, groups=((1, 4),))
    x = random(layout.num_tokens)
    exact = dense(*x)[0]
    bare, _ = run(built(profile), x, layout, 4)
    corrected, runtime = run(built(profile, correction=name), x, layout, 4)
    assert len(densities(runtime)) == 3
    better = relative_error(corrected[3], exact) < relative_error(bare[3], exact)
    assert better.all() if name != "reshape" else torch.isfinite(corrected[3]).all()


def scheduled(profile, name="UniPCMultistepScheduler", **fields):
    scheduler = type(name, (), {})()
    return replace(built(profile, **fields).schedule, scheduler=lambda: scheduler)


@pytest.mark.parametrize(
    ("site", "layout", "scheduler", "hint"),
    [
        (
            Site(0, 0, 4),
            layout_of((4, 6, 7)),
            None,
            r"grid.*received \(4, 6, 7\).*expected \(3, 6, 7\).*allow_resample",
        ),
        (Site(0, 0, 50), None, None, "num_steps: received 50.*expected 4.*allow_resample"),
        (Site(0, 0, 4), None, "DDIMScheduler", "received 'DDIMScheduler'.*expected 'UniPC.*allow_resample"),
        (Site(0, 4, None), None, None, "has 4 steps, this is step 4.*reset"),
    ],
    ids=["grid", "steps", "scheduler", "unknown length"],
)
def test_other_runs_are_refused_or_carried_over(site, layout, scheduler, hint):
    own = layout_of((3, 6, 7))
    profile = profile_of([[[("window", "THW", 0.5, SHAPE)] * 2]], own)
    names = [scheduler] if scheduler else []
    assert scheduled(profile).dense_reason(Site(0, 3, 4), own, 1) is None
    with pytest.raises(ProfileError, match=hint):
        scheduled(profile, *names).dense_reason(site, layout or own, 1)
    assert scheduled(profile, *names, allow_resample=True).dense_reason(site, layout or own, 1) is None


def test_blocks_that_are_not_square_are_refused():
    profile = profile_of([[[("window", "THW", 0.5, SHAPE)] * 2]], layout_of((3, 6, 7)))
    with pytest.raises(ProfileError, match="blocks of 16 queries and 32 keys"):
        built(with_facts(profile, grid={"block_size": (16, 32)}))


def test_it_is_no_method_by_name():
    assert "profile" not in list_methods()
    assert isinstance(built(profile_of([[[("dense", "THW", 1.0)]]], layout_of((2, 2, 2)))).schedule, Schedule)


def test_heads_of_several_budgets_have_their_own():
    layout = layout_of((3, 6, 7))
    qkv = random_qkv(layout, batch=2, heads=4)
    for wanted in ((0.5, 0.25, 0.5, 0.75), (0.5, 0.5, 0.5, 0.5), (0.25, 0.5, 0.5, 0.75)):
        rows = [[[("dynamic", "THW", density) for density in wanted]]]
        mask = mask_of(built(profile_of(rows, layout)), layout, qkv)
        for head, density in enumerate(wanted):
            alone = SparseMethod("t", TopK(density, "head", "mean_key"), block_size=16)
            assert torch.equal(mask[:, head], mask_of(alone, layout, qkv)[:, head]), (wanted, head)
