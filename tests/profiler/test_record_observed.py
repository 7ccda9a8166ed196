"""Observed heads in a recording: what was learnt at one call, tried on a later one of the same run."""

import pytest
import torch
from recorded_runs import dense, generation, groups, random, recorded, run, settings, sums_of
from test_record_heads import LAYOUTS, layouts, steps_of
from tiny import FAMILIES

from dit_sparse.corrections import LowRankResidual, PooledCompensation
from dit_sparse.engine import SparseMethod
from dit_sparse.layout import TokenLayout
from dit_sparse.orderings import LearntShapes
from dit_sparse.profiler.choose import make_profile
from dit_sparse.profiler.record import record
from dit_sparse.profiler.record_observer import LEARNT, Recorder
from dit_sparse.profiler.record_settings import RecordSettings, default_templates
from dit_sparse.profiler.recording import Template
from dit_sparse.runtime import Runtime
from dit_sparse.schedule import Schedule
from dit_sparse.selectors import ObservedError

OBSERVED = (Template("observed", 0.1), Template("observed", 0.3))


def as_computed(first, second, layout, density, rank):
    """Squared error of every head and sample of the second call, relative to the layer, and what was kept, of
    the composition that learns at the first call; float64 ``[B, H]``."""
    correction = LowRankResidual(rank, again=None) if rank else PooledCompensation()
    parts = (ObservedError(density, "head"), LearntShapes(0.2, None), correction)
    method = SparseMethod("t", *parts, Schedule(min_tokens=0), block_size=16)
    out, runtime = run(method, [first, second], layout, 2)
    exact = dense(*second)[0]
    energy = exact.square().sum(dim=(1, 2, 3))
    error = (out[1].double() - exact).square().sum(dim=(1, 3)) / energy[:, None]
    return error, runtime.records[1].heads.double()


@layouts
@pytest.mark.parametrize("rank", [0, 8])
def test_errors_are_those_of_learning_at_the_first_call_and_attending_at_the_later_ones(layout, rank):
    prompts = [steps_of(layout, seed, steps=3) for seed in (0, 10)]
    found = recorded(prompts, layout, settings(((0, 3),), templates=OBSERVED, observed=3, residual_rank=rank))
    for i, template in enumerate(OBSERVED):
        tries = [
            as_computed(x[0], x[step], layout, template.density, rank) for x in prompts for step in (1, 2)
        ]
        error = torch.stack([error for error, _ in tries]).mean(dim=(0, 1))
        kept = torch.stack([kept for _, kept in tries]).mean(dim=0)
        torch.testing.assert_close(found.error[0, 0, :, i].double(), error, rtol=1e-3, atol=1e-9)
        torch.testing.assert_close(found.density[0, 0, :, i].double(), kept, rtol=1e-5, atol=1e-6)
    recall = found.recall[0, 0]
    assert (recall[:, 1] >= recall[:, 0]).all() and (recall > 0).all() and (recall < 1.001).all()


def test_no_head_is_tried_on_the_call_that_it_learnt_from():
    layout = LAYOUTS["none"]
    rows, columns = groups(layout, "W"), groups(layout, "T", seed=1)
    chosen = settings(templates=(Template("observed", 1 / 16),), density=1 / 16)
    same, other = (recorded([[rows, x]], layout, chosen).error.item() for x in (rows, columns))
    assert same < 1e-6
    assert other > 0.05, "what was kept knew the call that it was tried on"


def test_step_groups_and_prompts_learn_apart():
    layout = LAYOUTS["none"]
    rows, columns = groups(layout, "W"), groups(layout, "T", seed=1)
    chosen = settings(((0, 2), (2, 4)), templates=(Template("observed", 1 / 4),), density=1 / 4)
    found = recorded([[rows] * 2 + [columns] * 2, [columns] * 2 + [rows] * 2], layout, chosen)
    assert found.error.max() < 1e-6


def test_branches_learn_apart_and_what_they_learn_is_small():
    layout = LAYOUTS["none"]
    inputs = {"conditional": groups(layout, "W", "T"), "unconditional": groups(layout, "T", "W")}
    chosen = settings(templates=(Template("observed", 1 / 16), Template("observed", 1 / 8)), density=1 / 16)
    recorder = Recorder(chosen, "transformer", False, None, lambda site: None)
    runtime = Runtime(SparseMethod("r", recorder, schedule=Schedule(2, min_tokens=0), block_size=16))
    generation(runtime, inputs, layout)
    assert recorder.sums.tensors["later"].item() == 2
    assert recorder.sums.tensors["error"].max() < 1e-5
    for state in runtime.state._layers.values():
        _, drawn = state.values[LEARNT]
        for choice, bits, lacks in drawn:
            assert (choice.dtype, bits.dtype, bits.device.type) == (torch.uint8, torch.uint8, "cpu")
            assert bits.shape == (1, 2, 2, 16, 2), "a bit for every density and pair of blocks"
            for levels, directions in lacks:
                assert (levels.dtype, levels.shape) == (torch.int8, (1, 256, 2, 8))
                assert directions.shape == (1, 2, 8, 64) and levels.device.type == "cpu"


def test_they_are_recorded_beside_the_others_without_changing_them():
    layout = LAYOUTS["last"]
    prompts = [steps_of(layout, 0), steps_of(layout, 10)]
    few = default_templates((0.1, 0.3), observed=False)
    alone, both = (recorded(prompts, layout, templates=t) for t in (few, (*OBSERVED, *few)))
    for name in ("error", "density", "recall"):
        assert torch.equal(getattr(alone, name), getattr(both, name)[..., 2:]), name
    assert both.error.isfinite().all()


def test_every_group_needs_a_later_call():
    for chosen in ({"groups": ((0, 1), (1, 4))}, {"groups": ((0, 4),), "observed": 1}):
        with pytest.raises(ValueError, match=r"groups \[\(0, \d\)\] have one observed step only.*observed=2"):
            RecordSettings(**chosen)
        assert RecordSettings(**chosen, templates=default_templates(observed=False)).templates
    with pytest.raises(ValueError, match="residual_rank must be at least 0, got -1"):
        RecordSettings(((0, 2),), residual_rank=-1)
    with pytest.raises(ValueError, match="density of a 'observed' template"):
        RecordSettings(((0, 2),), templates=(Template("observed", 0.0),))


def test_texts_of_other_lengths_do_not_mix():
    long, short = TokenLayout(3, 4, 8, 37, "last"), TokenLayout(3, 4, 8, 5, "last")
    prompts = [([*random_steps(layout)], layout) for layout in (long, short)]
    sums = sums_of(prompts, settings(templates=OBSERVED))
    assert sums.tensors["later"].item() == 2 and sums.tensors["error"].isfinite().all()


def random_steps(layout):
    return (random(layout.num_tokens, 3, 16, seed=seed, sharp=3.0) for seed in (0, 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_recorded_with_observed_heads_and_followed(family, tmp_path):
    pipe, inputs = FAMILIES[family][0](), FAMILIES[family][1]()
    chosen = settings(((1, 4),), templates=(*OBSERVED, Template("mask", 0.3)), sensitivity=False)
    found = record(pipe, [inputs], seeds=[0], work_dir=tmp_path, settings=chosen)
    assert found.error.isfinite().all() and (found.error > 0).all()
    wanted = 0.7  # text takes half of the pairs
    header, table = make_profile(found, wanted, kinds=("observed",), command="c")
    assert header.correction == "residual" and (table.kind == 6).all()
    assert table.density.mean().item() == pytest.approx(wanted, rel=0.1)


def test_a_residual_takes_away_what_stays():
    """Keys and values change from step to step by little: what was lacking at the first lacks at the next."""
    layout = LAYOUTS["none"]
    x, other = steps_of(layout, 0)
    moved = tuple(a + 0.03 * b for a, b in zip(x, other, strict=True))
    with_it, without = (
        recorded([[x, moved]], layout, settings(templates=OBSERVED, residual_rank=rank)) for rank in (8, 0)
    )
    assert (with_it.error < 0.5 * without.error).all()
