"""Recipes: what each paper's rule must give on planted heads."""

import dataclasses

import numpy as np
import pytest
import torch
from cost_samples import linear_table
from planted_recording import planted

from dit_sparse.layout import unpack_bits
from dit_sparse.patterns import DENSE, DYNAMIC, MASK, SKIP, WINDOW
from dit_sparse.patterns.file import save_profile
from dit_sparse.profiler.budget import Budget
from dit_sparse.profiler.choose import choose, make_profile
from dit_sparse.profiler.problem import Problem
from dit_sparse.profiler.recipe import register_recipe
from dit_sparse.profiler.recipes import recipe_named, recipes

FOUR = ((2, 4), (4, 6), (6, 8), (8, 10))
TABLE = linear_table(lengths=(320,))
PAPERS = ("adaspa", "moa", "paro", "sparse-vdit", "svoo")
pytestmark = pytest.mark.filterwarnings("ignore:recipe 'moa' has a recording of one length")


def masks_of(table, g, layer, columns):
    return unpack_bits(table.masks[int(table.mask_group[g, layer]), layer], columns)


@pytest.mark.parametrize("name", sorted(recipes()))
@pytest.mark.parametrize("text", [(0, "none"), (20, "last")], ids=lambda t: t[1])
def test_every_recipe_makes_a_profile(name, text, tmp_path):
    recording = planted(
        FOUR, text=text[0], position=text[1], drift=0.1, axes=np.arange(24).reshape(4, 2, 3) % 6
    )
    # Of so few blocks with text more than the paper's density is always kept.
    budget = Budget(density=0.3) if text[0] and name == "adaspa" else recipe_named(name).budget
    header, table = make_profile(recording, budget, name, "command")
    save_profile(tmp_path / "p", header, table)
    assert header.figures.density == pytest.approx(float(table.density.mean()), abs=1e-6)
    assert recipe_named(name).summary.endswith(".")
    if budget is not None:
        assert 0.98 * budget.density <= header.figures.density <= budget.density + 1e-9


def test_recipes_are_listed():
    assert set(PAPERS) | {"quality", "balanced", "fast"} == set(recipes())
    assert all("arXiv" in recipes()[name].source for name in PAPERS)
    with pytest.raises(ValueError, match="recipe 'paro' is registered already"):
        register_recipe("paro", budget=None)(lambda ask: None)


@pytest.mark.parametrize("name", PAPERS)
def test_papers_have_kinds_of_their_own(name):
    with pytest.raises(ValueError, match=f"recipe '{name}' has kinds of its own, got kinds="):
        choose(planted(), 0.3, recipe=name, kinds=("mask",))
    with pytest.raises(ValueError, match="low_bit=True"):
        choose(planted(), 0.3, recipe=name, low_bit=True)


def test_paro_shares_the_masks_of_the_later_half():
    recording = planted(FOUR, drift=0.1)
    table, found = choose(recording, 0.3, recipe="paro")
    assert (table.kind == MASK).all() and table.density.unique().numel() == 1
    assert table.mask_group.tolist() == [[0, 0], [1, 1], [2, 2], [2, 2]]
    assert found.density == pytest.approx(0.3, abs=1 / 400)
    problem = Problem(recording)
    mean = (recording.mass[2, 1][0].float() + recording.mass[3, 1][0].float()) / 2
    kept = masks_of(table, 3, 1, problem.blocks[1])[0]
    assert mean[kept & ~problem.forced].min() >= mean[~kept].max() - 1e-6 or not (~kept).any()


def test_paro_settles_on_the_order_that_serves_the_later_half():
    axes = np.zeros((4, 2, 3))
    axes[3] = 4
    recording = planted(FOUR, drift=0.3, axes=axes)
    errors = recording.axes_error.clone()
    errors[2, ..., 0], errors[2, ..., 4] = 0.1, 0.2
    errors[3, ..., 0], errors[3, ..., 4] = 0.9, 0.1
    errors[2:, ..., 5] = 0.01  # serves best, but nobody recorded mass in it
    recording = dataclasses.replace(recording, axes_error=errors)
    table, _ = choose(recording, 0.3, recipe="paro")
    assert (table.axes[:2] == 0).all() and (table.axes[2:] == 4).all()
    problem = Problem(recording)
    kept = masks_of(table, 2, 0, problem.blocks[1])[0]
    mass = recording.mass[3, 0][0].float()  # the only one in that order
    left_out, own = mass[~kept], mass[kept & ~problem.forced]
    heaviest = torch.zeros_like(kept).scatter_(-1, mass.argmax(-1, keepdim=True), True)
    assert own.numel() and mass[kept & ~problem.forced & ~heaviest].min() >= left_out.max()


def test_paro_meets_other_budgets_with_one_density():
    recording = planted(FOUR)
    table, found = choose(recording, Budget(speedup=2.5), recipe="paro", cost=TABLE)
    assert table.density.unique().numel() == 1 and 2.5 <= found.attention_speedup < 2.55
    table, found = choose(recording, Budget(output_error=0.2), recipe="paro")
    assert table.density.unique().numel() == 1 and 0.19 <= found.output_error <= 0.2
    assert (choose(recording, Budget(output_error=0.0), recipe="paro")[0].kind == DENSE).all()
    with pytest.raises(ValueError, match=r"speedup=30.0 cannot be met by masks alone"):
        choose(recording, Budget(speedup=30.0), recipe="paro", cost=TABLE)


def test_adaspa_rows_are_equal_and_tiers_exchange():
    sharp = np.array([[0.1, 0.1, 9.0, 1.0]])
    recording = planted(layers=1, heads=4, sharp=sharp)
    table, found = choose(recording, 0.2, recipe="adaspa")
    assert found.density == pytest.approx(0.2, abs=1e-6)
    n = Problem(recording).blocks[1]
    for g in range(2):
        kept = masks_of(table, g, 0, n)
        assert (kept.sum(-1).amax(-1) - kept.sum(-1).amin(-1) <= 1).all(), "rows have equal counts, to one"
    free = 20 / 400  # the diagonal
    give, take = 0.2 - (0.2 - free) / 2, 0.2 + (0.2 - free) / 2
    by_head = table.density[0, 0]
    assert by_head[2] == pytest.approx(give, abs=0.005), "the concentrated head gives"
    assert sorted(by_head.tolist())[-1] == pytest.approx(take, abs=0.005)
    assert by_head[:2].max() == by_head.max(), "one of the two diffuse heads takes"
    with pytest.raises(ValueError, match="'adaspa' takes a budget of density, got speedup=2.0"):
        choose(recording, Budget(speedup=2.0), recipe="adaspa", cost=TABLE)


@pytest.mark.parametrize("name", ["adaspa", "paro"])
def test_masks_of_less_than_what_is_always_kept_are_refused(name):
    with pytest.raises(
        ValueError, match=r"density of 0.2 cannot be met: masks always keep .* is 0.2149 here"
    ):
        choose(planted(text=20, position="last"), 0.2, recipe=name)


def test_sparse_vdit_follows_its_rule():
    recording = planted(layers=1, heads=4, text=20, position="last")
    n = Problem(recording).blocks[0]
    places = torch.arange(n)
    near = torch.exp(-(places[:, None] - places).abs().float() * 4)
    stripe = torch.full((n, n), 1e-5)
    stripe[:, 3] = 1.0
    diffuse = torch.full((n, n), 1.0)
    mass = torch.stack([x / x.sum(-1, keepdim=True) for x in (near, stripe, diffuse, diffuse)])
    skip = [t.kind for t in recording.templates].index("skip")
    masks = [i for i, t in enumerate(recording.templates) if t.kind == "mask"]
    error, recall = recording.error.clone(), recording.recall.clone()
    # Missing a tenth of its mass costs a head about a tenth of its energy; head 3 has hardly any.
    recall[..., masks] = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    error[..., masks] = (1 - recall[..., masks]) * torch.tensor([1.0, 1.0, 9.0, 1e-4])[:, None]
    error[..., skip] = torch.tensor([1.0, 1.0, 9.0, 1e-4])
    recording = dataclasses.replace(
        recording, mass={(g, 0): mass.half() for g in range(2)}, error=error, recall=recall
    )
    table, _ = choose(recording, recipe="sparse-vdit")
    assert table.kind[0, 0].tolist() == [MASK, MASK, DENSE, SKIP]
    band, stripes = masks_of(table, 0, 0, n)
    video = slice(0, n - 2)  # text fills the last two blocks
    assert (band[video, video] & ((places[:, None] - places).abs() > 2)[video, video]).sum() == 0
    assert stripes[:, 3].all() and stripes.diagonal().all() and stripes[:, -1].all() and stripes[-1].all()


def test_sparse_vdit_with_a_budget():
    recording = planted(drift=0.2)
    for wanted in (0.2, 0.4):
        _, found = choose(recording, wanted, recipe="sparse-vdit")
        assert 0.99 * wanted <= found.density <= wanted


def test_svoo_gives_layers_their_density_for_all_steps():
    recording = planted(FOUR, layers=3, sharp=np.array([[0.5] * 3, [2.0] * 3, [6.0] * 3]))
    table, found = choose(recording, 0.3, recipe="svoo")
    assert (table.kind == DYNAMIC).all() and 0.295 <= found.density <= 0.3
    by_layer = table.density[0, :, 0]
    assert torch.allclose(table.density, by_layer[None, :, None].expand_as(table.density), atol=0.01)
    assert by_layer[0] > by_layer[1] > by_layer[2]
    sensitivity = torch.tensor([0.01, 0.1, 1.0]).expand(4, 3)
    again, _ = choose(dataclasses.replace(recording, sensitivity=sensitivity), 0.3, recipe="svoo")
    assert torch.equal(again.density, table.density), "by the layers' own error"


def test_moa_extrapolates_spans():
    short, long = planted(seed=1), planted(seed=2, grid=(8, 8, 10))
    with pytest.warns(UserWarning, match="recording of one length"):
        table, _ = choose(short, 0.3, recipe="moa")
    assert (table.constant == 0).all() and set(table.kind.unique().tolist()) <= {WINDOW, DENSE}
    both, found = choose(short, 0.3, recipe="moa", lengths=[long])
    assert torch.equal(both.density, table.density) and found.density <= 0.3
    there, _ = choose(long, 0.3, recipe="moa")
    n, m = 320, 640
    window = both.kind == WINDOW
    # density d - alpha / N + alpha / M on M tokens: through both spans, where alpha lies within its bounds.
    alpha = both.constant.double()
    span, span_there = table.density.double() * n, there.density.double() * m
    exact = ((span_there - 2 * span) / -1).clamp(min=0)
    expected = torch.where(window, torch.minimum(exact, span), torch.zeros_like(exact))
    torch.testing.assert_close(alpha, expected, atol=1e-3, rtol=1e-4)
    assert (alpha > 0).any() and (alpha[window] == 0).any(), (
        "some spans grow less than the sequence, some more"
    )
    inside = window & (exact > 0) & (exact < span)
    predicted = (both.density.double() - alpha / n + alpha / m) * m
    torch.testing.assert_close(predicted[inside], span_there[inside], atol=1e-2, rtol=1e-4)


def test_moa_refuses_lengths_that_do_not_fit():
    with pytest.raises(ValueError, match="another number of tokens than 320, got"):
        choose(planted(), 0.3, recipe="moa", lengths=[planted(seed=1)])
    with pytest.raises(ValueError, match="'moa' takes a budget of density, got speedup"):
        choose(planted(), Budget(speedup=2.0), recipe="moa", cost=TABLE, lengths=[planted(grid=(8, 8, 10))])
    with pytest.raises(ValueError, match="'paro' takes a recording of one length, got 2: use 'moa'"):
        choose(planted(), 0.3, recipe="paro", lengths=[planted(grid=(8, 8, 10))])
