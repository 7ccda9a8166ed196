"""What oracle, svg_ear and sale keep: their budget, the forced pairs, determinism, the dense limit."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pattern_problems import built, dense, forced_of, layout_of, mask_of, planned, random_qkv
from test_pattern_contract import LAYOUTS, NoReading, Watched
from tiny import FAMILIES, run

import dit_sparse
from dit_sparse.kernels import low_bit_margin
from dit_sparse.selectors.spend import spend

VARIANTS = [
    ("oracle", {}),
    ("oracle", {"by": "error", "scope": "head"}),
    ("oracle", {"by": "compensated_error", "ordering": "cubes", "correction": "pooled"}),
    ("svg_ear", {"ordering": "raster"}),
    ("svg_ear", {"ordering": "cubes", "estimate": "moments"}),
    ("svg_ear", {}),
    ("sale", {}),
    ("sale", {"scope": "layer", "ordering": "patches"}),
]
CLUSTERED = [("svg2", {"execution": "clusters"}), ("svg_ear", {"execution": "clusters"})]
variants = pytest.mark.parametrize(("name", "fields"), VARIANTS, ids=str)


@variants
@settings(max_examples=15)
@given(layout=LAYOUTS, density=st.floats(0.05, 1.0), seed=st.integers(0, 99))
def test_the_density_is_met_and_forced_pairs_are_kept(name, fields, layout, density, seed):
    method = built(name, density=density, **fields)
    _, plan = planned(method, layout, batch=2, seed=seed)
    mask = plan.block_map.to_mask()
    forced = forced_of(layout, plan.q_order is not None)
    apart = fields.get("ordering", "clusters") == "clusters" and name == "svg_ear"
    if apart:  # q and k are ordered apart: there is no diagonal, only the text is forced
        eye = torch.eye(len(forced), dtype=torch.bool)
        blocks = torch.arange(len(forced)) * 16
        text = blocks + 16 > layout.video_tokens if layout.text_tokens else torch.zeros_like(eye[0])
        forced = text[:, None] | text
    assert (mask | ~forced).all()
    pairs = forced.numel()
    floor = forced.sum().item() + len(forced)
    for kept in mask.sum(dim=(-1, -2)).float().mean(dim=1).tolist():
        assert kept >= 0.9 * density * pairs - 1
        assert kept <= max(1.1 * density * pairs + 1, floor)


@variants
def test_density_one_is_dense(name, fields):
    layout = layout_of((3, 5, 7), 9, "first")
    qkv = random_qkv(layout, batch=2)
    out, plan = planned(built(name, density=1.0, **fields), layout, qkv)
    assert plan.density == 1.0
    torch.testing.assert_close(out.double(), dense(*qkv), rtol=1e-4, atol=1e-5)


@variants
def test_samples_are_planned_alone_and_every_time_alike(name, fields):
    layout = layout_of((4, 6, 7), 5, "last")
    qkv = random_qkv(layout, batch=3, heads=3)
    method = built(name, density=0.4, **fields)
    together = mask_of(method, layout, qkv)
    assert torch.equal(together, mask_of(method, layout, qkv))
    for i in range(3):
        assert torch.equal(together[i : i + 1], mask_of(method, layout, [x[i : i + 1] for x in qkv]))


@pytest.mark.parametrize(("name", "fields"), CLUSTERED, ids=str)
def test_clusters_of_samples_are_planned_alone_and_every_time_alike(name, fields):
    layout = layout_of((4, 6, 7), 5, "last")
    qkv = random_qkv(layout, batch=3, heads=3)
    method = built(name, density=0.4, **fields)
    out, plan = planned(method, layout, qkv)
    assert torch.equal(out, planned(method, layout, qkv)[0])
    for i in range(3):
        alone = planned(method, layout, [x[i : i + 1] for x in qkv])
        assert torch.equal(plan.block_map.mask[i : i + 1], alone[1].block_map.mask)
        torch.testing.assert_close(out[i : i + 1], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("density", [None, 0.3])
@pytest.mark.parametrize(("name", "fields"), [*VARIANTS[3:6], *CLUSTERED], ids=str)
def test_selecting_reads_nothing_back(name, fields, density):
    if density is None and name == "svg_ear":
        pytest.skip("has no rule without a density")
    layout = layout_of((3, 6, 7), 6, "first")
    method = built(name, density=density, **fields)
    first = planned(method, layout)[1].density
    watched = replace(method, selector=Watched(method.selector))
    assert torch.equal(planned(watched, layout)[1].density, first)


def test_four_bit_margins_read_nothing_back():
    """The local part goes through the attention kernels; the CPU's reads the block counts, no GPU's does."""
    layout = layout_of((3, 6, 7), 6, "first")
    q, k, _ = random_qkv(layout)
    with NoReading():
        margin = low_bit_margin(q, k, torch.zeros(1, 2, layout.num_tokens), (16, 16))
        spend(-margin, forced_of(layout, False), 0.3, "head")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("name", "fields"), [("sale", {}), ("sale", {"tau": 1.0})], ids=str)
def test_sale_runs_by_its_own_rule(name, fields, family):
    make, inputs = FAMILIES[family]
    always = {"dense_steps": 0, "dense_layers": [], "min_tokens": 0, "block_size": 16}
    pipe = make()
    with dit_sparse.sparse_attention(pipe, name, strict=True, **always, **fields) as handle:
        assert torch.isfinite(run(pipe, inputs())).all()
        stats = handle.stats()
    assert stats.fallbacks == []
    assert 0.0 < stats.density_sparse_sites <= 1.0
