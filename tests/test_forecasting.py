"""The forecast: its counts against torch's own, its times against arithmetic by hand."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import dit_sparse
from dit_sparse.forecasting import attainable, forecast
from dit_sparse.work import ELEMENTWISE_PASSES, Rates, longest_prompt, work_of

ONE = Rates(1.0, 1.0, 1.0, "by hand")
SIZE = {"height": 160, "width": 224, "num_frames": 17}


def counted_flops(family: str, pipe) -> tuple[float, float]:
    """(products inside of attention, linear layers) of one forward of the real pipeline, by torch."""
    inputs = tiny.FAMILIES[family][1]() | SIZE | {"num_inference_steps": 1}
    if family == "hunyuan_video":
        inputs["prompt_attention_mask"] = torch.ones_like(inputs["prompt_attention_mask"])
    counts: list[FlopCounterMode] = []

    def begin(*_):
        counts.append(FlopCounterMode(display=False))
        counts[-1].__enter__()

    pipe.transformer.register_forward_pre_hook(begin)
    pipe.transformer.register_forward_hook(lambda *_: counts[-1].__exit__(None, None, None))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # others are opaque to the counter on the CPU
        pipe(**inputs, generator=torch.Generator().manual_seed(0))
    by_op = counts[0].get_flop_counts()["Global"]
    aten = torch.ops.aten
    return float(by_op[aten.bmm]), float(by_op.get(aten.mm, 0) + by_op.get(aten.addmm, 0))


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_counts_agree_with_torch_s_flop_counter(family):
    pipe = tiny.FAMILIES[family][0]()
    text = tiny.FAMILIES[family][1]()["prompt_embeds"].shape[1]
    samples = 2 if family == "cogvideox" else 1  # guidance in one batch
    attention, linear = counted_flops(family, pipe)
    work = work_of(pipe, **SIZE, text_tokens=text)
    cross = 4 * work.layout.video_tokens * text * 32 * 2 if family == "wan" else 0  # 2 layers, 32 channels
    assert samples * (work.attention_flops + cross) == pytest.approx(attention, rel=0.01)
    assert samples * (work.linear_flops - cross) == pytest.approx(linear, rel=0.03)


def test_wan_by_hand():
    # Latents 5 x 20 x 28, tokens 5 x 10 x 14 = 700; two layers of two heads of 16: 32 channels.
    work = work_of(tiny.wan_pipeline(), **SIZE, text_tokens=12)
    assert work.layout.grid == (5, 10, 14)
    assert work.layers == 2
    assert work.attention_flops == 2 * (4 * 700 * 700 * 32)
    video = 2 * 700 * (6 * 32 * 32 + 2 * 32 * 64)  # self-attention 4, cross-attention 2, feed-forward
    text = 2 * 12 * (2 * 32 * 32)
    cross = 4 * 700 * 12 * 32
    # Outside of the blocks: text 32 -> 32 -> 32, time 32 -> 32 -> 32 -> 192, output 32 -> 64.
    outside = 2 * 12 * (2 * 32 * 32) + 2 * (2 * 32 * 32 + 32 * 192) + 2 * 700 * 32 * 64
    assert work.linear_flops == 2 * (video + text + cross) + outside
    assert work.elementwise_bytes == ELEMENTWISE_PASSES["eager"] * 2 * 700 * 32 * 4
    compiled = work_of(tiny.wan_pipeline(), **SIZE, text_tokens=12, compiled=True)
    assert compiled.elementwise_bytes == ELEMENTWISE_PASSES["compiled"] * 2 * 700 * 32 * 4


def test_forecast_equals_hand_arithmetic():
    pipe = tiny.wan_pipeline()
    work = work_of(pipe, **SIZE, text_tokens=12)
    rates = Rates(2.0, 4.0, 8.0, "by hand")
    made = forecast(
        pipe,
        **SIZE,
        density=0.25,
        steps=10,
        dense_steps=0.2,
        dense_layers=[1],
        text_tokens=12,
        planning=0.1,
        rates=rates,
    )
    # 20 forwards. Of 10 steps x 2 layers 2 x 2 are dense steps, and layer 1 of the other 8: 12 of 20.
    attention, linear = 20 * work.attention_flops / 2, 20 * work.linear_flops / 4
    element = 20 * work.elementwise_bytes / 8
    assert (made.attention_s, made.linear_s, made.elementwise_s) == (attention, linear, element)
    assert made.density_total == pytest.approx(0.6 + 0.4 * 0.25)
    assert made.planning_s == pytest.approx(0.1 * 0.4 * attention)
    sparse_attention = attention * 0.7 + 0.04 * attention
    assert made.speedup_attention == pytest.approx(1 / 0.74)
    assert made.dense_s == pytest.approx(attention + linear + element)
    assert made.sparse_s == pytest.approx(sparse_attention + linear + element)
    assert made.speedup_transformer == pytest.approx(made.dense_s / made.sparse_s)
    assert made.limit == pytest.approx(made.dense_s / (linear + element))
    assert "0.700 with the dense guard" in str(made)


def test_the_package_offers_the_function_whatever_was_imported_before():
    assert dit_sparse.forecast is forecast
    assert dit_sparse.Rates is Rates


def test_attainable_is_amdahl():
    assert attainable(10.0, 8.0, 0.25) == pytest.approx(10 / (2 + 2))
    assert attainable(10.0, 8.0, 1.0) == 1.0
    assert attainable(10.0, 8.0, 0.25, planning_s=1.0) == pytest.approx(2.0)


def test_rates_of_a_dense_run_give_its_times_back():
    pipe = tiny.wan_pipeline()
    work = work_of(pipe, **SIZE, text_tokens=12)
    rates = work.rates(attention_s=3.0, linear_s=2.0, rest_s=1.0, forwards=8)
    made = forecast(pipe, **SIZE, density=1.0, steps=4, text_tokens=12, rates=rates)
    assert (made.attention_s, made.linear_s, made.elementwise_s) == pytest.approx((3.0, 2.0, 1.0))
    larger = forecast(pipe, **(SIZE | {"num_frames": 37}), density=1.0, steps=4, text_tokens=12, rates=rates)
    assert larger.attention_s == pytest.approx(3.0 * 2**2)  # ten latent frames instead of five


def test_frames_are_padded_to_the_temporal_patch():
    pipe = tiny.cogvideox_pipeline(patch_size_t=2, use_rotary_positional_embeddings=True)
    layout = work_of(pipe, height=80, width=112, num_frames=9, text_tokens=16).layout
    assert layout.grid == (2, 5, 7)  # three latent frames, padded to four
    assert (layout.text_tokens, layout.text_position) == (16, "first")


def test_the_longest_prompt_is_the_pipeline_s():
    assert longest_prompt(tiny.wan_pipeline()) == 512


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"density": 0.0}, r"density must be in \(0, 1\], got 0.0"),
        ({"density": 1.5}, r"density must be in \(0, 1\], got 1.5"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"samples_per_step": 0}, "samples_per_step must be at least 1, got 0"),
        ({"planning": -0.1}, "planning must be a share >= 0, got -0.1"),
        ({"height": 3}, "no video has 17 frames of 3 x 224 pixels"),
        ({"rates": None}, r"no rates are known for 'cpu' .*pass rates=Rates"),
        ({"dense_steps": -1}, "dense_steps must not be negative, got -1"),
    ],
)
def test_bad_questions_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        forecast(tiny.wan_pipeline(), **({**SIZE, "density": 0.5, "steps": 4, "rates": ONE} | wrong))


def test_a_bare_transformer_and_a_rate_of_nothing_are_refused():
    with pytest.raises(ValueError, match="WanTransformer3DModel does not tell how its autoencoder scales"):
        work_of(tiny.wan_transformer(), **SIZE, text_tokens=12)
    with pytest.raises(ValueError, match="linear must be a rate above 0, got 0"):
        Rates(1.0, 0.0, 1.0, "nothing")
