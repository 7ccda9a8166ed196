"""What belongs to one generation, and what happens around it: other pipelines, schedulers and prompts on the
same transformer, gradients, copies. Real diffusers classes at a tiny size."""

import copy
import gc
import weakref
from dataclasses import replace

import pytest
import torch
from diffusers import WanPipeline, WanVideoToVideoPipeline
from PIL import Image
from tiny import (
    FAMILIES,
    hunyuan_video_inputs,
    hunyuan_video_pipeline,
    run,
    wan_inputs,
    wan_pipeline,
    wan_scheduler,
)

import dit_sparse

STEPS = 10
MOSAIC = {"method": "mosaic", "density": 0.5, "min_tokens": 0, "block_size": 16}
families = pytest.mark.parametrize("family", FAMILIES)


def forwards(handle, branches=2):
    """Dense calls by reason, of one layer and branch."""
    return {reason: count // branches // 2 for reason, count in handle.stats().dense_sites.items()}


@pytest.mark.parametrize("negative", [7, 4, 11])
def test_branches_of_unequal_text_length_run_sparse(negative):
    pipe, inputs = hunyuan_video_pipeline(), hunyuan_video_inputs() | {"num_inference_steps": STEPS}
    mask = torch.zeros_like(inputs["prompt_attention_mask"])
    mask[:, :negative] = 1
    inputs |= {"negative_prompt_attention_mask": mask, "true_cfg_scale": 4.0}
    with dit_sparse.sparse_attention(pipe, **MOSAIC, strict=True) as handle:
        run(pipe, inputs)
        assert {r.site.branch for r in handle.stats().records} == {"conditional", "unconditional"}
        # A search of its own for either length; shared blocks need it for the residual of each.
        assert forwards(handle) == {"dense_step": 2, "observed": 1}
        assert handle.stats().density_sparse_sites == pytest.approx(0.5, abs=0.1)


@families
def test_inference_mode(family):
    make, inputs = FAMILIES[family]
    pipe = make()
    dense = run(pipe, inputs())
    with dit_sparse.sparse_attention(pipe, **MOSAIC) as handle, torch.inference_mode():
        given = {name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in inputs().items()}
        assert not torch.equal(run(pipe, given), dense)
        assert handle.stats().fallbacks == []


def noise():
    """Latents of Wan's tiny inputs."""
    return torch.randn(1, 16, 3, 10, 14, generator=torch.Generator().manual_seed(5))


def other_run():
    return wan_inputs() | {"num_inference_steps": STEPS, "latents": noise()}


def test_a_pipeline_with_another_scheduler_starts_anew():
    first = wan_pipeline()
    second = WanPipeline.from_pipe(first, scheduler=wan_scheduler())
    with dit_sparse.sparse_attention(first, **MOSAIC, dense_steps=1) as handle:
        run(first, wan_inputs() | {"num_inference_steps": STEPS})
        for _ in range(2):
            run(second, other_run())
            # Its number of steps is not known: nothing is learnt again.
            assert forwards(handle) == {"dense_step": 1}
            assert [r.site.step for r in handle.stats().records[:: 2 * 2]] == list(range(STEPS))
        run(first, other_run())
        assert {r.site.num_steps for r in handle.stats().records} == {STEPS}


def test_a_pipeline_made_of_the_parts_goes_on_with_the_scheduler():
    pipe = wan_pipeline()
    handle = pipe.enable_sparse_attention(**MOSAIC)
    expected = run(pipe, other_run())
    gone = weakref.ref(pipe)
    pipe = WanPipeline.from_pipe(pipe)
    gc.collect()
    assert gone() is None
    assert torch.equal(run(pipe, other_run()), expected)
    assert {r.site.num_steps for r in handle.stats().records} == {STEPS}


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_video_to_video_counts_its_own_steps(strength):
    parts = wan_pipeline()
    pipe = WanVideoToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=parts.vae,
        scheduler=parts.scheduler,
        transformer=parts.transformer,
    )
    pipe.set_progress_bar_config(disable=True)
    inputs = {name: x for name, x in wan_inputs().items() if name != "num_frames"}
    video = [Image.effect_noise((112, 80), 60).convert("RGB") for _ in range(9)]
    with dit_sparse.sparse_attention(pipe, **MOSAIC) as handle:
        run(pipe, inputs | {"video": video, "strength": strength, "num_inference_steps": 2 * STEPS})
        steps = round(2 * STEPS * strength)
        records = handle.stats().records
        assert {r.site.num_steps for r in records} == {steps}
        assert [r.site.step for r in records[:: 2 * 2]] == list(range(steps))


def test_a_loop_that_only_borrows_the_timesteps():
    pipe = wan_pipeline()
    inputs = wan_inputs()
    latents = noise()
    with dit_sparse.sparse_attention(pipe, **MOSAIC) as handle, torch.no_grad():
        pipe.scheduler.set_timesteps(STEPS)
        for timestep in pipe.scheduler.timesteps:
            for text in (inputs["prompt_embeds"], inputs["negative_prompt_embeds"]):
                pipe.transformer(latents, timestep.expand(1), text)
        records = handle.stats().records
        assert [r.site.step for r in records[:: 2 * 2]] == list(range(STEPS))
        assert any(r.dense_reason is None for r in records)


def test_a_dropped_pipeline_is_freed():
    pipe = wan_pipeline()
    handle = pipe.enable_sparse_attention(**MOSAIC)
    run(pipe, wan_inputs())
    transformer = weakref.ref(pipe.transformer)
    del handle
    gc.collect()
    assert not torch.equal(run(pipe, wan_inputs()), run(wan_pipeline(), wan_inputs())), "still attached"
    with pytest.raises(ValueError, match="enabled on this .* already"):
        pipe.enable_sparse_attention(**MOSAIC)
    del pipe
    gc.collect()
    assert transformer() is None


def gradients(transformer):
    inputs = wan_inputs()
    latents = noise()
    transformer.zero_grad()
    out = transformer(latents, torch.tensor([500]), inputs["prompt_embeds"], return_dict=False)[0]
    out.square().mean().backward()
    return [p.grad.clone() for p in transformer.blocks[0].attn1.parameters() if p.grad is not None]


def test_gradients_are_those_of_dense_attention_and_reported():
    transformer = wan_pipeline().transformer.requires_grad_(True)
    expected = gradients(transformer)
    with dit_sparse.sparse_attention(transformer, **MOSAIC, dense_steps=0) as handle:
        found = gradients(transformer)
        assert len(found) == len(expected)
        for got, wanted in zip(found, expected, strict=True):
            assert torch.equal(got, wanted)
        assert "torch.no_grad()" in handle.stats().fallbacks[0]
    with (
        dit_sparse.sparse_attention(transformer, **MOSAIC, dense_steps=0, strict=True),
        pytest.raises(RuntimeError, match="gradients"),
    ):
        gradients(transformer)


def test_a_copy_is_refused_with_what_helps():
    pipe = wan_pipeline()
    with (
        dit_sparse.sparse_attention(pipe, **MOSAIC),
        pytest.raises(TypeError, match="disable_sparse_attention"),
    ):
        copy.deepcopy(pipe.transformer)
    copied = wan_pipeline()
    copied.transformer = copy.deepcopy(pipe.transformer)
    assert torch.equal(run(copied, wan_inputs()), run(pipe, wan_inputs()))


def test_reset_starts_a_generation_on_a_bare_transformer():
    inputs = wan_inputs()
    latents = noise()
    transformer = wan_pipeline().transformer
    texts = (inputs["prompt_embeds"], inputs["negative_prompt_embeds"])

    @torch.no_grad()
    def forward(timestep, text):
        return transformer(latents, torch.tensor([timestep]), text, return_dict=False)[0]

    def generate():
        return torch.stack([forward(t, text) for t in (999, 700, 400, 100) for text in texts])

    with dit_sparse.sparse_attention(transformer, **MOSAIC, dense_steps=1):
        expected = generate()
    with dit_sparse.sparse_attention(transformer, **MOSAIC, dense_steps=1) as handle:
        forward(999, texts[0])  # a warm-up at the first timestep
        handle.reset()
        assert torch.equal(generate(), expected)
        branches = [r.site.branch for r in handle.stats().records[::2]]
        assert branches == ["conditional", "unconditional"] * 4


@families
def test_autocast(family):
    make, inputs = FAMILIES[family]
    pipe = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        dense = run(pipe, inputs())
        with dit_sparse.sparse_attention(pipe, **(MOSAIC | {"density": 1.0}), dense_steps=0) as handle:
            sparse = run(pipe, inputs())
            assert handle.stats().fallbacks == []
    assert (sparse - dense).norm() < 0.02 * dense.norm()  # rounding, amplified by random weights


@pytest.mark.parametrize("never", [{"dense_layers": [0, 1]}, {"min_tokens": 10**6}], ids=str)
def test_layers_that_never_run_sparse_learn_nothing(never):
    pipe = wan_pipeline()
    with dit_sparse.sparse_attention(pipe, **(MOSAIC | never)) as handle:
        run(pipe, wan_inputs())
        assert handle.stats().state_bytes == 0


def test_carried_bytes_are_those_of_the_last_generation():
    pipe = wan_pipeline()
    small = wan_inputs() | {"height": 48, "width": 64}
    with dit_sparse.sparse_attention(pipe, **MOSAIC) as handle:
        run(pipe, small)
        expected = handle.stats().state_bytes
        run(pipe, wan_inputs())
        assert handle.stats().state_bytes > expected > 0
        run(pipe, small)
        assert handle.stats().state_bytes == expected


def test_branches_reshape_by_their_own_ratio():
    pipe, inputs = wan_pipeline(), wan_inputs() | {"num_inference_steps": STEPS}
    with dit_sparse.sparse_attention(pipe, **MOSAIC, correction="reshape_residual") as handle:
        run(pipe, inputs)
        keys = {key for key in handle.runtimes[0].state.layer(site(handle)).values if "reshape" in key}
    assert keys == {
        f"reshape.{what}.{branch}"
        for what in ("rho", "step", "residual")
        for branch in ("conditional", "unconditional")
    }


def site(handle):
    """Where branches that share their blocks keep them."""
    return replace(handle.stats().records[-1].site, branch="batched")
