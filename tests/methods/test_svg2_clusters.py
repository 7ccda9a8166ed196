"""SVG2 as printed: top-p over clusters with a floor, and how the runtime tells that it was a reference."""

from dataclasses import replace

import pytest
import torch
from pattern_problems import built, layout_of, planned, random_qkv
from tiny import FAMILIES, run

import dit_sparse
from dit_sparse.engine import sparse_attention
from dit_sparse.layout import Site
from dit_sparse.orderings import Raster
from dit_sparse.state import LayerState

LAYOUT = layout_of((8, 8, 16))
ALWAYS = {"dense_steps": 0, "dense_layers": [], "min_tokens": 0, "block_size": 16}


def clusters_and_mask(method, qkv, layout=LAYOUT):
    context = method.context(layout, Site(0, 0), LayerState(), head_dim=8)
    order = method.ordering.order(*qkv[:2], context)
    return order.q_clusters, order.kv_clusters, planned(method, layout, qkv)[1].block_map


@pytest.mark.parametrize("top_p", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("floor", [0.0, 0.25])
def test_top_p_is_the_papers(top_p, floor):
    qkv = random_qkv(LAYOUT, batch=2, scale=2.0)
    method = built("svg2", top_p=top_p, min_kc_ratio=floor, execution="clusters")
    q_part, kv_part, blocks = clusters_and_mask(method, qkv)
    weights = (q_part.centroids.double() @ kv_part.centroids.double().mT * 8**-0.5).exp()
    weights = weights * kv_part.sizes[..., None, :]
    mass = weights / weights.sum(-1, keepdim=True)
    least = max(1, int(floor * mass.shape[-1]))
    for row, kept in zip(mass.flatten(0, 2), blocks.mask.flatten(0, 2)):
        heaviest = row.sort(descending=True)
        needed = max(least, int((heaviest.values.cumsum(0) < top_p).sum()) + 1)
        assert kept.nonzero().flatten().tolist() == heaviest.indices[:needed].sort().values.tolist()


def test_the_output_is_attention_over_the_kept_clusters():
    qkv = random_qkv(LAYOUT, heads=1)
    method = built("svg2", top_p=0.5, execution="clusters")
    q_part, kv_part, blocks = clusters_and_mask(method, qkv)
    kept = blocks.mask[0, 0][q_part.labels[0, 0].long()][:, kv_part.labels[0, 0].long()]
    q, k, v = (x[0, :, 0].double() for x in qkv)
    expected = (q @ k.T * 8**-0.5).masked_fill(~kept, -torch.inf).softmax(-1) @ v
    out, plan = planned(method, LAYOUT, qkv)
    torch.testing.assert_close(out[0, :, 0].double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plan.density, kept.float().mean())


def test_a_density_takes_the_heaviest_pairs():
    """By mass per query-key pair, whatever the head: the least of the kept weighs more than what is left."""
    qkv = random_qkv(LAYOUT, scale=2.0)
    method = built("svg2", density=0.3, min_kc_ratio=0.0, execution="clusters")
    q_part, kv_part, blocks = clusters_and_mask(method, qkv)
    weights = (q_part.centroids.double() @ kv_part.centroids.double().mT * 8**-0.5).exp()
    value = weights / (weights * kv_part.sizes[..., None, :]).sum(-1, keepdim=True)
    heaviest = torch.zeros_like(blocks.mask).scatter_(-1, value.argmax(-1, keepdim=True), True)
    live = (q_part.sizes[..., None] > 0) & (kv_part.sizes[..., None, :] > 0)
    assert value[blocks.mask & ~heaviest & live].min() >= value[~blocks.mask & live].max() - 1e-9


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["svg2", "svg_ear"])
def test_pipelines_run_and_report_the_reference(name, family):
    make, inputs = FAMILIES[family]
    pipe = make()
    plain = run(pipe, inputs())
    for density in (1.0, 0.5):
        fields = {"density": density, "execution": "clusters", "strict": True, **ALWAYS}
        with dit_sparse.sparse_attention(pipe, name, **fields) as handle:
            latents = run(pipe, inputs())
            assert torch.equal(latents, run(pipe, inputs()))
            stats = handle.stats()
        assert stats.backends == ["variable"]
        assert stats.density_sparse_sites == pytest.approx(density, rel=0.1)
        if density == 1.0:
            torch.testing.assert_close(latents, plain, rtol=1e-3, atol=1e-3)
        else:
            assert not torch.equal(latents, plain)


def test_plans_are_shared_between_steps_when_asked_to():
    qkv = random_qkv(LAYOUT)
    method = built("svg2", density=0.3, execution="clusters", refresh_interval=2)
    state = LayerState()
    outputs = []
    for step in range(2):
        context = method.context(LAYOUT, Site(0, step), state, head_dim=8)
        outputs.append(sparse_attention(*qkv, method=method, context=context)[0])
    assert torch.equal(*outputs)
    assert state.plan.block_map.nbytes > 0


def test_what_clusters_cannot_do_is_refused():
    with pytest.raises(ValueError, match="execution must be 'fixed' or 'clusters', got 'quick'"):
        built("svg2", execution="quick")
    with pytest.raises(ValueError, match="needs score='centroid'.*'mean_key'.*execution='fixed'"):
        built("svg2", execution="clusters", score="mean_key")
    with pytest.raises(ValueError, match="precision='native'.*'int8'"):
        built("svg2", execution="clusters", precision="int8")
    method = replace(built("svg2", execution="clusters"), ordering=Raster())
    with pytest.raises(ValueError, match=r"SemanticClusters\(\)"):
        planned(method, LAYOUT)
