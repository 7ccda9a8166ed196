"""Sparse attention on real diffusers classes: equal to dense at density 1, restored bit by bit, resolved
everywhere."""

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from diffusers import (
    CogVideoXImageToVideoPipeline,
    CogVideoXVideoToVideoPipeline,
    HunyuanVideoImageToVideoPipeline,
    WanImageToVideoPipeline,
    WanVideoToVideoPipeline,
)
from diffusers.models.attention_dispatch import AttentionBackendName
from PIL import Image
from tiny import (
    FAMILIES,
    cogvideox_inputs,
    cogvideox_pipeline,
    cogvideox_transformer,
    embeddings,
    hunyuan_video_inputs,
    hunyuan_video_pipeline,
    hunyuan_video_transformer,
    run,
    wan_inputs,
    wan_pipeline,
    wan_scheduler,
    wan_transformer,
    wan_vae,
)

import dit_sparse
from dit_sparse import SVG2, Draft
from dit_sparse.adapters import find_adapter
from dit_sparse.adapters.loading import compile_blocks
from dit_sparse.engine import SparseMethod
from dit_sparse.handle import head_dim
from dit_sparse.methods import make_method
from dit_sparse.schedule import Schedule
from dit_sparse.selectors import TopK

ALWAYS = {"dense_steps": 0, "dense_layers": [], "min_tokens": 0, "block_size": 16}
METHODS = dit_sparse.list_methods()
families = pytest.mark.parametrize("family", FAMILIES)
methods = pytest.mark.parametrize("method", METHODS)


def both(family, *arguments, **config):
    make, inputs = FAMILIES[family]
    return make(**config), inputs(*arguments)


@families
@methods
def test_density_one_equals_dense(family, method):
    pipe, inputs = both(family)
    dense = run(pipe, inputs)
    handle = pipe.enable_sparse_attention(method, density=1.0, **ALWAYS)
    sparse = run(pipe, inputs)
    torch.testing.assert_close(sparse, dense, rtol=1e-3, atol=1e-3)
    stats = handle.stats()
    assert stats.density_total == 1.0
    assert stats.dense_sites == {}
    assert stats.fallbacks == []


@families
@methods
def test_sparse_runs_meet_their_density_and_differ_from_dense(family, method):
    pipe, inputs = both(family)
    dense = run(pipe, inputs)
    handle = pipe.enable_sparse_attention(method, density=0.5, **ALWAYS)
    sparse = run(pipe, inputs)
    assert torch.isfinite(sparse).all()
    assert not torch.equal(sparse, dense)
    stats = handle.stats()
    assert stats.density_sparse_sites == pytest.approx(0.5, rel=0.2)
    assert {r.site.layer for r in stats.records} == {0, 1}
    assert {r.site.step for r in stats.records} == {0, 1, 2, 3}
    branches = {r.site.branch for r in stats.records}
    assert branches == ({"batched"} if family == "cogvideox" else {"conditional", "unconditional"})
    assert len(stats.records) == 2 * 4 * len(branches)
    assert method in handle.summary()


@families
def test_a_second_generation_repeats_the_first(family):
    pipe, inputs = both(family)
    handle = pipe.enable_sparse_attention("svg2", density=0.4, **ALWAYS)
    first = run(pipe, inputs)
    records = len(handle.stats().records)
    assert torch.equal(run(pipe, inputs), first), "state leaked from one generation to the next"
    assert len(handle.stats().records) == records


@families
def test_disabling_restores_every_bit(family):
    pipe, inputs = both(family)
    dense = run(pipe, inputs)
    processors = {name: id(p) for name, p in pipe.transformer.attn_processors.items()}
    with dit_sparse.sparse_attention(pipe, "svg2", density=0.3, **ALWAYS) as handle:
        assert not torch.equal(run(pipe, inputs), dense)
        assert handle.active
    assert not handle.active
    assert torch.equal(run(pipe, inputs), dense)
    assert {name: id(p) for name, p in pipe.transformer.attn_processors.items()} == processors
    assert not pipe.transformer._forward_pre_hooks
    with pytest.raises(RuntimeError, match="boom"), dit_sparse.sparse_attention(pipe, "draft", **ALWAYS):
        raise RuntimeError("boom")
    assert torch.equal(run(pipe, inputs), dense)
    pipe.disable_sparse_attention()  # harmless when nothing is enabled


@families
def test_dense_guard_is_exactly_dense(family):
    pipe, inputs = both(family)
    dense = run(pipe, inputs)
    guards = {"dense_steps": [0, 1, 2, 3]}, {"dense_layers": "0-1"}, {"min_tokens": 10_000}
    for guard, reason in zip(guards, ("dense_step", "dense_layer", "min_tokens"), strict=True):
        with dit_sparse.sparse_attention(pipe, "draft", **(ALWAYS | guard)) as handle:
            assert torch.equal(run(pipe, inputs), dense)
            stats = handle.stats()
            assert set(stats.dense_sites) == {reason}
            assert stats.density_total == 1.0
            assert stats.density_sparse_sites is None
            assert stats.fallbacks == []


@families
def test_a_batch_equals_its_samples(family):
    pipe, inputs = both(family, 2)
    latents = torch.randn(run(pipe, inputs).shape, generator=torch.Generator().manual_seed(3))
    with dit_sparse.sparse_attention(pipe, "svg2", density=0.5, **ALWAYS):
        together = run(pipe, inputs | {"latents": latents})
        for i in range(2):
            one = {k: v[i : i + 1] if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
            alone = run(pipe, one | {"latents": latents[i : i + 1]})
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-3, atol=1e-3)


def test_padded_text_of_different_lengths():
    pipe, inputs = hunyuan_video_pipeline(), hunyuan_video_inputs(2, valid=(4, 11))
    dense = run(pipe, inputs)
    with dit_sparse.sparse_attention(pipe, "svg2", density=1.0, strict=True, **ALWAYS):
        torch.testing.assert_close(run(pipe, inputs), dense, rtol=1e-3, atol=1e-3)
    with dit_sparse.sparse_attention(pipe, "draft", density=0.5, strict=True, **ALWAYS) as handle:
        assert torch.isfinite(run(pipe, inputs)).all()
        assert handle.stats().fallbacks == []


def test_any_resolution_and_frame_count():
    pipe = wan_pipeline()
    for height, width, frames in ((48, 80, 5), (64, 16, 1), (144, 96, 13)):
        inputs = wan_inputs() | {"height": height, "width": width, "num_frames": frames}
        dense = run(pipe, inputs)
        with dit_sparse.sparse_attention(pipe, "draft", density=1.0, **ALWAYS):
            torch.testing.assert_close(run(pipe, inputs), dense, rtol=1e-3, atol=1e-3)


def test_cogvideox_1_5_patches_time():
    pipe, inputs = both("cogvideox", patch_size_t=2, use_learned_positional_embeddings=False)
    inputs["num_frames"] = 13
    dense = run(pipe, inputs)
    with dit_sparse.sparse_attention(pipe, "svg2", density=1.0, **ALWAYS) as handle:
        torch.testing.assert_close(run(pipe, inputs), dense, rtol=1e-3, atol=1e-3)
        assert handle.stats().fallbacks == []


@families
def test_head_sizes_are_those_of_the_model(family):
    """Methods and the summary's kernel go by them."""
    transformer = FAMILIES[family][0]().transformer
    assert head_dim(transformer) == transformer.config.attention_head_dim > 0


def test_without_a_method_the_recommended_one_runs():
    with dit_sparse.sparse_attention(wan_pipeline()) as handle:
        assert handle.config == make_method("mosaic")


@pytest.mark.parametrize(("steps", "dense"), [(2, {0}), (3, {0}), (4, {0, 2}), (6, {0, 1, 3})])
def test_short_runs_do_not_learn_for_nothing(steps, dense):
    """Neither twice in a row nor in the last step."""
    pipe, inputs = both("wan")
    with dit_sparse.sparse_attention(pipe, "mosaic", density=0.5, min_tokens=0, block_size=16) as handle:
        run(pipe, inputs | {"num_inference_steps": steps})
        found = {r.site.step for r in handle.stats().records if r.dense_reason is not None}
    assert found == dense


def test_both_experts_of_wan_2_2():
    pipe, inputs = both("wan", experts=2)
    dense = run(pipe, inputs)
    handle = pipe.enable_sparse_attention("svg2", density=0.5, **ALWAYS)
    assert not torch.equal(run(pipe, inputs), dense)
    records = handle.stats().records
    steps = {
        name: {r.site.step for r in records if r.site.transformer == name}
        for name in ("transformer", "transformer_2")
    }
    assert steps["transformer"] | steps["transformer_2"] == {0, 1, 2, 3}
    assert steps["transformer"]
    assert steps["transformer_2"]
    assert not steps["transformer"] & steps["transformer_2"]
    pipe.disable_sparse_attention()
    assert torch.equal(run(pipe, inputs), dense)


@pytest.mark.parametrize("experts", [1, 2])
def test_a_generation_knows_nothing_of_the_one_before(experts):
    """Also where another transformer begins than the one that ended, and learns only once."""
    pipe, inputs = both("wan", experts=experts)
    latents = torch.randn(run(pipe, inputs).shape, generator=torch.Generator().manual_seed(5))
    other = inputs | {"latents": latents}
    setting = ALWAYS | {"density": 0.5, "relearn": None, "dense_steps": 1}
    with dit_sparse.sparse_attention(pipe, "mosaic", **setting) as handle:
        expected = run(pipe, other)
        sites = [record.site for record in handle.stats().records]
    with dit_sparse.sparse_attention(pipe, "mosaic", **setting) as handle:
        assert not torch.equal(run(pipe, inputs), expected)
        assert torch.equal(run(pipe, other), expected)
        assert [record.site for record in handle.stats().records] == sites


def test_an_expert_gives_back_what_it_carries_when_the_other_takes_over():
    pipe, inputs = both("wan", experts=2)
    experts, held = ("transformer", "transformer_2"), []
    with dit_sparse.sparse_attention(pipe, "mosaic", density=0.5, **ALWAYS) as handle:
        state = handle.runtimes[0].state
        hooks = [
            getattr(pipe, name).register_forward_hook(
                lambda *_: held.append([state.nbytes_of(one) for one in experts])
            )
            for name in experts
        ]
        run(pipe, inputs)
        for hook in hooks:
            hook.remove()
        assert held[0][0] > 0 == held[0][1]
        assert held[-1][1] > 0 == held[-1][0]
        assert handle.stats().state_bytes == max(first + second for first, second in held)


def image(width=112, height=80):
    return Image.effect_noise((width, height), 60).convert("RGB")


def test_wan_image_and_video_to_video():
    image_to_video = WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        image_encoder=None,
        image_processor=None,
        vae=wan_vae(),
        scheduler=wan_scheduler(),
        transformer=wan_transformer(in_channels=36),
    )
    video_to_video = WanVideoToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=wan_vae(),
        scheduler=wan_scheduler(),
        transformer=wan_transformer(),
    )
    picture = image()
    cases = (
        (image_to_video, wan_inputs() | {"image": picture}),
        (
            video_to_video,
            {k: v for k, v in wan_inputs().items() if k != "num_frames"}
            | {"video": [picture] * 9, "strength": 0.8},
        ),
    )
    for pipe, inputs in cases:
        pipe.set_progress_bar_config(disable=True)
        dense = run(pipe, inputs)
        with dit_sparse.sparse_attention(pipe, "svg2", density=1.0, strict=True, **ALWAYS) as handle:
            torch.testing.assert_close(run(pipe, inputs), dense, rtol=1e-3, atol=1e-3)
            assert min(r.site.step for r in handle.stats().records) == 0
        assert torch.equal(run(pipe, inputs), dense)


def test_cogvideox_image_and_video_to_video():
    text = cogvideox_pipeline()
    parts = {"tokenizer": None, "text_encoder": None, "vae": text.vae, "scheduler": text.scheduler}
    learned = cogvideox_transformer(in_channels=8, use_learned_positional_embeddings=True)
    image_to_video = CogVideoXImageToVideoPipeline(**parts, transformer=learned)
    video_to_video = CogVideoXVideoToVideoPipeline(**parts, transformer=text.transformer)
    inputs = cogvideox_inputs()
    del inputs["max_sequence_length"]
    pictures = [image() for _ in range(9)]
    cases = (
        (image_to_video, inputs | {"image": pictures[0], "max_sequence_length": 16}),
        (
            video_to_video,
            {k: v for k, v in inputs.items() if k != "num_frames"}
            | {"video": pictures, "max_sequence_length": 16},
        ),
    )
    for pipe, given in cases:
        pipe.set_progress_bar_config(disable=True)
        dense = run(pipe, given)
        with dit_sparse.sparse_attention(pipe, "draft", density=1.0, strict=True, **ALWAYS):
            torch.testing.assert_close(run(pipe, given), dense, rtol=1e-3, atol=1e-3)
        assert torch.equal(run(pipe, given), dense)


@pytest.mark.parametrize(("kind", "channels"), [("token_replace", 4), ("latent_concat", 9)])
def test_hunyuan_video_image_to_video(kind, channels):
    text = hunyuan_video_pipeline()
    pipe = HunyuanVideoImageToVideoPipeline(
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        image_processor=None,
        vae=text.vae,
        scheduler=text.scheduler,
        transformer=hunyuan_video_transformer(image_condition_type=kind, in_channels=channels),
    )
    pipe.set_progress_bar_config(disable=True)
    inputs = hunyuan_video_inputs() | {"image": image()}
    dense = run(pipe, inputs)
    with dit_sparse.sparse_attention(pipe, "svg2", density=1.0, strict=True, **ALWAYS):
        torch.testing.assert_close(run(pipe, inputs), dense, rtol=1e-3, atol=1e-3)
    assert torch.equal(run(pipe, inputs), dense)


def test_a_backend_set_after_attaching_serves_the_dense_calls():
    pipe, inputs = both("wan")
    handle = pipe.enable_sparse_attention("svg2", density=0.4, **(ALWAYS | {"dense_steps": 2}))
    expected = run(pipe, inputs)
    pipe.transformer.set_attention_backend("_native_math")
    try:
        torch.testing.assert_close(run(pipe, inputs), expected, rtol=1e-3, atol=1e-3)
        assert handle.stats().density_sparse_sites < 0.6, "the swap lost the sparse path"
        handle.disable()
        backends = {p._attention_backend for p in pipe.transformer.attn_processors.values()}
        assert backends == {AttentionBackendName._NATIVE_MATH}
    finally:
        pipe.transformer.reset_attention_backend()


@pytest.mark.parametrize("family", ["wan", "cogvideox"])
def test_fusing_qkv_after_attaching_keeps_the_sparse_path(family):
    pipe, inputs = both(family)
    dense = run(pipe, inputs)
    handle = pipe.enable_sparse_attention("svg2", density=0.4, **ALWAYS)
    sparse = run(pipe, inputs)
    pipe.transformer.fuse_qkv_projections()
    torch.testing.assert_close(run(pipe, inputs), sparse, rtol=1e-3, atol=1e-3)
    assert handle.stats().density_sparse_sites < 0.6
    handle.disable()
    torch.testing.assert_close(run(pipe, inputs), dense, rtol=1e-4, atol=1e-4)
    pipe.transformer.unfuse_qkv_projections()
    assert torch.equal(run(pipe, inputs), dense)


@families
def test_offload_hooks_that_come_and_go(family):
    """Model CPU offload replaces the forward before a run and puts it back after it."""
    pipe, inputs = both(family)
    handle = pipe.enable_sparse_attention("svg2", density=0.4, **ALWAYS)
    expected = run(pipe, inputs)
    for _ in range(2):
        add_hook_to_module(pipe.transformer, AlignDevicesHook(execution_device="cpu"))
        assert torch.equal(run(pipe, inputs), expected)
        assert handle.stats().density_sparse_sites < 0.6
        remove_hook_from_module(pipe.transformer)


def test_a_bare_transformer():
    transformer = wan_transformer()
    given = {
        "hidden_states": embeddings(1, 16, 3, 10, 14),
        "encoder_hidden_states": embeddings(1, 12, 32, seed=1),
        "return_dict": False,
    }
    with torch.no_grad(), dit_sparse.sparse_attention(transformer, "svg2", density=0.5, **ALWAYS) as handle:
        for t in (900, 900, 100, 100):
            transformer(timestep=torch.tensor([t]), **given)
    sites = [(r.site.step, r.site.branch) for r in handle.stats().records if r.site.layer == 0]
    assert sites == [(0, "conditional"), (0, "unconditional"), (1, "conditional"), (1, "unconditional")]


def graphs_when_compiled(pipe, inputs):
    """Generate with every block compiled; latents, and how many graphs that took."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    blocks = (
        pipe.transformer.blocks
        if hasattr(pipe.transformer, "blocks")
        else pipe.transformer.transformer_blocks
    )
    for block in blocks:
        block.compile(fullgraph=True, backend="aot_eager")
    latents = run(pipe, inputs)
    for block in blocks:
        block._compiled_call_impl = None
    return latents, torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("family", ["wan", "cogvideox"])
def test_compiled_blocks_need_no_more_graphs_than_dense(family):
    """fullgraph: attention is one operator in the graph, and no layer makes torch.compile specialise."""
    pipe, inputs = both(family, **{"layers" if family == "wan" else "num_layers": 4})
    _, dense_graphs = graphs_when_compiled(pipe, inputs)
    handle = pipe.enable_sparse_attention("svg2", density=0.4, **ALWAYS)
    expected = run(pipe, inputs)
    compiled, graphs = graphs_when_compiled(pipe, inputs)
    torch.testing.assert_close(compiled, expected, rtol=1e-3, atol=1e-3)
    assert graphs == dense_graphs <= 2
    assert handle.stats().density_sparse_sites < 0.6


def test_own_composition_and_configurations():
    pipe, inputs = both("wan")
    own = SparseMethod("mine", TopK(0.5, "row"), schedule=Schedule(min_tokens=0), block_size=16)
    for method in (own, SVG2(density=0.5, **ALWAYS), Draft(density=0.5, **ALWAYS)):
        with dit_sparse.sparse_attention(pipe, method) as handle:
            run(pipe, inputs)
            assert handle.stats().density_sparse_sites == pytest.approx(0.5, rel=0.2)


def test_refresh_interval_reuses_plans():
    pipe, inputs = both("wan")
    with dit_sparse.sparse_attention(pipe, "svg2", density=0.5, refresh_interval=2, **ALWAYS) as handle:
        run(pipe, inputs)
        stats = handle.stats()
    seen = [
        [r.density for r in stats.records if (r.site.layer, r.site.branch) == (0, b)]
        for b in ("conditional", "unconditional")
    ]
    for densities in seen:
        assert densities[0] == densities[1]
        assert densities[2] == densities[3]
    assert stats.state_bytes > 0


def test_errors_say_what_would_work():
    pipe = wan_pipeline()
    with pytest.raises(ValueError, match="unknown method 'svg9'.*draft.*svg2"):
        pipe.enable_sparse_attention("svg9")
    with pytest.raises(ValueError, match="no field 'topp'.*top_p"):
        pipe.enable_sparse_attention("svg2", topp=0.5)
    with pytest.raises(ValueError, match="density must be in .*got 25"):
        pipe.enable_sparse_attention("svg2", density=25)
    with pytest.raises(ValueError, match="backend='warp'.*reference"):
        pipe.enable_sparse_attention("svg2", backend="warp")
    with pytest.raises(ValueError, match=r"Linear is not a transformer.*register_adapter"):
        dit_sparse.enable_sparse_attention(torch.nn.Linear(2, 2))
    pipe.enable_sparse_attention("svg2")
    with pytest.raises(ValueError, match="already"):
        pipe.enable_sparse_attention("draft")
    assert not any(name.startswith("Sparse") for name in dir(AttentionBackendName))


def test_a_mask_runs_dense_and_is_reported():
    transformer = wan_transformer()
    block = transformer.blocks[0].attn1
    given = {
        "hidden_states": embeddings(1, 16, 3, 10, 14),
        "encoder_hidden_states": embeddings(1, 12, 32, seed=1),
        "timestep": torch.tensor([5]),
    }
    original = block.forward
    block.forward = lambda *a, **k: original(a[0], None, torch.ones(1, 1, 1, 105, dtype=torch.bool), a[3])
    with torch.no_grad(), dit_sparse.sparse_attention(transformer, "svg2", density=0.5, **ALWAYS) as handle:
        transformer(**given)
        assert len(handle.stats().fallbacks) == 1
        assert "mask" in handle.stats().fallbacks[0]
    with torch.no_grad(), dit_sparse.sparse_attention(transformer, "svg2", strict=True, **ALWAYS):
        with pytest.raises(RuntimeError, match="mask"):
            transformer(**given)


@families
def test_compile_blocks_covers_every_attention_layer(family):
    pipe, _ = both(family)
    compile_blocks(pipe)
    compiled = {
        path for path, module in pipe.transformer.named_modules() if module._compiled_call_impl is not None
    }
    layers = find_adapter(pipe.transformer).attention_layers(pipe.transformer)
    assert compiled == {path.rpartition(".")[0] for path, _ in layers}
    assert len(compiled) == 2
