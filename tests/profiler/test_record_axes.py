"""PARO's scores against their definitions, and names of hand-made masses."""

import pytest
import torch
from recorded_runs import random

from dit_sparse.profiler.pattern_classes import pattern_classes
from dit_sparse.profiler.record_axes import NEARLY_EMPTY, TINY, paro_scores
from dit_sparse.profiler.recording import PATTERN_CLASSES


@pytest.mark.parametrize(
    ("queries", "keys", "block"), [(48, 64, (16, 16)), (21, 53, (8, 16)), (5, 7, (16, 16)), (32, 37, (32, 5))]
)
def test_scores_are_their_definitions(queries, keys, block):
    found = set()
    for sharp in (2.0, 8.0, 20.0):
        q, k, _ = random(keys, heads=2, batch=2, sharp=sharp)
        q, scale = q[:, :queries], 0.3
        logits = torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double()) * scale
        weights, lse = logits.softmax(-1), logits.logsumexp(-1)
        sparse, incoherence = paro_scores(q, k, lse.float(), block, scale)
        for b in range(2):
            for h in range(2):
                rows = weights[b, h].split(block[0])
                blocks = [part for row in rows for part in row.split(block[1], dim=1)]
                empty = [float((part < TINY).double().mean() >= NEARLY_EMPTY) for part in blocks]
                peaks = [float(part.max() / part.mean()) for part in blocks]
                assert sparse[b, h].item() == pytest.approx(sum(empty) / len(empty))
                assert incoherence[b, h].item() == pytest.approx(sum(peaks) / len(peaks), rel=1e-3)
                found.add(sparse[b, h].item())
    assert len(found) > 1 or keys < 16, "a score that is the same everywhere tests nothing"


def test_even_attention_is_coherent_and_not_sparse():
    q, k = torch.zeros(1, 32, 1, 4), torch.zeros(1, 64, 1, 4)
    sparse, incoherence = paro_scores(q, k, torch.full((1, 1, 32), 64.0).log(), (16, 16), 0.5)
    assert sparse.item() == 0
    assert incoherence.item() == pytest.approx(1)


def named(mass, near=None, strength=1.0):
    n = mass.shape[-1]
    near = torch.zeros(n, n, dtype=torch.bool) if near is None else near
    return PATTERN_CLASSES[pattern_classes(mass[None].float(), near, torch.tensor([strength]))[0]]


def planted(kept, background=0.1):
    """Mass in the kept pairs, all rows alike, and a share of it everywhere."""
    n = kept.shape[-1]
    rows = kept.float() / kept.float().sum(-1, keepdim=True).clamp(min=1)
    return (1 - background) * rows + background / n


@pytest.mark.parametrize("n", [30, 40, 41])
def test_masses_have_the_names_they_were_made_for(n):
    place = torch.arange(n)
    offset = place - place[:, None]
    frame = n // 4
    assert named(planted(offset == 0)) == "diagonal"
    assert named(planted(offset.abs() <= n // 20)) == "diagonal"
    assert named(planted(offset % frame == 0)) == "multi-diagonal"
    assert named(planted((offset == frame) | (offset == -frame))) == "multi-diagonal"
    columns = torch.zeros(n, n, dtype=torch.bool)
    columns[:, [1, n - 2]] = True
    assert named(planted(columns)) == "vertical"
    assert named(torch.ones(n, n)) == "global"
    assert named(torch.rand(n, n, generator=torch.Generator().manual_seed(0))) == "global"
    assert named(planted(offset == 0), strength=0.01) == "skippable"
    assert named(planted(offset == 0), strength=0.2) == "diagonal"


def test_a_neighbourhood_that_is_no_band_is_local():
    """8 x 8 blocks that see those around them."""
    n, side = 64, 8
    y, x = torch.arange(n) // side, torch.arange(n) % side
    distance = torch.maximum((y - y[:, None]).abs(), (x - x[:, None]).abs())
    assert named(planted(distance <= 2, 0.0), distance <= 2) == "local"


def test_heads_are_named_apart():
    n = 20
    eye, even = torch.eye(n), torch.ones(n, n)
    found = pattern_classes(torch.stack([eye, even, eye]), eye.bool(), torch.tensor([1.0, 1.9, 0.01]))
    assert [PATTERN_CLASSES[i] for i in found] == ["diagonal", "global", "skippable"]
    assert found.dtype == torch.uint8
