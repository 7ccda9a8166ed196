"""What every method of patterns keeps: its budget, the forced pairs, determinism, the dense limit."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pattern_problems import built, dense, forced_of, layout_of, mask_of, planned, random_qkv
from tiny import FAMILIES, run
from torch.utils._python_dispatch import TorchDispatchMode

import dit_sparse
from dit_sparse.methods import ModelInfo, make_method
from dit_sparse.orderings import CarriedAxes, SemanticClusters
from dit_sparse.selectors import CellGate, Circle, HeadBands, RadialBand, Window

VARIANTS = [
    ("vmoba", {}),
    ("vmoba", {"selection": "global_threshold"}),
    ("gna", {}),
    ("gna", {"stride": (2, 4, 4), "dilation": (1, 2, 1)}),
    ("sta", {}),
    ("sta", {"tile": (1, 4, 4)}),
    ("clear", {}),
    ("radial", {}),
    ("svg1", {}),
    ("minference", {}),
    ("minference", {"pattern": "block_sparse"}),
    ("sparge", {}),
    ("sparge", {"similarity": -1.0}),
]
variants = pytest.mark.parametrize(("name", "fields"), VARIANTS, ids=str)
LAYOUTS = st.builds(
    layout_of,
    st.tuples(st.integers(1, 6), st.integers(2, 9), st.integers(2, 11)),
    st.integers(0, 40),
    st.sampled_from(["first", "last"]),
)


@variants
@settings(max_examples=12)
@given(layout=LAYOUTS, density=st.floats(0.05, 1.0), layer=st.integers(0, 2), seed=st.integers(0, 99))
def test_the_density_is_met_and_forced_pairs_are_kept(name, fields, layout, density, layer, seed):
    method = built(name, density=density, **fields)
    _, plan = planned(method, layout, layer=layer, batch=2, seed=seed)
    mask = plan.block_map.to_mask()
    forced = forced_of(layout, plan.q_order is not None)
    assert (mask | ~forced).all()
    assert mask.any(dim=-1).all(), "a row without blocks"
    pairs = forced.numel()
    # What cannot be dropped: forced pairs, and one pair per row.
    floor = (forced | torch.eye(len(forced), dtype=torch.bool)).sum().item()
    for kept in mask.sum(dim=(-1, -2)).flatten().tolist():
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


@variants
@pytest.mark.parametrize("family", FAMILIES)
def test_pipelines_run_by_the_papers_own_rule(name, fields, family):
    """test_adapters.py runs every method with a density; here is its rule without one."""
    make, inputs = FAMILIES[family]
    always = {"dense_steps": 0, "dense_layers": [], "min_tokens": 0, "block_size": 16}
    pipe = make()
    with dit_sparse.sparse_attention(pipe, name, strict=True, **always, **fields) as handle:
        assert torch.isfinite(run(pipe, inputs())).all()
        stats = handle.stats()
    assert stats.fallbacks == []
    assert 0.0 < stats.density_sparse_sites <= 1.0


class NoReading(TorchDispatchMode):
    """Raises where an operator gives the host a value, or a shape that depends on one, or copies a value of
    the host to the device, which waits too."""

    FORBIDDEN = (
        "lift_fresh",
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "unique",
        "_unique2",
        "is_nonzero",
        "equal",
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        boolean = any(i is not None and i.dtype == torch.bool for i in indices)
        if name in self.FORBIDDEN or boolean:
            raise AssertionError(f"planning waits for the device: {func}")
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Watched:
    """An ordering or selector that must not read."""

    part: Any

    def order(self, q, k, context):
        with NoReading():
            return self.part.order(q, k, context)

    def select(self, given):
        with NoReading():
            return self.part.select(given)


@variants
@pytest.mark.parametrize("density", [None, 0.3])
def test_planning_reads_nothing_back(name, fields, density):
    """Once the layout is known: what depends on it alone is computed at the first call."""
    if density is None and name in ("svg1", "minference"):
        pytest.skip("has no rule without a density")
    layout = layout_of((3, 6, 7), 6, "first")
    method = make_method(name, block_size=16, density=density, **fields).build(ModelInfo("wan", 2, 8))
    first = mask_of(method, layout)
    watched = replace(method, ordering=Watched(method.ordering), selector=Watched(method.selector))
    assert torch.equal(mask_of(watched, layout), first)


def test_the_watch_notices_reading():
    x = torch.tensor([1.0, 0.0])
    for read in (
        lambda: x.sum().item(),
        lambda: x[x > 0],
        lambda: x.nonzero(),
        lambda: bool(x.any()),
        lambda: torch.tensor(1.0),
        lambda: x.new_tensor([1.0, 2.0]),
    ):
        with pytest.raises(AssertionError, match="waits"), NoReading():
            read()


@pytest.mark.parametrize(
    ("ordering", "selector", "hint"),
    [
        (SemanticClusters(2, 2), Circle(4.0), "all heads share"),
        (SemanticClusters(2, 2), RadialBand(), "all heads share"),
        (SemanticClusters(2, 2), Window(border="shift"), "all heads share"),
        (CarriedAxes(), HeadBands(), "SpatialTemporal"),
        (CarriedAxes(), CellGate(), "CyclingPartition"),
    ],
    ids=str,
)
def test_parts_that_do_not_fit_say_what_does(ordering, selector, hint):
    method = replace(built("draft"), ordering=ordering, selector=selector)
    with pytest.raises(ValueError, match=hint):
        planned(method, layout_of((3, 5, 7)))


@pytest.mark.parametrize(
    ("name", "fields", "hint"),
    [
        ("gna", {"window": (3, 0, 3)}, r"window must be three widths.*\(3, 0, 3\)"),
        ("gna", {"window": (0.5, 1.5, 0.5)}, r"shares of.*1\.5"),
        ("gna", {"stride": (1, 0, 1)}, "stride must be three whole numbers"),
        ("gna", {"dilation": (1, 1)}, "dilation must be three whole numbers"),
        ("sta", {"window": (3, 2, 3)}, r"odd numbers of tiles.*\(3, 2, 3\)"),
        ("clear", {"radius": 0}, "radius must be greater than 0"),
        ("clear", {"time_scale": -1}, "time_scale must not be negative"),
        ("radial", {"decay": 0}, "decay must be greater than 0"),
        ("svg1", {"rows": 0}, "rows must be at least 1"),
        ("svg1", {"density": None}, "needs a density"),
        ("minference", {"pattern": "slash"}, "'slash'"),
        ("minference", {"rows": -1}, "rows must be at least 1"),
        ("sparge", {"top_p": 0.0}, "p must be in"),
        ("sparge", {"similarity": 2.0}, "cosine"),
        ("vmoba", {"selection": "all"}, "'all'"),
        ("vmoba", {"top_k": 0.0}, "top_k must be in"),
        ("vmoba", {"threshold": 1.5}, "threshold must be in"),
        ("vmoba", {"parts": ((0, 1, 1),)}, "counts >= 1"),
        *((name, {"density": 2.0}, r"density must be in \(0, 1\]") for name in ("gna", "clear", "radial")),
        *(
            (name, {"density": 0.0}, r"density must be in \(0, 1\]")
            for name in ("sta", "vmoba", "sparge", "svg1")
        ),
    ],
    ids=str,
)
def test_bad_fields_are_refused(name, fields, hint):
    with pytest.raises(ValueError, match=hint):
        built(name, **fields)
