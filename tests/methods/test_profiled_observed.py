"""Heads of a profile that learn in the run: as mosaic where all do, and each by itself beside other kinds."""

import pytest
import torch
from pattern_problems import forced_of, layout_of
from planted import dense, densities, generation, groups, observed_steps, random, relative_error, run
from profile_samples import built, profile_of
from test_mosaic import LAYOUT, NAMES, joined, tiled
from test_profiled import SHAPE, TEXTS, random_mask, text_rows

from dit_sparse.engine import sparse_attention
from dit_sparse.layout import Site
from dit_sparse.methods import ModelInfo, Mosaic
from dit_sparse.orderings import AXIS_ORDERS, CHOICE, axis_order, block_tiles, with_text
from dit_sparse.orderings.grid import tile_order
from dit_sparse.runtime import Runtime

texts = pytest.mark.parametrize(("text", "position"), TEXTS)
HERE = ModelInfo("wan", 1, 16)
SAME = {"min_tokens": 0, "block_size": 16}


def observed(*density):
    return [("observed", "THW", d) for d in density]


def profile(rows, layout=LAYOUT, correction="residual", **options):
    """``rows[group]`` are the heads of the one layer."""
    return profile_of([[row] for row in rows], layout, correction=correction, **options)


def state_of(runtime):
    (state,) = runtime.state._layers.values()
    return state


@texts
@pytest.mark.parametrize("correction", ["residual", "pooled", "none"])
@pytest.mark.parametrize("density", [0.2, 0.3, 1 / 3])
def test_a_layer_of_observed_heads_is_mosaic(text, position, correction, density):
    layout = layout_of((3, 6, 7), text, position)
    x = [random(layout.num_tokens, 3, 16, batch=2, sharp=3.0, seed=step) for step in range(8)]
    rows = [observed(density, density, density)] * 3
    own = built(profile(rows, layout, correction, groups=((2, 3), (3, 6), (6, 8))))
    mosaic = Mosaic(density=density, dense_steps=2, correction=correction, **SAME).build(HERE)
    out, runtime = run(own, x, layout, 8)
    expected, as_mosaic = run(mosaic, x, layout, 8)
    assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))
    assert [(r.dense_reason, float(r.density)) for r in runtime.records] == [
        (r.dense_reason, float(r.density)) for r in as_mosaic.records
    ]
    assert observed_steps(runtime) == [4]


def test_without_a_guard_the_first_sparse_step_is_observed():
    x = [random(256, 2, 16, sharp=3.0, seed=step) for step in range(6)]
    for guard in (0, 4):
        own = built(profile([observed(0.3, 0.3)], groups=((0, 6),)), dense_steps=guard)
        mosaic = Mosaic(density=0.3, dense_steps=guard, **SAME).build(HERE)
        out, runtime = run(own, x, LAYOUT, 6)
        expected, as_mosaic = run(mosaic, x, LAYOUT, 6)
        assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))
        assert observed_steps(runtime) == observed_steps(as_mosaic) == ([0, 3] if guard == 0 else [])


def test_heads_that_attend_within_tiles_and_runs_get_these():
    """Beside a window, a mask and a head in an axis order of the profile."""
    x = joined(tiled(LAYOUT, (4, 2, 2)), groups(LAYOUT, "H", "W", "T"), tiled(LAYOUT, (1, 4, 4)))
    mask = torch.eye(16, dtype=torch.bool)[None]
    heads = [*observed(0.1), ("mask", "TWH", 1 / 16), *observed(0.1), ("mask", "HWT", 1 / 16), *observed(0.1)]
    made = profile([heads], masks={(0, 0): mask.repeat(2, 1, 1)}, groups=((1, 4),))
    out, runtime = run(built(made), x, LAYOUT, 4)
    first, _, third, _, fifth = [NAMES[i] for i in state_of(runtime).values[CHOICE][0].tolist()]
    assert (first, fifth) == ((4, 2, 2), (1, 4, 4)) and third[-1] == "W"
    exact = dense(*x)[0]
    assert relative_error(out[1], exact).max() < 2e-3 and relative_error(out[3], exact).max() < 2e-3
    alone, _ = run(built(made, correction="none"), x, LAYOUT, 4)
    assert relative_error(alone[1], exact).max() < 2e-3, "the right blocks need no correction"


def compensated(q, k, v, pairs, block=16):
    """Float64 attention of one head under a mask, skipped blocks through their means; ``[N, D]`` each."""
    n = len(q)
    logits = q @ k.T * q.shape[-1] ** -0.5
    kept = pairs.repeat_interleave(block, 0)[:n].repeat_interleave(block, 1)[:, :n]
    means_k, means_v = (torch.stack([part.mean(0) for part in t.split(block)]) for t in (k, v))
    lengths = torch.tensor([len(part) for part in k.split(block)]).double()
    pooled = q @ means_k.T * q.shape[-1] ** -0.5 + lengths.log()
    pooled = pooled.masked_fill(pairs.repeat_interleave(block, 0)[:n], -torch.inf)
    weights = torch.cat([logits.masked_fill(~kept, -torch.inf), pooled], dim=1).softmax(dim=-1)
    return weights @ torch.cat([v, means_v])


@texts
def test_a_mixed_layer_is_what_its_heads_are_alone(text, position):
    """Observed heads have the shapes and pairs of mosaic on them alone, the others their own; the output is
    attention under these masks with means for the rest."""
    layout = layout_of((3, 6, 7), text, position)
    stored = random_mask(layout, 1)
    heads = [
        *observed(0.35),
        ("dense", "THW", 1.0),
        ("mask", "WTH", 0.5),
        ("skip", "HWT", 0.0),
        *observed(0.55),
    ]
    own = built(profile([heads], layout, "pooled", masks={(0, 0): stored}, groups=((1, 4),)))
    x = random(layout.num_tokens, 5, 16, batch=2, sharp=3.0)
    _, runtime = run(own, x, layout, 4)
    learning = [0, 4]
    two = tuple(part[:, :, learning] for part in x)
    mosaic = Mosaic(density=0.45, correction="pooled", dense_steps=1, **SAME).build(HERE)
    _, alone = run(mosaic, two, layout, 4)
    plans = []
    for method, made, inputs in ((own, runtime, x), (mosaic, alone, two)):
        context = method.context(layout, Site(0, 1, 4), state_of(made), head_dim=16)
        plans.append(sparse_attention(*inputs, method=method, context=context))
    (out, plan), (_, theirs) = plans
    pairs, forced = plan.block_map.to_mask(), forced_of(layout, reordered=True)
    assert torch.equal(pairs[:, learning], theirs.block_map.to_mask())
    choice = state_of(runtime).values[CHOICE][:, learning]
    assert torch.equal(choice, state_of(alone).values[CHOICE])
    assert pairs[:, 1].all()
    assert torch.equal(pairs[:, 2], (stored[0] | forced).expand(pairs[:, 2].shape))
    assert torch.equal(pairs[:, 3], text_rows(layout).expand(pairs[:, 3].shape))
    tiles = block_tiles(16, layout.grid)
    for sample in range(2):
        for head in range(5):
            if head in learning:
                index = int(choice[sample, learning.index(head)])
                video = (
                    axis_order(layout.grid, AXIS_ORDERS[index], x[0].device)
                    if index < 6
                    else tile_order(layout.grid, tiles[index - 6], x[0].device)
                )
            else:
                video = axis_order(layout.grid, heads[head][1], x[0].device)
            order = with_text(video, layout)
            q, k, v = (part[sample, order, head].double() for part in x)
            expected = compensated(q, k, v, pairs[sample, head])
            torch.testing.assert_close(out[sample, order, head].double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("density", [(0.1, 0.3, 0.5), (0.2, 0.2, 0.2), (0.05, 0.9, 0.4)])
def test_observed_heads_share_the_sum_of_their_densities(density):
    x = joined(groups(LAYOUT, "W"), random(256, 3, 64))
    heads = [*observed(*density), ("window", "THW", 0.25, SHAPE)]
    _, runtime = run(built(profile([heads], groups=((1, 4),))), x, LAYOUT, 4)
    expected = (sum(density) + 0.25) / 4
    assert densities(runtime) == [pytest.approx(expected, rel=0.02)] * 2
    by_head = runtime.records[1].heads
    assert by_head[:3].mean() == pytest.approx(sum(density) / 3, rel=0.02)
    assert by_head[0] < 0.9 * by_head[1], "a head of sharp rows leaves the rest to the others"


def test_step_groups_spend_their_own_budgets_on_what_was_learnt_once():
    """Group 1 has another head that learns, group 2 other densities; all is learnt at steps 1 and 4."""
    x = random(256, 2, 16, sharp=3.0)
    window = ("window", "HWT", 0.25, SHAPE)
    rows = [[*observed(0.2), window], observed(0.2, 0.4), observed(0.6, 0.4)]
    made = profile(rows, correction="pooled", groups=((2, 3), (3, 5), (5, 8)))
    out, runtime = run(built(made), x, LAYOUT, 8)
    assert observed_steps(runtime) == [4]
    assert densities(runtime) == pytest.approx([0.225, 0.3, 0.5, 0.5, 0.5], abs=0.005)
    assert torch.equal(out[5], out[7]) and not torch.equal(out[2], out[3])
    # What a head keeps in a group does not depend on what the others do in other groups.
    same = built(profile([rows[1]] * 3, correction="pooled", groups=((2, 3), (3, 5), (5, 8))))
    assert torch.equal(run(same, x, LAYOUT, 8)[0][3], out[3])


def test_nothing_is_observed_for_heads_that_need_it_no_more():
    x, window = random(256, 2, 16), ("window", "HWT", 0.25, SHAPE)
    early = profile([observed(0.2, 0.2), [window] * 2], correction="pooled", groups=((2, 4), (4, 8)))
    _, runtime = run(built(early), x, LAYOUT, 8)
    assert observed_steps(runtime) == [], "no step is made dense"
    late = profile([[window] * 2, observed(0.2, 0.2)], correction="pooled", groups=((2, 4), (4, 8)))
    _, runtime = run(built(late), x, LAYOUT, 8)
    assert observed_steps(runtime) == [4]
    after = profile([[window] * 2, observed(0.2, 0.2)], correction="pooled", groups=((2, 6), (6, 8)))
    _, runtime = run(built(after), x, LAYOUT, 8)
    assert observed_steps(runtime) == [4] and densities(runtime)[-1] == pytest.approx(0.2, abs=0.01)
    never = profile([[window] * 2], correction="pooled", groups=((2, 8),))
    method = built(never)
    _, runtime = run(method, x, LAYOUT, 8)
    assert observed_steps(runtime) == [] and not method.share_branches


def test_branches_share_what_is_learnt_and_keep_residuals_apart():
    inputs = {"conditional": random(256, 2, 16), "unconditional": random(256, 2, 16, seed=9)}
    heads = [*observed(0.3), ("window", "HWT", 0.3, SHAPE)]
    made = profile([heads], groups=((1, 4),))
    runtime, pooled = Runtime(built(made)), Runtime(built(made, correction="pooled"))
    out, without = (generation(x, inputs, LAYOUT, 4) for x in (runtime, pooled))
    assert [r.site.step for r in pooled.records if r.dense_reason == "observed"] == [2], "one branch learns"
    assert observed_steps(runtime) == [2, 2]
    state = state_of(runtime)
    assert {f"residual.{branch}" for branch in inputs} < state.values.keys()
    alone = generation(Runtime(built(made)), {"unconditional": inputs["unconditional"]}, LAYOUT, 4)
    assert not torch.equal(alone["unconditional", 1], out["unconditional", 1]), "the first branch decides"
    assert torch.equal(
        generation(Runtime(built(made)), {"conditional": inputs["conditional"]}, LAYOUT, 4)["conditional", 1],
        out["conditional", 1],
    )
    exact = dense(*inputs["unconditional"])[0]
    errors = [relative_error(x["unconditional", 1], exact) for x in (out, without)]
    assert errors[0].max() < 0.9 * errors[1].min()


def test_a_new_generation_learns_anew():
    first, second = groups(LAYOUT, "W", "T"), joined(tiled(LAYOUT, (4, 2, 2)), groups(LAYOUT, "H"))
    method = built(profile([observed(0.1, 0.1)], groups=((1, 4),)))
    expected, fresh = run(method, second, LAYOUT, 4)
    runtime = Runtime(method)
    run(method, first, LAYOUT, 4, runtime)
    runtime.new_generation()
    assert runtime.state.nbytes == 0
    again, _ = run(method, second, LAYOUT, 4, runtime)
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
    # Also where the loop starts anew without telling.
    again, _ = run(method, first, LAYOUT, 4, runtime)
    assert all(torch.equal(a, b) for a, b in zip(again, run(method, first, LAYOUT, 4)[0], strict=True))
    assert fresh.state.nbytes > 0


def test_the_correction_is_the_profiles_own_unless_another_is_given():
    made = profile([observed(0.2, 0.2)], groups=((1, 4),))
    names = {name: type(built(made, **given).correction).__name__ for name, given in (
        ("own", {}), ("none", {"correction": "none"}), ("pooled", {"correction": "pooled"}))}  # fmt: skip
    assert names == {"own": "LowRankResidual", "none": "NoneType", "pooled": "PooledCompensation"}
    plain = profile([[("window", "HWT", 0.25, SHAPE)] * 2], correction="none", groups=((1, 4),))
    assert built(plain).correction is None
    assert type(built(plain, correction="residual").correction).__name__ == "LowRankResidual"


def test_density_one_is_dense():
    x = random(256, 2, 16)
    out, runtime = run(built(profile([observed(1.0, 1.0)], groups=((1, 4),))), x, LAYOUT, 4)
    assert densities(runtime) == [1.0] * 2
    torch.testing.assert_close(out[3].double(), dense(*x)[0], rtol=1e-3, atol=1e-4)


def test_another_grid_is_followed_by_the_densities():
    layout, other = layout_of((4, 8, 8)), layout_of((5, 10, 12))
    made = profile([observed(0.5, 0.3)], layout, groups=((1, 4),), constant=40.0)
    x = random(other.num_tokens, 2, 16, sharp=3.0)
    out, runtime = run(built(made, allow_resample=True), x, other, 8)
    expected = 0.4 - 40 / layout.num_tokens + 40 / other.num_tokens
    assert densities(runtime) == [pytest.approx(expected, abs=0.005)] * 5
    assert observed_steps(runtime) == [4]
    mosaic = Mosaic(density=round(expected, 7), dense_steps=2, **SAME).build(HERE)
    assert all(torch.equal(a, b) for a, b in zip(out, run(mosaic, x, other, 8)[0], strict=True))
