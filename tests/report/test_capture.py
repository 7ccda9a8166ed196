"""Captured calls are the model's own, and their figures are what the definitions say."""

import pytest
import torch
from tiny import FAMILIES, run

from dit_sparse.corrections import PooledCompensation
from dit_sparse.engine import SparseMethod
from dit_sparse.methods import ModelInfo, make_method
from dit_sparse.report.capture import capture_calls, figures_by_layer
from dit_sparse.schedule import Schedule
from dit_sparse.selectors import TopK

families = pytest.mark.parametrize("family", FAMILIES)


def captured(family="wan", steps=(1,)):
    make, inputs = FAMILIES[family]
    pipe, call = make(), {key: value for key, value in inputs().items() if key != "output_type"}
    before = run(pipe, inputs())
    calls = capture_calls(pipe, call, seed=0, steps=steps)
    assert torch.equal(run(pipe, inputs()), before), "the pipeline is not as it was"
    return calls


def exact(call):
    q, k, v = (x.transpose(1, 2).double() for x in (call.q, call.k, call.v))
    logits = q @ k.mT * call.scale
    return logits, (logits.softmax(-1) @ v).transpose(1, 2)


def composed(density, correction=None, guard=0.9):
    schedule = Schedule(guard, min_tokens=10_000)
    return SparseMethod(
        "t", TopK(density, "head", "mean_key"), correction=correction, schedule=schedule, block_size=16
    )


@families
def test_calls_are_one_branch_of_the_asked_steps(family):
    calls = captured(family, (1, 3))
    assert [(call.site.step, call.site.layer) for call in calls] == [(1, 0), (1, 1), (3, 0), (3, 1)]
    assert {call.site.branch for call in calls} == {"batched" if family == "cogvideox" else "conditional"}
    for call in calls:
        assert call.q.shape[1] == call.layout.num_tokens
        logits, out = exact(call)
        torch.testing.assert_close(call.out.double(), out, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(call.lse.double(), logits.logsumexp(-1), rtol=1e-4, atol=1e-5)
    assert not torch.equal(calls[0].q, calls[2].q)


@pytest.mark.parametrize("correction", [None, PooledCompensation()])
def test_figures_are_their_definitions(correction):
    calls = captured()
    for call, found in zip(calls, figures_by_layer(composed(0.4, correction), calls), strict=True):
        logits, out = exact(call)
        n = call.layout.num_tokens
        block = torch.arange(n) // 16
        mean_keys = torch.stack([call.k[:, block == i].mean(1) for i in range(block[-1] + 1)], 1)
        sizes = block.bincount().float()
        share = (torch.einsum("bnhd,bjhd->bhnj", call.q, mean_keys) * call.scale + sizes.log()).softmax(-1)
        mass = torch.stack([share[:, :, block == i].mean(2) for i in range(len(sizes))], 2)
        first = torch.eye(len(sizes), dtype=torch.bool).expand_as(mass).clone()
        mass = mass.masked_fill(first.scatter_(-1, mass.argmax(-1, keepdim=True), True), torch.inf)
        kept = torch.zeros_like(mass, dtype=torch.bool).flatten(2)
        kept.scatter_(-1, mass.flatten(2).topk(round(0.4 * kept.shape[-1])).indices, True)
        tokens = kept.view_as(mass)[:, :, block][..., block]
        recall = (logits.softmax(-1) * tokens).sum(-1).mean()
        assert found.recall == pytest.approx(recall.item(), rel=1e-4)
        assert found.density == pytest.approx(kept.float().mean().item())
        if correction is None:
            sparse = (logits.masked_fill(~tokens, -torch.inf).softmax(-1)) @ call.v.transpose(1, 2).double()
            error = (sparse.transpose(1, 2) - out).norm() / out.norm()
            assert found.error == pytest.approx(error.item(), rel=1e-3)
    assert [figure.layer for figure in figures_by_layer(composed(0.4), calls)] == [0, 1]


@families
def test_everything_kept_errs_by_nothing(family):
    for figure in figures_by_layer(composed(1.0), captured(family)):
        assert figure.error < 1e-4
        assert figure.recall == pytest.approx(1.0, abs=1e-4)
        assert figure.density == 1.0


def test_earlier_steps_are_there_to_learn_from():
    """AdaSpa's mask is that of the step it observed; with one step alone it observes the step it serves."""
    method = make_method("adaspa", density=0.3, block_size=16).build(ModelInfo("wan", 2, 16))
    calls = captured(steps=(1, 2))
    learnt = figures_by_layer(method, calls)
    fresh = figures_by_layer(method, calls[2:])
    assert [figure.layer for figure in learnt] == [figure.layer for figure in fresh] == [0, 1]
    for old, new in zip(learnt, fresh):
        assert old.density == pytest.approx(0.3, abs=0.05)
        assert old.density == pytest.approx(new.density, abs=0.03)
        assert old.recall < new.recall + 1e-6, "a mask of the same step captures the most"
    assert any(old.recall < new.recall - 1e-4 for old, new in zip(learnt, fresh))


def test_clusters_are_measured_too():
    method = make_method("svg_ear", density=0.4, execution="clusters").build(ModelInfo("wan", 2, 16))
    for figure in figures_by_layer(method, captured()):
        assert figure.density == pytest.approx(0.4, rel=0.15)
        assert 0.0 < figure.error < 1.0
        assert 0.0 < figure.recall < 1.0
