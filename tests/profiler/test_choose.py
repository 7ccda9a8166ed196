"""Choosing for a budget: the right kinds for planted heads, budgets, masks, sharing, the header."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from cost_samples import linear_table
from planted_recording import full_size, planted

import dit_sparse
from dit_sparse.layout import unpack_bits
from dit_sparse.patterns import DENSE, DYNAMIC, KINDS, MASK, RADIAL, SKIP, WINDOW
from dit_sparse.patterns.file import load_profile, save_profile
from dit_sparse.profiler.allocate import allocate
from dit_sparse.profiler.assignment import density, output_error, step_cost
from dit_sparse.profiler.budget import Budget
from dit_sparse.profiler.candidates import candidates
from dit_sparse.profiler.choose import choose, make_profile
from dit_sparse.profiler.masks import HEAVIEST, draw, overlap
from dit_sparse.profiler.problem import Problem
from dit_sparse.selectors.spend import spend

TABLE = linear_table(lengths=(320,), planning={"unpack": 0.01, "map": 0.01, "score": 0.05, "reorder": 0.1})
PLANNING = {"unpack": 0.01, "map": 0.01, "score": 0.05, "reorder": 0.1}


def masks_of(table, g, layer, columns):
    return unpack_bits(table.masks[int(table.mask_group[g, layer]), layer], columns)


def same(a, b):
    return (
        all(
            torch.equal(getattr(a, name), getattr(b, name))
            for name in ("kind", "axes", "density", "constant", "shape", "precision", "mask_group")
        )
        and a.masks.keys() == b.masks.keys()
        and all(torch.equal(a.masks[key], b.masks[key]) for key in a.masks)
    )


@pytest.mark.parametrize(
    ("kind", "index"), [("window", WINDOW), ("radial", RADIAL), ("dynamic", DYNAMIC), ("skip", SKIP)]
)
def test_heads_get_the_kind_that_serves_them(kind, index):
    recording = planted(better=(kind, [1]), sharp=np.full((2, 3), 1.0))
    table, _ = choose(recording, 0.3)
    assert (table.kind[:, :, 1] == index).all()
    assert (table.kind[:, :, [0, 2]] == MASK).all(), "the others are served best by masks"
    window = table.kind == WINDOW
    assert (table.shape[window] > 0).all() and (table.shape[~window] == 0).all()


def test_concentrated_heads_spend_less():
    sharp = np.array([[0.5, 3.0, 8.0]])
    table, _ = choose(planted(layers=1, sharp=sharp), 0.3, kinds=("mask",))
    assert (table.density[:, 0, :2] > table.density[:, 0, 1:]).all()


def test_layers_that_matter_get_more():
    recording = planted(sharp=np.full((2, 3), 2.0))
    sensitivity = torch.tensor([[0.1, 1.0], [1.0, 0.1]])
    table, _ = choose(dataclasses.replace(recording, sensitivity=sensitivity), 0.3)
    mean = table.density.mean(-1)
    assert mean[0, 1] > 1.5 * mean[0, 0] and mean[1, 0] > 1.5 * mean[1, 1]
    alike, _ = choose(dataclasses.replace(recording, sensitivity=sensitivity), 0.3, sensitive=False)
    assert same(alike, choose(dataclasses.replace(recording, sensitivity=torch.ones(2, 2)), 0.3)[0])


@pytest.mark.parametrize("text", [(0, "none"), (20, "last"), (20, "first")], ids=lambda t: t[1])
@pytest.mark.parametrize("wanted", [0.15, 0.25, 0.5, 0.8, 1.0])
def test_density_budgets_are_met(text, wanted):
    groups = ((1, 3), (3, 10))
    recording = planted(groups, text=text[0], position=text[1])
    if wanted == 0.15 and text[0]:
        wanted = 0.25  # forced pairs take more
    table, found = choose(recording, wanted)
    assert found.density <= wanted + 1e-9
    blocks = Problem(recording).blocks[0]
    block_per_head = 1 / blocks**2
    assert found.density >= wanted * 0.99 or found.density >= wanted - block_per_head
    # What the table says is what was counted, by the lengths of the groups.
    by_group = table.density.double().mean((1, 2))
    assert float(by_group @ torch.tensor([2.0, 7.0]).double() / 9) == pytest.approx(found.density, abs=1e-6)


def test_an_error_budget_is_kept_at_least_density():
    recording = planted()
    _, loose = choose(recording, Budget(output_error=0.3), share=None)
    _, tight = choose(recording, Budget(output_error=0.05), share=None)
    for found, limit in ((loose, 0.3), (tight, 0.05)):
        assert 0.99 * limit <= found.output_error <= limit
    assert tight.density > loose.density
    # The two ways to ask agree: as much density gives as little error.
    _, back = choose(recording, tight.density, share=None)
    assert back.output_error == pytest.approx(0.05, rel=0.02)
    _, none = choose(recording, Budget(output_error=0.0))
    assert (none.density, none.output_error) == (1.0, 0.0)


def test_time_budgets():
    recording = planted(axes=np.ones((2, 2, 3)))
    problem = Problem(recording, TABLE)
    dense = problem.time.dense()
    assert dense == pytest.approx(2 * 8.0 * (3 / 4) * 1.0, rel=1e-6)
    _, found = choose(recording, Budget(ms=dense / 2), cost=TABLE)
    assert 2.0 <= found.attention_speedup <= 2.0 * 1.01
    assert found.cost_table == "Planted GPU, 2026-11-23"
    _, faster = choose(recording, Budget(speedup=3.0), cost=TABLE)
    assert 3.0 <= faster.attention_speedup <= 3.0 * 1.01
    assert faster.density < found.density and faster.output_error > found.output_error
    with pytest.raises(ValueError, match=r"a speedup of 40.0 cannot be met: the most by the cost table is"):
        choose(recording, Budget(speedup=40.0), cost=TABLE)
    with pytest.raises(ValueError, match=r"0.1 ms cannot be met: the least by the cost table is"):
        choose(recording, Budget(ms=0.1), cost=TABLE)
    with pytest.raises(ValueError, match=r"budget of speedup=2.0 needs measured times"):
        choose(recording, Budget(speedup=2.0))


def test_predicted_time_adds_up():
    recording = planted(axes=np.ones((2, 2, 3)))
    table, found = choose(recording, 0.3, cost=TABLE, share=None)
    by_head = (0.5 + 8 * table.density.double()) / 4 + (PLANNING["map"] / 4)
    by_head += torch.where(table.kind == DYNAMIC, PLANNING["score"], PLANNING["unpack"]) / 4
    ms = by_head.sum((1, 2)).mean() + 2 * PLANNING["reorder"] * 3 / 4
    assert found.attention_speedup == pytest.approx(2 * 8.0 * 3 / 4 / float(ms), rel=1e-4)


def test_scoring_that_costs_much_turns_time_budgets_away_from_dynamic():
    recording = planted(better=("dynamic", [0, 1, 2]))
    dear = linear_table(lengths=(320,), planning={"score": 30.0})
    free = linear_table(lengths=(320,), planning={})
    kinds = [choose(recording, Budget(speedup=2.0), cost=cost)[0].kind for cost in (dear, free)]
    assert not (kinds[0] == DYNAMIC).any() and (kinds[1] == DYNAMIC).sum() > 6


def test_low_bit():
    recording = planted()
    quick = linear_table(lengths=(320,), precisions=("native", "int8"), factor=0.4)
    plain, before = choose(recording, Budget(speedup=4.0), cost=quick)
    table, found = choose(recording, Budget(speedup=4.0), cost=quick, low_bit=True)
    assert (plain.precision == 0).all() and (table.precision == 1).any()
    assert found.output_error < before.output_error and 4.0 <= found.attention_speedup < 4.2
    # Where rounding costs more than all that it pays for, nothing is rounded.
    coarse = dataclasses.replace(recording, low_bit_error=recording.low_bit_error * 1e6)
    table, found = choose(coarse, Budget(speedup=4.0), cost=quick, low_bit=True)
    assert (table.precision == 0).all()
    assert found.output_error == pytest.approx(before.output_error, rel=0.1)
    for budget, cost in ((Budget(density=0.3), quick), (Budget(output_error=0.1), None)):
        with pytest.raises(ValueError, match="low_bit=True with"):
            choose(recording, budget, cost=cost, low_bit=True)
    _, within = choose(recording, Budget(output_error=0.1), cost=quick, low_bit=True)
    assert within.output_error <= 0.1


def test_masks_hold_the_heaviest_pairs_and_the_forced_ones():
    recording = planted(text=20, position="first", groups=((0, 4),))
    table, _ = choose(recording, 0.4, kinds=("mask",))
    problem = Problem(recording)
    forced, n = problem.forced, problem.blocks[1]
    assert forced[-1].all() and forced[:, -1].all() and forced.diagonal().all(), "text lies last"
    for layer in range(2):
        kept = masks_of(table, 0, layer, n)
        for head in range(3):
            mask, mass = kept[head], recording.mass[0, layer][head].float()
            assert (mask | ~forced).all()
            assert float(table.density[0, layer, head]) == pytest.approx(float(mask.float().mean()))
            # Every row keeps its heaviest pair; beyond these no pair left out is heavier than one kept.
            row = torch.zeros_like(mask).scatter_(-1, mass.argmax(-1, keepdim=True), True)
            assert (mask | ~row).all()
            free = mask & ~forced & ~row
            if free.any() and not mask.all():
                assert mass[~mask].max() <= mass[free].min()


def test_step_groups_share_masks_that_overlap():
    groups = ((2, 4), (4, 8))
    even = {"sharp": np.full((2, 3), 2.0), "groups": groups}
    alike = planted(drift=0.0, **even)
    alike = dataclasses.replace(alike, sensitivity=torch.ones(2, 2))
    table, found = choose(alike, 0.3, kinds=("mask",))
    assert table.mask_group.tolist() == [[0, 0], [0, 0]] and set(table.masks) == {(0, 0), (0, 1)}
    assert torch.equal(table.density[0], table.density[1])
    assert 0.3 - 1 / 400 <= found.density <= 0.3
    own, apart = choose(alike, 0.3, kinds=("mask",), share=None)
    assert own.mask_group.tolist() == [[0, 0], [1, 1]]
    assert found.output_error == pytest.approx(apart.output_error, rel=0.02)
    changing = dataclasses.replace(planted(drift=0.9, **even), sensitivity=torch.ones(2, 2))
    table, _ = choose(changing, 0.3, kinds=("mask",))
    assert table.mask_group.tolist() == [[0, 0], [1, 1]]
    moved = dataclasses.replace(
        alike, axes=torch.tensor([0, 1], dtype=torch.uint8)[:, None, None].expand(2, 2, 3)
    )
    table, _ = choose(moved, 0.3, kinds=("mask",))
    assert table.mask_group.tolist() == [[0, 0], [1, 1]], "masks in other orders are other masks"


def test_shared_masks_are_drawn_from_the_mean_mass():
    recording = dataclasses.replace(
        planted(groups=((0, 1), (1, 4)), layers=1, drift=0.05, sharp=[[2.0, 2.0, 2.0]]),
        sensitivity=torch.ones(2, 1),
    )
    table, _ = choose(recording, 0.3, kinds=("mask",), share=0.3)
    assert table.mask_group.tolist() == [[0], [0]]
    mean = 0.25 * recording.mass[0, 0].float() + 0.75 * recording.mass[1, 0].float()
    problem = Problem(recording)
    for head, kept in enumerate(masks_of(table, 1, 0, problem.blocks[1])):
        expected = spend(-mean[head][None, None], problem.forced, float(table.density[1, 0, head]), "head")
        assert torch.equal(kept, expected[0, 0])


@pytest.mark.parametrize(
    "kinds", [KINDS, ("mask",), ("dense", "window"), ("dynamic", "skip", "dense")], ids=str
)
@pytest.mark.parametrize("seed", range(3))
def test_more_budget_never_more_error(kinds, seed):
    recording = planted(seed=seed, better=("window", [seed]))
    wanted = (0.12, 0.13, 0.15, 0.2, 0.21, 0.3, 0.5, 0.51, 0.7, 0.9)
    if kinds != ("mask",):
        wanted = (*wanted, 1.0)
    errors = [choose(recording, d, kinds=kinds, share=None)[1].output_error for d in wanted]
    assert all(more <= less + 1e-12 for less, more in pairwise(errors))
    assert errors[-1] < errors[0]


def test_more_kinds_never_more_error():
    recording = planted(better=("radial", [2]))
    one, two, all_kinds = (
        choose(recording, 0.25, kinds=kinds, share=None)[1].output_error
        for kinds in (("mask",), ("mask", "radial"), KINDS)
    )
    assert one > two >= all_kinds


@pytest.mark.parametrize("seed", range(4))
def test_the_sweep_is_near_the_integer_program(seed):
    pytest.importorskip("scipy")
    problem = Problem(planted(seed=seed, layers=3, better=("window", [0])))
    offered = candidates(problem)
    budget = Budget(density=0.3)
    best, near = (allocate(problem, offered, budget, solver=solver) for solver in ("exact", "sweep"))
    assert density(problem, best) <= 0.3 + 1e-9 and density(problem, near) <= 0.3 + 1e-9
    # The sweep may stand between two candidates, so it may be better too.
    assert output_error(problem, near) <= output_error(problem, best) * 1.02


def test_full_size():
    problem = Problem(full_size())
    offered = candidates(problem)
    given = allocate(problem, offered, Budget(density=0.25))
    assert 0.25 * (1 - 1e-4) <= density(problem, given) <= 0.25
    # Better than every kind alone at one density for all heads, and within its own error budget as cheap.
    for kind in ("mask", "dynamic"):
        [i] = [i for i in problem.templates(kind) if problem.recording.templates[i].density == 0.3]
        uniform = problem.share @ (problem.sensitivity * problem.error[..., i].sum(-1)).sum(-1)
        assert output_error(problem, given) < 0.2 * uniform
    limit = output_error(problem, given) ** 0.5
    back = allocate(problem, offered, Budget(output_error=limit))
    assert density(problem, back) == pytest.approx(0.25, rel=1e-3)


def test_equal_input_gives_equal_tables():
    recording = planted(drift=0.3, better=("dynamic", [1]))
    assert same(choose(recording, 0.3)[0], choose(recording, 0.3)[0])
    assert not same(choose(recording, 0.3)[0], choose(recording, 0.4)[0])


def test_profiles_can_be_saved(tmp_path):
    recording = planted(text=20, position="last", drift=0.3)
    header, table = make_profile(
        recording, 0.3, "balanced", "dit-sparse profile x", device="Planted GPU", cost=TABLE
    )
    save_profile(tmp_path / "p.safetensors", header, table)
    loaded = load_profile(tmp_path / "p.safetensors")
    assert loaded.header == header and same(loaded.table, table)
    assert header.figures == choose(recording, 0.3, cost=TABLE)[1]
    assert (header.model, header.grid, header.schedule) == (
        recording.model,
        recording.grid,
        recording.schedule,
    )
    assert (header.recipe, header.command, header.device) == (
        "balanced",
        "dit-sparse profile x",
        "Planted GPU",
    )
    assert header.dit_sparse_version == dit_sparse.__version__


def test_skipped_heads_keep_rows_of_text():
    for text, position, rows in ((0, "none", 0.0), (20, "last", 2 / 22)):
        recording = planted(text=text, position=position, better=("skip", [0, 1, 2]))
        table, found = choose(recording, 0.3)
        skipped = table.kind == SKIP
        assert skipped.any() and torch.allclose(table.density[skipped], torch.tensor(rows))
        assert (table.axes[skipped] == 0).all()
        assert found.density <= 0.3


def test_dense_layers_take_the_dense_kernel():
    problem = Problem(planted(axes=np.ones((2, 2, 3))), TABLE)
    offered = candidates(problem, ("dense",))
    given = allocate(problem, offered, Budget(density=1.0))
    assert (given.kind == DENSE).all() and (given.axes == 0).all()
    assert step_cost(problem, given, problem.time) == pytest.approx(problem.time.dense())


def test_masks_can_be_drawn_at_any_number_of_pairs():
    problem = Problem(planted(layers=1))
    mass = problem.recording.mass[0, 0][0].float()
    least, total = int(problem.forced.sum()), problem.total
    drawn = [draw(problem, mass, HEAVIEST, n) for n in (least, least + 1, 100, total - 1, total)]
    assert [int(mask.sum()) for mask in drawn] == [least, least + 1, 100, total - 1, total]
    assert int(draw(problem, mass, HEAVIEST, 1).sum()) == least
    assert overlap(drawn[0][None], drawn[2][None]).item() == pytest.approx(
        int((drawn[0] & drawn[2]).sum()) / int((drawn[0] | drawn[2]).sum())
    )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"budget": 0.01}, r"density of 0.01 cannot be met: the least .* is 0\."),
        ({"budget": 1.5}, r"density must be in \(0, 1\], got 1.5"),
        ({"budget": -1.0}, "density must be a finite number greater than 0, got -1.0"),
        ({"budget": 0.3, "kinds": ("masks",)}, r"kinds must be some of dense, .*, got \['masks'\]"),
        ({"budget": 0.3, "kinds": ()}, "kinds must be some of dense, .*, got none"),
        ({"budget": 0.3, "recipe": "best"}, "unknown recipe 'best': use one of adaspa, balanced, fast"),
        ({"budget": 0.3, "share": 1.5}, r"share must be in \[0, 1\] or None, got 1.5"),
        ({"budget": 0.3, "solver": "magic"}, "solver must be 'sweep' or 'exact', got 'magic'"),
        ({"budget": Budget(output_error=0.0), "kinds": ("window",)}, "output_error of 0.0 cannot be met"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(options, match):
    options = {"kinds": ("mask", "window")} | options if options["budget"] == 0.01 else options
    with pytest.raises(ValueError, match=match):
        choose(planted(), **options)


def test_recordings_that_make_no_sense_are_refused():
    recording = planted()
    wrong = {
        "error": recording.error * torch.nan,
        "sensitivity": -recording.sensitivity,
        "density": recording.density[:, :1],
        "axes": recording.axes[:1],
    }
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=f"{name}|the recording holds"):
            choose(dataclasses.replace(recording, **{name: value}), 0.3)
    without = dataclasses.replace(
        recording,
        templates=recording.templates[:2],
        **{name: getattr(recording, name)[..., :2] for name in ("error", "density", "recall")},
    )
    with pytest.raises(
        ValueError, match="none of the kinds mask, window was recorded: there are dense, skip"
    ):
        choose(without, 0.5, kinds=("mask", "window"))


@pytest.mark.parametrize(
    "given", [{}, {"density": 0.3, "ms": 3.0}, {"ms": float("nan")}, {"speedup": 0.0}], ids=str
)
def test_budgets_are_one_number(given):
    with pytest.raises(ValueError, match=r"exactly one of|must be a finite number greater than 0"):
        Budget(**given)
