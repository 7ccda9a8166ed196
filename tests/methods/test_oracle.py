"""The oracle finds what is best by definition, and nothing that is estimated beats it at its own measure."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pattern_problems import built, dense, forced_of, layout_of, planned, random_qkv

from dit_sparse.corrections import PooledCompensation
from dit_sparse.engine import SparseMethod
from dit_sparse.schedule import Schedule
from dit_sparse.selectors import ErrorAware, Oracle, TopK

LAYOUT = layout_of((4, 5, 6), 9, "last")


def mass_of(q, k, block=16):
    """Exact share of the softmax per block, mean over the rows of the query block, ``[B, H, nQ, nK]``."""
    weights = torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double()).mul(q.shape[-1] ** -0.5).softmax(-1)
    columns = torch.stack([x.sum(-1) for x in weights.split(block, dim=-1)], -1)
    return torch.stack([x.mean(-2) for x in columns.split(block, dim=-2)], -2)


def error(method, qkv, layout=LAYOUT):
    out, plan = planned(method, layout, qkv)
    exact = dense(*qkv)
    return ((out - exact).norm() / exact.norm()).item(), plan


@settings(max_examples=20)
@given(st.floats(0.4, 1.0), st.integers(0, 99), st.sampled_from(["head", "layer"]))
def test_the_heaviest_pairs_are_kept(density, seed, scope):
    """Forced pairs and the heaviest of every row; then the heaviest, in exact arithmetic, while they last."""
    layout = layout_of((4, 8, 8), 9, "last")
    qkv = random_qkv(layout, batch=2, seed=seed)
    mass, forced = mass_of(*qkv[:2]), forced_of(layout, False)
    first = torch.zeros_like(mass, dtype=torch.bool).scatter_(-1, mass.argmax(-1, keepdim=True), True)
    first = first | forced
    mask = planned(built("oracle", density=density, scope=scope), layout, qkv)[1].block_map.to_mask()
    dims = 2 if scope == "head" else 3
    value, flags = mass.masked_fill(first, 2.0).flatten(-dims), mask.flatten(-dims)
    budget = round(density * value.shape[-1])
    for values, kept in zip(value.reshape(-1, value.shape[-1]), flags.reshape(-1, value.shape[-1])):
        expected = torch.zeros_like(kept)
        expected[values.argsort(descending=True)[:budget]] = True
        assert torch.equal(kept, expected)


def test_rows_of_their_own_budget_keep_their_heaviest():
    qkv = random_qkv(LAYOUT, batch=2)
    mass, forced = mass_of(*qkv[:2]), forced_of(LAYOUT, False)
    mask = planned(built("oracle", density=0.6, scope="row"), LAYOUT, qkv)[1].block_map.to_mask()
    inside = mass.masked_fill(~mask | forced, torch.inf).amin(-1)
    outside = mass.masked_fill(mask, -torch.inf).amax(-1)
    assert (inside > outside).all()


def test_by_compensated_error_it_beats_every_estimate():
    """At equal density, on attention with structure to be missed: a few random problems."""
    for seed in range(4):
        layout = layout_of((4, 8, 8))
        q, k, v = random_qkv(layout, heads=3, seed=seed, scale=1.8)
        q[:, :, 0] *= 0.2
        qkv = q, k, v

        def with_selector(selector):
            return SparseMethod(
                "t", selector, correction=PooledCompensation(), schedule=Schedule(), block_size=16
            )

        best, _ = error(with_selector(Oracle(0.4, "layer", "compensated_error")), qkv, layout)
        for other in (
            Oracle(0.4, "layer", "mass"),
            TopK(0.4, "layer", "mean_key"),
            TopK(0.4, "layer", "pooled"),
            ErrorAware(0.4, "layer", "centroid"),
            ErrorAware(0.4, "layer", "moments"),
        ):
            assert best < error(with_selector(other), qkv, layout)[0], other


def test_by_error_it_finds_the_pair_that_hurts_least():
    """One block less than dense: of all masks that leave out one pair of a row, the oracle's errs least."""
    layout = layout_of((1, 8, 8))
    q, k, v = random_qkv(layout, heads=1, seed=5)
    exact = dense(q, k, v)
    forced = forced_of(layout, False)

    def change(mask):
        tokens = mask.repeat_interleave(16, 0).repeat_interleave(16, 1)
        logits = (q[0, :, 0] @ k[0, :, 0].T * 8**-0.5).masked_fill(~tokens, -torch.inf)
        return (logits.softmax(-1).double() @ v[0, :, 0].double() - exact[0, :, 0]).norm().item()

    errors = {}
    for i, j in itertools.product(range(4), range(4)):
        if not forced[i, j]:
            mask = torch.ones(4, 4, dtype=torch.bool)
            mask[i, j] = False
            errors[i, j] = change(mask)
    kept = planned(built("oracle", density=15 / 16, by="error"), layout, (q, k, v))[1].block_map.to_mask()
    ((i, j),) = (~kept[0, 0]).nonzero().tolist()
    assert (i, j) == min(errors, key=errors.get)


@pytest.mark.parametrize("ordering", ["raster", "patches", "cubes", "clusters"])
@pytest.mark.parametrize("by", ["mass", "compensated_error"])
def test_every_ordering_by_name(ordering, by):
    qkv = random_qkv(LAYOUT)
    fields = {"ordering": ordering, "by": by, "correction": "pooled"}
    figures = [error(built("oracle", density=d, **fields), qkv) for d in (0.5, 1.0)]
    assert figures[0][0] > figures[1][0]
    assert figures[1][0] < 1e-5
    assert (figures[0][1].q_order is None) == (ordering == "raster")


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"density": 0.0}, r"density must be in \(0, 1\], got 0.0"),
        ({"density": None}, "needs a density"),
        ({"scope": "model"}, "scope must be 'row', 'head' or 'layer', got 'model'"),
        ({"by": "luck"}, "by must be one of mass, error, compensated_error, got 'luck'"),
        ({"ordering": "zigzag"}, "unknown ordering 'zigzag': use one of raster"),
    ],
    ids=str,
)
def test_bad_fields_are_refused(fields, hint):
    with pytest.raises(ValueError, match=hint):
        built("oracle", **fields)
