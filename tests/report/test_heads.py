"""Densities by head: from the block map to the report, with and without the dense guard."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import tiny
import torch

import dit_sparse
from dit_sparse.kernels import VariableBlocks
from dit_sparse.layout import BlockMap, Site, SiteRecord
from dit_sparse.methods.profiled import Profiled
from dit_sparse.patterns import KINDS, load_profile
from dit_sparse.report.density import head_choices, head_maps
from dit_sparse.report.grids import choice_grids, density_by_head, density_by_step, density_top
from dit_sparse.report.schema import HeadChoices, HeadMap, HeatMap
from dit_sparse.stats import Stats


def test_a_block_map_counts_its_heads():
    mask = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(0)) < 0.4
    mask[:, 2] = True
    made = BlockMap.from_mask(mask, 37, 50, (8, 16))
    torch.testing.assert_close(made.head_density(), mask.float().mean(dim=(0, 2, 3)))
    assert made.head_density()[2] == 1
    torch.testing.assert_close(made.head_density().mean(), made.density())


def test_variable_blocks_count_pairs_of_tokens():
    q = torch.tensor([[[1, 3], [4, 0]], [[2, 2], [3, 1]]])
    kv = torch.tensor([[[6, 2], [5, 3]], [[8, 0], [4, 4]]])
    mask = torch.tensor([[[1, 0], [0, 1]]]).bool().expand(2, 2, 2, 2)
    made = VariableBlocks(q, kv, mask)
    # Kept of 32 pairs, by sample: head 0 1*6+3*2 = 12 and 2*8+0 = 16, head 1 4*5+0 = 20 and 3*4+1*4 = 16.
    torch.testing.assert_close(made.head_density(), torch.tensor([28 / 64, 36 / 64]))
    torch.testing.assert_close(made.density(), torch.tensor(64 / 128))


def record(layer: int, step: int, heads: list[float] | None, transformer: str = "transformer") -> SiteRecord:
    values = None if heads is None else torch.tensor(heads)
    density = 1.0 if values is None else values.mean()
    return SiteRecord(
        Site(layer, step, 3, transformer=transformer),
        density,
        "dense_step" if heads is None else None,
        "x",
        values,
    )


def test_maps_mean_the_calls_of_a_layer_with_and_without_the_guard():
    records = [
        record(0, 0, None),
        record(0, 1, [0.2, 0.4]),
        record(0, 2, [0.4, 0.4]),
        record(1, 0, None),
        record(1, 1, None),
        record(1, 2, None),
    ]
    (made,) = head_maps(Stats.read(records, 0).records)
    assert made.layers == [0, 1]
    assert made.sparse[0] == pytest.approx([0.3, 0.4])
    assert made.sparse[1] is None
    assert made.total[0] == pytest.approx([(1 + 0.2 + 0.4) / 3, (1 + 0.4 + 0.4) / 3])
    assert made.total[1] == [1.0, 1.0]


def test_denoisers_stand_apart_and_one_that_never_ran_sparse_has_no_map():
    records = [record(0, 0, [0.5], "transformer_2"), record(0, 0, None)]
    (made,) = head_maps(records)
    assert made.transformer == "transformer_2"
    assert head_maps([record(0, 0, None)]) == []


def test_reading_brings_tensors_to_numbers_and_keeps_their_order():
    records = [
        record(0, 0, None),
        record(0, 1, [0.25, 0.75]),
        record(1, 1, [0.5, 0.0]),
        record(1, 2, [0.125]),
    ]
    stats = Stats.read(records, 0)
    assert [r.density for r in stats.records] == [1.0, 0.5, 0.25, 0.125]
    assert [None if r.heads is None else r.heads.tolist() for r in stats.records] == [
        None,
        [0.25, 0.75],
        [0.5, 0.0],
        [0.125],
    ]
    assert all(isinstance(r.density, float) for r in stats.records)
    assert records == list(Stats.read(records, 0).records)  # comparable though they hold tensors


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_every_sparse_call_of_a_pipeline_tells_its_heads(family):
    make, inputs = tiny.FAMILIES[family]
    call = inputs() | {"height": 48, "width": 64, "num_frames": 5, "num_inference_steps": 2}
    fields = {"density": 0.4, "dense_steps": 1, "min_tokens": 0, "block_size": 8}
    pipe = make()
    with dit_sparse.sparse_attention(pipe, "svg2", **fields) as handle, torch.no_grad():
        pipe(**call, generator=torch.Generator().manual_seed(0))
        stats = handle.stats()
    assert {r.heads is None for r in stats.records} == {True, False}
    for r in stats.records:
        assert (r.heads is None) == (r.dense_reason is not None)
        if r.heads is not None:
            assert r.heads.shape == (2,)
            assert float(r.heads.mean()) == pytest.approx(r.density, abs=1e-6)


def heat(density: float | None, reason: str | None) -> HeatMap:
    return HeatMap(
        transformer="transformer",
        layers=[4],
        steps=[0, 1],
        density=[[1.0, density]],
        dense_reason=[["dense_step", reason]],
    )


def test_cells_say_what_they_show():
    heads = HeadMap(
        transformer="transformer", layers=[4, 5], sparse=[[0.1, 0.3], None], total=[[0.55, 0.65], [1.0, 1.0]]
    )
    top = density_top([heat(0.2, None)], [heads])
    assert top == pytest.approx(0.3)
    step = density_by_step(heat(0.2, None), top)
    assert step.columns == ("step", 1, 2)
    guard, cell = step.rows[0]
    assert (guard.style, guard.title) == ("cell dense_step", "layer 4, step 1: 100.0 % (dense step)")
    assert (cell.style, cell.title) == ("", "layer 4, step 2: 20.0 %")
    assert (cell.shade, cell.guarded) == (pytest.approx(0.2 / 0.3), 0.2)
    other = density_by_step(heat(1.0, "attention_mask"), top).rows[0][1]
    assert (other.style, other.title) == ("cell other", "layer 4, step 2: 100.0 % (attention mask)")
    assert density_by_step(heat(None, None), top).rows[0][1].style == "empty"
    by_head = density_by_head(heads, top)
    assert by_head.columns == ("head", 0, 1)
    cell = by_head.rows[0][1]
    assert (cell.shade, cell.guarded) == (pytest.approx(1.0), 0.65)
    assert cell.title == "layer 4, head 1: 30.0 %, with dense guard 65.0 %"
    assert by_head.rows[1][0].style == "cell dense_layer"


def test_the_scale_ends_at_the_largest_sparse_value():
    assert density_top([heat(1.0, "dense_layer")]) == 1.0
    assert density_top([heat(0.31, None)]) == pytest.approx(0.4)
    assert density_top([heat(0.3, None)]) == pytest.approx(0.3)


def test_choices_are_drawn_by_step_group():
    made = HeadChoices(
        transformer="transformer",
        names=["dense", "window"],
        steps=[(2, 5), (5, 9)],
        num_steps=9,
        kinds=[[[0, 1, 1]], [[1, 1, 0]]],
    )
    first, second = choice_grids(made)
    assert first.title == "transformer, steps 3 to 5 of 9"
    assert [cell.style for cell in first.rows[0]] == ["kind-0", "kind-1", "kind-1"]
    assert second.rows[0][2].title == "layer 0, head 2: dense"


def test_the_choices_are_those_of_the_profile():
    path = Path(__file__).parents[2] / "profiles" / "tiny-wan" / "balanced.safetensors"
    profile = load_profile(path)
    (made,) = head_choices(Profiled(str(path), {"transformer": profile}))
    table = profile.table
    groups, layers, heads = table.sizes
    assert (len(made.steps), made.num_steps) == (groups, profile.header.schedule.num_steps)
    drawn = Counter(
        cell.title.rpartition(": ")[2] for grid in choice_grids(made) for row in grid.rows for cell in row
    )
    assert drawn == Counter(KINDS[kind] for kind in table.kind.flatten().tolist())
    assert sum(drawn.values()) == groups * layers * heads
    first = choice_grids(made)[0].rows[2][1]
    assert first.style == f"kind-{int(table.kind[0, 2, 1])}"


def test_methods_without_a_profile_make_no_choices():
    with dit_sparse.sparse_attention(tiny.wan_transformer(), "svg2") as handle:
        assert head_choices(handle.config) == ()
        assert not isinstance(handle.config, Profiled)
