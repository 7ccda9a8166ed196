"""The benchmark of whole layers on a CPU: tiny transformers through every case, full width without memory."""

import json
from dataclasses import replace

import pytest
import torch
from gpu_bench import layers
from gpu_bench.models import MODELS, Model
from gpu_bench.random_models import SPECS, Spec, build, inputs, only
from gpu_bench_cpu import CPU

from dit_sparse.adapters import find_adapter

SPEC_WAN = Spec(
    Model("wan", (3, 5, 7), 2, 16, 40, 2, 0.2),
    {"ffn_dim": 64, "text_dim": 32, "freq_dim": 32, "rope_max_seq_len": 64},
    {"blocks": 40},
    (12, 32),
)
SPEC_HUNYUAN = Spec(
    Model("hunyuan_video", (3, 5, 7), 2, 16, 60, 1, 0.1, 11, "last"),
    {"text_embed_dim": 16, "pooled_projection_dim": 8, "rope_axes_dim": (4, 6, 6), "num_refiner_layers": 1},
    {"transformer_blocks": 20, "single_transformer_blocks": 40},
    (11, 16),
    built=1,
)
SPEC_COG = Spec(
    Model("cogvideox", (3, 5, 7), 2, 16, 42, 2, 0.2, 16, "first"),
    {
        "use_rotary_positional_embeddings": True,
        "text_embed_dim": 32,
        "time_embed_dim": 2,
        "max_text_seq_length": 16,
        "sample_width": 14,
        "sample_height": 10,
        "sample_frames": 9,
    },
    {"transformer_blocks": 42},
    (16, 32),
    batch=2,
)


pytestmark = pytest.mark.usefixtures("single_thread")


def compile_without_code(transformer):
    """Trace the blocks, generate nothing: the compiled path at the cost of a test."""
    for name in ("blocks", "transformer_blocks", "single_transformer_blocks"):
        for block in getattr(transformer, name, []):
            block.compile(backend="eager", fullgraph=True)


@pytest.mark.parametrize("spec", [SPEC_WAN, SPEC_HUNYUAN, SPEC_COG], ids=lambda s: s.model.family)
def test_layers(spec):
    densities = layers.DENSITIES if spec is SPEC_COG else layers.DENSITIES[:1]
    rows = layers.layer_rows("toy", spec, CPU, densities, compiler=compile_without_code)
    assert json.loads(json.dumps(rows)) == rows
    assert not [row["note"] for row in rows if row.get("note")]
    measured = [row for row in rows if row.get("ms") is not None]
    kinds = {f"layer of {name}" for name in spec.blocks}
    fused = () if spec is SPEC_COG else layers.FUSED  # CogVideoX has no processor to fuse
    assert {row["what"] for row in measured} == kinds
    cases = {
        (mode, method, density, plan)
        for mode, tried in (("eager", layers.EAGER), ("fused", fused), ("compiled", layers.COMPILED))
        for method, plan in tried
        for density in (densities[:1] if plan == layers.FIRST else densities)
    }
    cases |= {("eager", "dense", 1.0, None), ("compiled", "dense", 1.0, None)}
    if spec is SPEC_HUNYUAN:
        cases |= {("eager", "dense, padding mask", 1.0, None)}
    for kind in kinds:
        found = {(r["mode"], r["method"], r["density"], r["plan"]) for r in measured if r["what"] == kind}
        assert found == cases
    runs = [row for row in rows if row.get("seconds") is not None]
    assert {row["plan"] for row in runs} == {None, "every step", "every 5 steps"}
    (dense,) = (row for row in runs if row["mode"] == "eager" and row["method"] == "dense")
    assert dense["vs dense eager"] == 1.0


def test_only_takes_layers_away_and_puts_them_back():
    transformer, given = build(SPEC_HUNYUAN, "cpu"), inputs(SPEC_HUNYUAN, "cpu")
    with torch.no_grad():
        whole = transformer(**given)[0]
        with only(transformer, SPEC_HUNYUAN, "single_transformer_blocks"):
            assert (
                len(transformer.transformer_blocks) == 0 and len(transformer.single_transformer_blocks) == 1
            )
            assert not torch.equal(transformer(**given)[0], whole)
        assert torch.equal(transformer(**given)[0], whole)


def test_built_models_keep_what_their_class_keeps_in_float32():
    transformer = build(SPEC_WAN, "cpu")
    assert transformer.blocks[0].attn1.to_q.weight.dtype is torch.bfloat16
    assert transformer.scale_shift_table.dtype is torch.float32


@pytest.mark.parametrize("name", SPECS)
def test_specs_fit_the_models(name):
    """The full-width configurations are those of the classes, without memory for their weights."""
    spec = SPECS[name]
    assert spec.model is MODELS[name]
    assert sum(spec.blocks.values()) == spec.model.layers
    transformer = build(spec, "meta")
    per_layer = sum(p.numel() for kind in spec.blocks for p in getattr(transformer, kind)[0].parameters())
    parameters = {"Wan-14B 720p": 14e9 / 40, "Wan-1.3B 480p": 1.3e9 / 30, "CogVideoX-5B 480p": 5e9 / 42}
    if name in parameters:
        assert per_layer == pytest.approx(parameters[name], rel=0.15)
    else:
        counted = [
            count * sum(p.numel() for p in getattr(transformer, kind)[0].parameters())
            for kind, count in spec.blocks.items()
        ]
        assert sum(counted) == pytest.approx(12.8e9, rel=0.05)
    given = inputs(spec, "meta")
    if spec.text[0] and spec.model.layout.text_tokens:
        assert spec.text[0] == spec.model.layout.text_tokens
    assert find_adapter(transformer).layout(transformer, given) == spec.model.layout


def test_run_seconds():
    dense, sparse = {"blocks": 100.0}, {"blocks": 40.0}
    # 40 layers x 2 forwards: 10 dense and 40 sparse steps, 5 ms beside the layers
    expected = 2 * (50 * 5 + 40 * (10 * 100 + 40 * 40)) / 1e3
    assert layers.run_seconds(SPECS["Wan-14B 720p"], 5.0, dense, sparse) == pytest.approx(expected)
    extra = layers.run_seconds(SPECS["Wan-14B 720p"], 5.0, dense, sparse, {"blocks": 600.0})
    assert extra - expected == pytest.approx(2 * 40 * 0.6)
    both = {"transformer_blocks": 10.0, "single_transformer_blocks": 5.0}
    assert layers.run_seconds(SPECS["HunyuanVideo 720p"], 0.0, both, both) == pytest.approx(50 * 0.4)
    # guidance is in the batch: one forward a step
    assert layers.run_seconds(
        SPECS["CogVideoX-5B 480p"], 0.0, {"transformer_blocks": 1.0}, {"transformer_blocks": 1.0}
    ) == pytest.approx(50 * 0.042)


def test_learning_is_counted_twice_a_run_and_searched_for_in_one_branch():
    case = layers.Case("eager", "mosaic", 0.25, layers.FIRST)
    times = {case: {"blocks": 700.0}, replace(case, plan=layers.NEW): {"blocks": 150.0}}
    dense = {"blocks": 300.0}
    # The searching branch: 700 for a dense call of the guard and for a sparse one.
    alone = layers._first_extra(times, "mosaic", dense, 1)
    assert alone == {"blocks": (700 - 300) + (700 - 150)}
    both = layers._first_extra(times, "mosaic", dense, 2)
    # The other one: dense and sparse in each of the two calls.
    assert both == {"blocks": (alone["blocks"] + (450 - 300) + (450 - 150)) / 2}
    clusters = {replace(key, method="svg2"): ms for key, ms in times.items()}
    assert layers._first_extra(clusters, "svg2", dense, 2) == {"blocks": 550.0}
    assert layers._first_extra(clusters, "mosaic", dense, 2) == {}
