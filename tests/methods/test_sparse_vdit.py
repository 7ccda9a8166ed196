"""Sparse-vDiT: heads whose mode is known get it, and a budget is spent where it lowers the error most."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import SHARP, dense, densities, groups, observed_steps, random, relative_error, run

from dit_sparse.engine import SparseMethod, sparse_attention
from dit_sparse.layout import Site, TokenLayout, unpack_bits
from dit_sparse.methods import ModelInfo, SparseVDiT
from dit_sparse.orderings import AXES, AXIS_ORDERS, CarriedAxes, Raster
from dit_sparse.schedule import Schedule
from dit_sparse.selectors import HeadModes
from dit_sparse.selectors.allocation import allocate
from dit_sparse.selectors.modes import BITS, MODE, MODES
from dit_sparse.state import LayerState

MODEL = ModelInfo("wan", 1, 64)
ALWAYS = {"dense_steps": 0, "min_tokens": 0, "block_size": 16}
LAYOUT = TokenLayout(4, 8, 8)


def five_heads(layout=LAYOUT, batch=1):
    """A head for every mode: rows, time, two hot keys, an output of nothing, scattered single keys."""
    q, k, v = groups(layout, "W", "T", "W", "W", "W", batch=batch)
    video = slice(layout.video_start, layout.video_start + layout.video_tokens)
    generator = torch.Generator().manual_seed(3)
    hot = torch.zeros(layout.video_tokens, 64)
    hot[[50, 70], 0] = SHARP  # two keys that everyone attends to, in blocks 3 and 4
    q[:, video, 2], k[:, video, 2] = SHARP * torch.eye(64)[0], hot
    v[:, :, 3] *= 1e-3
    codes = SHARP * 0.25 * torch.randn(layout.video_tokens, 64, generator=generator)
    q[:, video, 4] = codes
    k[:, video, 4] = codes[torch.randperm(layout.video_tokens, generator=generator)]
    return q, k, v


def state_of(runtime):
    (state,) = runtime.state._layers.values()
    return state.values


def modes_of(runtime):
    return [[MODES[i] for i in sample] for sample in state_of(runtime)[MODE].tolist()]


EXPECTED = ["diagonal", "multi-diagonal", "stripes", "skip", "full"]


@pytest.mark.parametrize(("text", "position"), [(0, "none"), (16, "first"), (16, "last")])
def test_every_head_gets_its_mode(text, position):
    layout = TokenLayout(4, 8, 8, text, position)
    x = five_heads(layout, batch=2)
    method = SparseVDiT(limit=0.4, widths=(0.125, 0.3), **ALWAYS).build(MODEL)
    out, runtime = run(method, x, layout, 2)
    assert modes_of(runtime) == [EXPECTED] * 2
    axes = state_of(runtime)[AXES].tolist()
    assert [[AXIS_ORDERS[i] for i in sample] for sample in axes] == [["THW", "HWT", "THW", "THW", "THW"]] * 2
    exact = dense(*x)[0]
    video = slice(layout.video_start, layout.video_start + layout.video_tokens)
    error = relative_error(out[1][:, video], exact[:, video])
    assert error[:, [0, 1, 2, 4]].max() < 2e-3
    mask = unpack_bits(state_of(runtime)[BITS], 16 + text // 16)
    assert mask[:, 4].all()
    if not text:
        assert out[1][:, :, 3].eq(0).all() and not mask[:, 3].any()
        assert mask[:, 2, :, 3:5].all(), "the hot blocks are the stripes"
        # Own blocks suffice for the diagonals; two stripes need the wider of the two widths.
        assert mask[:, :3].sum((-1, -2)).tolist() == [[16, 16, 77]] * 2
    else:  # rows of text are computed also where the rest is skipped
        rows = out[1][:, layout.text_start : layout.text_start + text, 3]
        torch.testing.assert_close(
            rows.double(), exact[:, layout.text_start : layout.text_start + text, 3], rtol=1e-4, atol=1e-6
        )
        # Wherever the text is, it comes last in the heads' orders.
        assert mask[:, 3, 16].all() and not mask[:, 3, :16].any()
        assert mask[:, :3, :, 16].all() and mask[:, :3, 16].all()


def test_stripes_are_found_by_a_sample_of_the_queries(monkeypatch):
    monkeypatch.setattr("dit_sparse.selectors.modes.STRIPE_QUERIES", 40)
    _, runtime = run(
        SparseVDiT(limit=0.4, widths=(0.125, 0.3), **ALWAYS).build(MODEL), five_heads(), LAYOUT, 2
    )
    assert modes_of(runtime) == [EXPECTED]
    assert unpack_bits(state_of(runtime)[BITS], 16)[:, 2, :, 3:5].all()


def test_with_a_budget_the_heads_that_need_it_get_it():
    x = five_heads()
    for density in (0.15, 0.3):
        _, runtime = run(SparseVDiT(density=density, **ALWAYS).build(MODEL), x, LAYOUT, 2)
        assert densities(runtime) == [pytest.approx(density, rel=0.02)]
        mask = unpack_bits(state_of(runtime)[BITS], 16)[0].float().mean((-1, -2))
        assert mask[4] == mask.max(), "scattered keys need most"
        assert mask[3] == mask.min(), "no output needs least"
    # What is served well by little stays there, and the scattered head is full.
    assert (mask[:3] <= 0.3).all() and mask[4] == 1.0


def test_modes_are_chosen_once_after_the_guard():
    x = random(256, dim=64)
    method = SparseVDiT(density=0.3, **(ALWAYS | {"dense_steps": 2})).build(MODEL)
    _, runtime = run(method, x, LAYOUT, 6)
    assert [r.dense_reason for r in runtime.records] == ["dense_step"] * 2 + [None] * 4
    assert observed_steps(run(SparseVDiT(density=0.3, **ALWAYS).build(MODEL), x, LAYOUT, 6)[1]) == [0]


def test_the_rule_of_the_paper():
    """argmin of error + trade * cost; full where that is above the limit."""
    error = torch.tensor([[[1.0, 0.5, 0.1, 0.0], [0.1, 0.09, 0.08, 0.0], [3.0, 2.0, 1.5, 0.0]]])
    sizes = torch.tensor([0, 16, 64, 256])
    for trade, limit, expected in (
        (0.5, 1.0, [64, 0, 256]),
        (4.0, 9.0, [16, 0, 16]),
        (0.5, 2.0, [64, 0, 64]),
    ):
        modes = HeadModes(trade=trade, limit=limit)
        loss = error[0, :, :3] + trade * sizes[:3] / 256
        brute = [256 if row.min() > limit else int(sizes[row.argmin()]) for row in loss]
        assert modes._counts(error, sizes)[0].tolist() == brute == expected
    dear = HeadModes(trade=0.5, cost=lambda density: (density > 0) * 2.0)  # any work costs more than it gains
    assert dear._counts(error, sizes)[0].tolist() == [0, 0, 256]


def corners(error, sizes):
    """Levels of one head on the lower convex hull of (size, error)."""
    return [
        b
        for b in range(len(sizes))
        if not any(
            error[b] * (sizes[c] - sizes[a])
            >= error[a] * (sizes[c] - sizes[b]) + error[c] * (sizes[b] - sizes[a])
            for a in range(b)
            for c in range(b + 1, len(sizes))
        )
    ]


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_allocation_meets_every_budget_and_is_optimal_at_the_corners(seed, heads):
    generator = torch.Generator().manual_seed(seed)
    sizes = [0, 8, 16, 40, 100]
    error = torch.rand(1, heads, 5, generator=generator)
    error[..., -1] = 0
    allowed = [{sizes[i] for i in corners(row, sizes)} for row in error[0].tolist()]
    optimal = 0
    for budget in range(100 * heads + 1):
        counts = allocate(error, torch.tensor(sizes) / 100, torch.tensor(sizes), budget / (100 * heads))
        counts = counts[0].tolist()
        assert sum(counts) == budget
        between = [h for h in range(heads) if counts[h] not in allowed[h]]
        assert len(between) <= 1
        if between:
            continue
        optimal += 1
        spent = sum(float(error[0, h, sizes.index(n)]) for h, n in enumerate(counts))
        levels = itertools.product(range(5), repeat=heads)
        affordable = (choice for choice in levels if sum(sizes[i] for i in choice) <= budget)
        assert spent <= min(sum(float(error[0, h, i]) for h, i in enumerate(c)) for c in affordable) + 1e-6
    assert optimal >= 2, "nothing and everything are corners at least"


def test_allocation_with_equal_levels_and_a_flat_cost():
    error = torch.tensor([[[1.0, 0.4, 0.4, 0.0], [1.0, 0.9, 0.9, 0.0]]])
    sizes = torch.tensor([0, 10, 10, 100])
    counts = allocate(error, sizes / 100, sizes, 0.05)
    assert counts.tolist() == [[10, 0]]
    flat = allocate(error, torch.tensor([0.0, 0.5, 0.5, 0.5]), sizes, 0.5)
    assert torch.isfinite(flat.double()).all() and flat.sum() == 100


def test_modes_need_their_ordering_and_their_search():
    x = random(256, dim=64)
    method = SparseMethod("t", HeadModes(0.3), Raster(), schedule=Schedule(min_tokens=0), block_size=16)
    with pytest.raises(ValueError, match="CarriedAxes"):
        run(method, x, LAYOUT, 2)
    bare = SparseMethod("t", HeadModes(0.3), CarriedAxes(), block_size=16)
    context = bare.context(LAYOUT, Site(0, 0, 4), LayerState(), head_dim=64)
    with pytest.raises(ValueError, match="modes.bits.*observed before"):
        sparse_attention(*x, method=bare, context=context)


@pytest.mark.parametrize(
    "fields",
    [
        {"trade": -1.0},
        {"limit": 0.0},
        {"widths": ()},
        {"widths": (0.5, 0.25)},
        {"widths": (0.5, 1.0)},
        {"density": 2},
    ],
)
def test_bad_fields_are_refused(fields):
    with pytest.raises(ValueError, match="must be"):
        HeadModes(**fields)
