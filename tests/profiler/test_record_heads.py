"""What a recording says of hand-made heads, against direct float64 computations."""

import pytest
import torch
from recorded_runs import (
    BLOCK,
    exact_forced,
    exact_mass,
    exact_weights,
    groups,
    masked_output,
    random,
    recorded,
    settings,
    sums_of,
    token_order,
)

from dit_sparse.kernels import PRECISIONS, block_sparse_attention
from dit_sparse.layout import BlockMap, TokenLayout
from dit_sparse.orderings import AXIS_ORDERS
from dit_sparse.profiler.record_heads import fit_blocks
from dit_sparse.profiler.record_settings import default_templates
from dit_sparse.profiler.recording import PATTERN_CLASSES, Template
from dit_sparse.selectors.spend import spend

LAYOUTS = {
    "none": TokenLayout(4, 8, 8),
    "first": TokenLayout(4, 8, 8, 10, "first"),
    "last": TokenLayout(4, 8, 8, 21, "last"),
    "ragged": TokenLayout(3, 5, 7, 9, "first"),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def steps_of(layout, seed, heads=3, batch=2, steps=2, sharp=3.0):
    return [random(layout.num_tokens, heads, 16, batch, seed=seed + i, sharp=sharp) for i in range(steps)]


@pytest.mark.parametrize("text", ["none", "first", "last"])
def test_planted_heads_get_the_orders_and_names_they_were_planted_with(text):
    layout = TokenLayout(4, 8, 8, 0 if text == "none" else 10, text)
    x = groups(layout, "W", "H", "T", "HW")
    # Enough for the diagonal and the text, too little for a head that its order does not suit.
    found = recorded([[x] * 2], layout, density=0.12)
    names = [AXIS_ORDERS[axes] for axes in found.axes[0, 0]]
    assert names[0][-1] == "W"
    assert names[1][-1] == "H"
    assert names[2][-1] == "T"
    assert names[3][0] == "T"
    errors = found.axes_error[0, 0]
    for head in range(3):
        best, others = errors[head, int(found.axes[0, 0, head])], errors[head]
        assert best == others.min()
        assert best < (1e-6 if text == "none" else 0.005), "text attends to all, which no order helps"
        assert others.max() > 0.01
    classes = [PATTERN_CLASSES[i] for i in found.pattern[0, 0]]
    assert classes[0] == "diagonal"
    assert classes[2] == "multi-diagonal"
    assert classes[3] == "diagonal"
    assert found.error[0, 0, :3].max() < 1e-6, "the masks keep text, and miss nothing"
    assert found.recall[0, 0, :3].min() > 1 - 1e-4


@layouts
def test_masks_of_one_prompt_on_the_next_err_as_computed_directly(layout):
    first, second = steps_of(layout, 0), steps_of(layout, 10)
    found = recorded([first, second], layout)
    energy = [[sum(exact_weights(x, h, slice(None), b)[2].square().sum() for h in range(3)) for b in range(2)]
              for x in second]  # fmt: skip
    forced = exact_forced(layout)
    rows = torch.tensor([float(min(BLOCK, layout.num_tokens - i * BLOCK)) for i in range(len(forced))])
    for head in range(3):
        order = token_order(layout, found.axes[0, 0, head])
        mass = [exact_mass(exact_weights(x, head, order, b)[0]) for x in first for b in range(2)]
        mask = spend(-torch.stack(mass).mean(0).float()[None, None], forced, 0.2, "head")[0, 0]
        errors, recalls = [], []
        for step, x in enumerate(second):
            for b in range(2):
                weights, v, out = exact_weights(x, head, order, b)
                missed = (masked_output(weights, v, mask) - out).square().sum()
                errors.append(missed / energy[step][b])
                recalls.append(((exact_mass(weights) * mask).sum(-1) * rows).sum() / rows.sum())
        assert found.error[0, 0, head, 0].item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-3)
        assert found.recall[0, 0, head, 0].item() == pytest.approx(
            torch.stack(recalls).mean().item(), rel=1e-4
        )
        assert found.density[0, 0, head, 0].item() == pytest.approx(mask.double().mean().item())


@layouts
def test_mass_and_log_sum_exp_are_means_over_all_observed_calls(layout):
    prompts = [steps_of(layout, 0, steps=3), steps_of(layout, 10, steps=3)]
    found = recorded(prompts, layout, settings(((0, 3),)))
    for head in range(3):
        order = token_order(layout, found.axes[0, 0, head])
        observed = [(x, b) for steps in prompts for x in (steps[0], steps[2]) for b in range(2)]
        mass = torch.stack([exact_mass(exact_weights(x, head, order, b)[0]) for x, b in observed]).mean(0)
        torch.testing.assert_close(found.mass[0, 0][head].double(), mass, rtol=2e-3, atol=1e-6)
        torch.testing.assert_close(
            found.mass[0, 0][head].float().sum(-1), torch.ones(len(mass)), rtol=0, atol=1e-3
        )
        lse = torch.stack(
            [
                (x[0][b, :, head].double() @ x[1][b, :, head].double().T * 0.25).logsumexp(-1)
                for x, b in observed
            ]
        )
        expected = torch.stack([lse.mean(-1).mean(), lse.std(-1, correction=0).mean()])
        torch.testing.assert_close(found.lse[0, 0, head].double(), expected, rtol=1e-4, atol=1e-5)


def test_no_mask_is_tried_on_a_call_that_it_was_drawn_from():
    layout = LAYOUTS["none"]
    rows, frames = groups(layout, "W"), groups(layout, "HW", seed=1)
    diagonal = settings(templates=(Template("mask", 1 / 16),), density=1 / 16)
    for same, other in (
        (
            recorded([[rows] * 2] * 2, layout, diagonal),
            recorded([[rows] * 2, [frames] * 2], layout, diagonal),
        ),
        (recorded([[rows] * 2], layout, diagonal), recorded([[rows, frames]], layout, diagonal)),
    ):
        assert same.error.max() < 1e-6
        assert other.axes.item() == same.axes.item(), "orders are those of the first call"
        assert other.error.min() > 0.05, "a mask knew the call that it was tried on"


def test_a_third_prompt_meets_masks_of_the_two_before():
    layout = LAYOUTS["none"]
    x, y = (groups(layout, *axes, seed=i) for i, axes in enumerate((("W",), ("H",))))
    found = recorded([[x] * 2, [y] * 2, [y] * 2], layout, density=0.4, templates=(Template("mask", 0.4),))
    alone = recorded([[x] * 2, [y] * 2], layout, density=0.4, templates=(Template("mask", 0.4),))
    assert found.error.item() < alone.error.item()


@layouts
@pytest.mark.parametrize("limit", [{"head_chunk": 1}, {"head_chunk": 2}, {"memory_bytes": 1}])
def test_chunks_of_heads_change_nothing(layout, limit):
    prompts = [steps_of(layout, 0), steps_of(layout, 10)]
    templates = default_templates((0.1, 0.3))
    whole = recorded(prompts, layout, templates=templates)
    parts = recorded(prompts, layout, templates=templates, **limit)
    for name in ("axes", "pattern", "density", "stability", "lse", "axes_sparse"):
        assert torch.equal(getattr(whole, name), getattr(parts, name)), name
    assert torch.equal(whole.mass[0, 0], parts.mass[0, 0])
    for name in ("error", "recall", "axes_error", "axes_incoherence", "low_bit_error"):
        torch.testing.assert_close(getattr(whole, name), getattr(parts, name), rtol=1e-4, atol=1e-7)


@layouts
def test_templates_are_what_they_say(layout):
    templates = default_templates((0.1, 0.5))
    found = recorded([steps_of(layout, 0), steps_of(layout, 10)], layout, templates=templates)
    forced = exact_forced(layout)
    text_rows = forced.all(-1).double()
    for i, template in enumerate(templates):
        error, density, recall = (x[0, 0, :, i] for x in (found.error, found.density, found.recall))
        if template.kind == "dense":
            assert error.eq(0).all() and density.eq(1).all() and recall.eq(1).all()
        elif template.kind == "skip":
            assert density.tolist() == pytest.approx([text_rows.mean().item()] * 3)
            tokens = text_rows.bool().repeat_interleave(BLOCK)[: layout.num_tokens]
            assert recall.tolist() == pytest.approx([tokens.double().mean().item()] * 3)
            assert error.sum().item() == pytest.approx(1 - tokens.double().mean().item(), abs=0.25)
        else:
            wanted = max(round(template.density * forced.numel()), int(forced.sum()), len(forced))
            # Every row keeps its cheapest pair: few more than asked for.
            assert (density * forced.numel() - wanted).abs().max() <= len(forced)
            assert (recall >= 0).all() and (recall <= 1 + 1e-4).all() and (error > 0).all()
    kinds = [template.kind for template in templates]
    best = found.recall[0, 0, :, kinds.index("dynamic") + 1]
    assert (best >= found.recall[0, 0, :, kinds.index("dynamic")]).all(), "more pairs keep more mass"


def test_errors_of_heads_sum_to_that_of_the_layer():
    layout = LAYOUTS["last"]
    x = steps_of(layout, 0, batch=1)
    found = recorded([x], layout, templates=(Template("skip", 0.0),))
    video = layout.video_tokens // BLOCK * BLOCK
    outs = [torch.stack([exact_weights(step, h, slice(None))[2] for h in range(3)]) for step in x]
    expected = [(out[:, :video].square().sum() / out.square().sum()).item() for out in outs]
    assert found.error.sum().item() == pytest.approx(sum(expected) / 2, rel=1e-4)


def test_errors_of_the_precisions():
    layout = LAYOUTS["last"]
    x = steps_of(layout, 0, batch=1)
    found = recorded([x], layout).low_bit_error[0, 0]
    n = layout.num_tokens
    full = BlockMap.full(1, 3, n, n, (128, 128), x[0][0].device)
    exact = torch.stack([exact_weights(x[0], h, slice(None))[2] for h in range(3)], dim=1)[None]
    for i, precision in enumerate(PRECISIONS):
        if precision == "native":
            assert found[i] == 0
            continue
        low = block_sparse_attention(*x[0], full, impl="reference", precision=precision)
        expected = (low.double() - exact).square().sum() / exact.square().sum()
        assert found[i].item() == pytest.approx(expected.item(), rel=0.02)
    assert found[PRECISIONS.index("int4")] > 10 * found[PRECISIONS.index("int8")]


def test_stability_is_the_overlap_of_the_heaviest_blocks():
    layout = LAYOUTS["none"]
    x, y = groups(layout, "W", "T"), groups(layout, "W", "HW", seed=1)
    still = recorded([[x] * 2] * 2, layout, density=0.0625).stability[0, 0]
    torch.testing.assert_close(still, torch.ones(2, 2))
    moved = recorded([[x, y]], layout, density=0.0625).stability[0, 0]
    assert moved[:, 0].isnan().all(), "one prompt has no other"
    assert moved[0, 1] == 1
    assert moved[1, 1] < 0.7
    other = recorded([[x] * 2, [y] * 2], layout, density=0.0625).stability[0, 0]
    assert other[0].tolist() == [1, 1]
    assert other[1, 0] < 0.7 and other[1, 1] == 1


def test_a_head_of_faint_output_is_skippable():
    layout = LAYOUTS["none"]
    q, k, v = random(layout.num_tokens, 3)
    v = v * torch.tensor([1.0, 1.0, 0.01])[:, None]
    found = recorded([[(q, k, v)] * 2], layout)
    assert [PATTERN_CLASSES[i] for i in found.pattern[0, 0]] == ["global", "global", "skippable"]


def test_blocks_of_another_length_of_text():
    mass = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.2, 0.2, 0.6]])
    assert torch.equal(fit_blocks(mass, 3, 3), mass)
    shorter = fit_blocks(mass, 2, 2)
    torch.testing.assert_close(shorter, torch.tensor([[0.5, 0.5], [0.1, 0.9]]))
    longer = fit_blocks(mass, 4, 5)
    assert torch.equal(longer[:3, :3], mass)
    assert torch.equal(longer[3], longer[2])
    torch.testing.assert_close(longer.sum(-1), torch.ones(4))


def test_prompts_of_different_lengths_of_text_share_a_recording():
    long, short = TokenLayout(3, 4, 8, 37, "last"), TokenLayout(3, 4, 8, 5, "last")
    sums = sums_of([(steps_of(layout, 0, batch=1), layout) for layout in (long, short, long)], settings())
    mass = sums.mass[0, 0]
    assert mass.shape == (3, 9, 9)
    torch.testing.assert_close(mass.sum(-1), torch.full((3, 9), 6.0))
    assert sums.layout == long
    assert sums.tensors["trials"].item() == 4


def test_another_size_is_refused():
    layouts = (LAYOUTS["none"], TokenLayout(2, 8, 8))
    with pytest.raises(ValueError, match=r"one size: this one has \(2, 8, 8\)"):
        sums_of([(steps_of(layout, 0, batch=1), layout) for layout in layouts], settings())
