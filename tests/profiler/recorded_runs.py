"""Recordings of hand-made attention, and of tiny pipelines."""

import sys
from pathlib import Path

import torch

# The hand-made attention is that of the methods' tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))
from planted import dense, generation, groups, random, run

from dit_sparse.engine import SparseMethod
from dit_sparse.orderings import AXIS_ORDERS, axis_order, with_text
from dit_sparse.patterns import Calibration, ModelFacts, ScheduleFacts
from dit_sparse.profiler.record_observer import Recorder
from dit_sparse.profiler.record_settings import RecordSettings
from dit_sparse.profiler.record_sums import recording_of
from dit_sparse.profiler.recording import Template
from dit_sparse.schedule import Schedule

__all__ = ["dense", "generation", "groups", "random", "run"]  # handed on

CPU = torch.device("cpu")
MASKS = (Template("mask", 0.2),)
BLOCK = 16


def settings(groups=((0, 2),), **fields):
    return RecordSettings(groups, **{"block_size": BLOCK, "templates": MASKS} | fields)


def sums_of(prompts, chosen):
    """What is summed up of one layer over prompts, each a list of q, k, v by step, and its layout."""
    steps, sums = chosen.groups[-1][1], None
    for x, layout in prompts:
        recorder = Recorder(chosen, "transformer", len(prompts) > 1, sums, lambda site: None)
        dense = Schedule(steps, min_tokens=0)
        run(SparseMethod("r", recorder, schedule=dense, block_size=chosen.block_size), x, layout, steps)
        recorder.end_prompt()
        sums = recorder.sums
    return sums


def recorded(prompts, layout, chosen=None, **fields):
    """The recording of one layer over prompts of one layout."""
    chosen = chosen or settings(**fields)
    sums = sums_of([(x, layout) for x in prompts], chosen)
    model = ModelFacts(
        name="t",
        transformer="T",
        family="wan",
        config_sha256="0" * 64,
        layers=1,
        heads=sums.sizes[2],
        head_dim=sums.head_dim,
    )
    schedule = ScheduleFacts(scheduler="S", num_steps=chosen.groups[-1][1], groups=chosen.groups)
    calibration = Calibration(prompts=("",) * len(prompts), seeds=tuple(range(len(prompts))))
    return recording_of(sums, model, schedule, calibration, chosen.templates)


def token_order(layout, axes):
    """Of all tokens ``[N]`` for an index into AXIS_ORDERS."""
    return with_text(axis_order(layout.grid, AXIS_ORDERS[int(axes)], CPU), layout)


def exact_weights(x, head, order, sample=0):
    """Attention weights of a head with tokens in an order, float64 ``[N, N]``, and its values and output."""
    q, k, v = (part[sample, order, head].double() for part in x)
    weights = (q @ k.T * q.shape[-1] ** -0.5).softmax(dim=-1)
    return weights, v, weights @ v


def exact_mass(weights, block=BLOCK):
    """Mean over queries, sum over keys, float64 ``[nQ, nK]``, ragged blocks included."""
    rows = [part.mean(dim=0) for part in weights.split(block, dim=0)]
    return torch.stack([torch.stack([part.sum() for part in row.split(block)]) for row in rows])


def exact_forced(layout, block=BLOCK):
    """Blocks of text, and the diagonal, video first: bool ``[nQ, nK]``."""
    count = -(-layout.num_tokens // block)
    forced = torch.eye(count, dtype=torch.bool)
    if layout.text_tokens:
        first = layout.video_tokens // block
        forced[first:] = True
        forced[:, first:] = True
    return forced


def masked_output(weights, v, mask, block=BLOCK):
    """Attention of the pairs that a block mask keeps; zeros for rows without any."""
    n = len(weights)
    kept = mask.repeat_interleave(block, 0)[:n].repeat_interleave(block, 1)[:, :n]
    weights = weights * kept
    return weights @ v / weights.sum(dim=-1, keepdim=True).clamp(min=1e-300)
