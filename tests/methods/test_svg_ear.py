"""Error-aware routing goes where means err, in fixed blocks and in whole clusters."""

import pytest
import torch
from pattern_problems import built, dense, layout_of, planned, random_qkv

from dit_sparse.kernels import VariableBlocks
from dit_sparse.methods import ModelInfo, make_method

LAYOUT = layout_of((1, 8, 16))


def like_and_unlike(heavy_like=True):
    """Two key blocks hold nearly all mass for every query: block 2 of equal keys, block 5 of keys that differ
    most along the query. The first is the heavier."""
    generator = torch.Generator().manual_seed(1)
    q = torch.zeros(1, 128, 1, 8)
    q[..., 0] = 4.0
    k = 0.1 * torch.randn(1, 128, 1, 8, generator=generator)
    k[..., 0] -= 4.0
    k[:, 32:48, :, 0] = 2.0
    k[:, 80:96, :, 0] = 1.0 + 0.5 * torch.randn(1, 16, 1, generator=generator)
    if heavy_like:
        k[:, 32:48] = k[:, 32:33]
    return q, k, torch.randn(1, 128, 1, 8, generator=generator)


@pytest.mark.parametrize("estimate", ["centroid", "moments"])
def test_a_heavy_block_of_like_keys_is_left_to_its_means(estimate):
    q, k, v = like_and_unlike()
    v[:, 32:48] = v[:, 32:33]
    fields = {"density": 0.25, "ordering": "raster", "estimate": estimate}
    out, plan = planned(built("svg_ear", **fields), LAYOUT, (q, k, v))
    mask = plan.block_map.to_mask()[0, 0]
    free = ~torch.eye(8, dtype=torch.bool)
    assert mask[free[:, 5] & (torch.arange(8) != 5), 5].all(), "the block whose keys differ is computed"
    assert not mask[free[:, 2], 2].any(), "the heavier one is not"
    by_mass = planned(built("draft", density=0.25, patch=(1, 16), score="mean_key"), LAYOUT, (q, k, v))
    assert by_mass[1].block_map.to_mask()[0, 0][:, 2].all(), "by mass it would be"
    exact = dense(q, k, v)
    assert (out - exact).norm() < 0.3 * (by_mass[0] - exact).norm()


def test_the_moments_do_not_count_values_that_even_out():
    """Equal keys with different values: compensation is exact; the paper's estimate asks for more."""
    qkv = like_and_unlike()
    masks = {
        estimate: planned(built("svg_ear", density=0.25, ordering="raster", estimate=estimate), LAYOUT, qkv)[
            1
        ].block_map.to_mask()[0, 0]
        for estimate in ("centroid", "moments")
    }
    free = ~torch.eye(8, dtype=torch.bool)[:, 2]
    assert masks["centroid"][free, 2].all()
    assert not masks["moments"][free, 2].any()


def clustered(layout, clusters=4, heads=2, seed=0, spread=0.05):
    """Video tokens that fall into well separated clusters of unequal size, scattered over the sequence."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, layout.num_tokens, heads)
    label = torch.multinomial(torch.arange(1.0, clusters + 1), shape[1] * heads, True, generator=generator)
    centres = 3 * torch.randn(clusters, 16, generator=generator)
    noise = [spread * torch.randn(*shape, 16, generator=generator) for _ in range(2)]
    q, k = (centres[label].view(*shape, 16) + n for n in noise)
    return q, k, torch.randn(*shape, 16, generator=generator)


@pytest.mark.parametrize("name", ["svg2", "svg_ear"])
@pytest.mark.parametrize(("text", "position"), [(0, "none"), (7, "first"), (7, "last")])
def test_clusters_are_attended_whole(name, text, position):
    layout = layout_of((2, 8, 16), text, position)
    qkv = clustered(layout)
    method = built(name, density=0.5, execution="clusters")
    _, plan = planned(method, layout, qkv)
    blocks = plan.block_map
    assert isinstance(blocks, VariableBlocks)
    for lengths in (blocks.q_lengths, blocks.kv_lengths):
        assert lengths.sum(-1).eq(layout.num_tokens).all()
    assert blocks.q_lengths.unique().numel() > 2, "clusters of one size prove nothing"
    if text:
        assert blocks.q_lengths[..., -1].eq(text).all()
        assert blocks.mask[..., -1, :].all() and blocks.mask[..., :, -1].all()
    # A block holds the tokens of one centre: the spread within it is the noise's.
    q_sorted = qkv[0].gather(1, plan.q_order.transpose(1, 2)[..., None].expand_as(qkv[0]))
    for head in range(2):
        parts = q_sorted[0, : layout.video_tokens, head].split(
            [n for n in blocks.q_lengths[0, head].tolist() if n][: None if not text else -1]
        )
        assert max(part.std(0).max() for part in parts if len(part) > 1) < 0.5


@pytest.mark.parametrize("density", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("name", ["svg2", "svg_ear"])
def test_clusters_meet_the_density_in_query_key_pairs(name, density):
    layout = layout_of((8, 8, 16), 20, "first")
    method = built(name, density=density, execution="clusters")
    _, plan = planned(method, layout, random_qkv(layout, batch=2))
    assert plan.density.item() == pytest.approx(density, rel=0.1)


@pytest.mark.parametrize("name", ["svg2", "svg_ear"])
def test_clusters_at_density_one_are_dense(name):
    layout = layout_of((3, 5, 7), 9, "first")
    qkv = random_qkv(layout, batch=2)
    out, plan = planned(built(name, density=1.0, execution="clusters"), layout, qkv)
    assert plan.density == 1.0
    torch.testing.assert_close(out.double(), dense(*qkv), rtol=1e-4, atol=1e-5)


def test_compensation_is_nearly_exact_for_tight_clusters():
    layout = layout_of((2, 8, 16))
    qkv = clustered(layout, spread=0.01)
    exact = dense(*qkv)
    errors = {}
    for correction in ("none", "pooled"):
        method = built("svg_ear", density=0.2, execution="clusters", correction=correction)
        errors[correction] = ((planned(method, layout, qkv)[0] - exact).norm() / exact.norm()).item()
    assert errors["pooled"] < 0.02 < 0.1 < errors["none"]


def test_the_papers_defaults_per_family():
    def guard_and_clusters(family):
        method = make_method("svg_ear").build(ModelInfo(family, 100, 64))
        return method.schedule.dense_steps, method.schedule.dense_layers, method.ordering.q_clusters

    assert guard_and_clusters("wan") == (0.2, 0.03, 300)
    assert guard_and_clusters("hunyuan_video") == (0.1, 0.03, 400)


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"density": 1.5}, r"density must be in \(0, 1\], got 1.5"),
        ({"estimate": "guess"}, "estimate must be one of centroid, moments, got 'guess'"),
        ({"execution": "fast"}, "execution must be 'fixed' or 'clusters', got 'fast'"),
        ({"execution": "clusters", "ordering": "raster"}, "needs ordering='clusters'"),
        ({"execution": "clusters", "estimate": "moments"}, "needs ordering='clusters', estimate='centroid'"),
        ({"execution": "clusters", "precision": "int8"}, "precision='native'"),
        ({"ordering": "zigzag"}, "unknown ordering 'zigzag'"),
    ],
    ids=str,
)
def test_bad_fields_are_refused(fields, hint):
    with pytest.raises(ValueError, match=hint):
        built("svg_ear", **fields)
