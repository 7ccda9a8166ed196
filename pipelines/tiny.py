"""Real diffusers pipelines at tiny random configurations, made offline, run with prompt embeddings.

What `--tiny` of the recipes and the tests run: it shows that a path works, not what a trained model would
draw.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)


def embeddings(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wan_transformer(layers: int = 2, **config: Any) -> WanTransformer3DModel:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 32,
        "freq_dim": 32,
        "ffn_dim": 64,
        "num_layers": layers,
        "rope_max_seq_len": 64,
    }
    return WanTransformer3DModel(**(settings | config)).eval()


def wan_vae() -> AutoencoderKLWan:
    torch.manual_seed(1)
    return AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    ).eval()


def wan_scheduler() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def wan_pipeline(*, experts: int = 1, **config: Any) -> WanPipeline:
    second = wan_transformer(**config) if experts == 2 else None
    pipe = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=wan_vae(),
        scheduler=wan_scheduler(),
        transformer=wan_transformer(**config),
        transformer_2=second,
        boundary_ratio=0.7 if experts == 2 else None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def wan_inputs(batch: int = 1) -> dict[str, Any]:
    return {
        "prompt_embeds": embeddings(batch, 12, 32),
        "negative_prompt_embeds": embeddings(batch, 12, 32, seed=1),
        "height": 80,
        "width": 112,
        "num_frames": 9,
        "num_inference_steps": 4,
        "output_type": "latent",
    }


def cogvideox_transformer(**config: Any) -> CogVideoXTransformer3DModel:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 2,
        "text_embed_dim": 32,
        "num_layers": 2,
        "sample_width": 14,
        "sample_height": 10,
        "sample_frames": 9,
        "patch_size": 2,
        "temporal_compression_ratio": 4,
        "max_text_seq_length": 16,
        "use_rotary_positional_embeddings": True,
    }
    return CogVideoXTransformer3DModel(**(settings | config)).eval()


def cogvideox_pipeline(**config: Any) -> CogVideoXPipeline:
    transformer = cogvideox_transformer(**config)
    torch.manual_seed(1)
    vae = AutoencoderKLCogVideoX(
        in_channels=3,
        out_channels=3,
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    ).eval()
    pipe = CogVideoXPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae,
        transformer=transformer,
        scheduler=CogVideoXDDIMScheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def cogvideox_inputs(batch: int = 1) -> dict[str, Any]:
    return {
        "prompt_embeds": embeddings(batch, 16, 32),
        "negative_prompt_embeds": embeddings(batch, 16, 32, seed=1),
        "height": 80,
        "width": 112,
        "num_frames": 9,
        "num_inference_steps": 4,
        "max_sequence_length": 16,
        "output_type": "latent",
    }


def hunyuan_video_transformer(**config: Any) -> HunyuanVideoTransformer3DModel:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "patch_size": 2,
        "patch_size_t": 1,
        "guidance_embeds": True,
        "text_embed_dim": 16,
        "pooled_projection_dim": 8,
        "rope_axes_dim": (4, 6, 6),
    }
    return HunyuanVideoTransformer3DModel(**(settings | config)).eval()


def hunyuan_video_pipeline(**config: Any) -> HunyuanVideoPipeline:
    transformer = hunyuan_video_transformer(**config)
    torch.manual_seed(1)
    vae = AutoencoderKLHunyuanVideo(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=True,
    ).eval()
    pipe = HunyuanVideoPipeline(
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        vae=vae,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def hunyuan_video_inputs(batch: int = 1, valid: tuple[int, ...] = (7,)) -> dict[str, Any]:
    mask = torch.zeros(batch, 11, dtype=torch.long)
    for row, count in zip(mask, valid * batch):
        row[:count] = 1
    return {
        "prompt_embeds": embeddings(batch, 11, 16),
        "pooled_prompt_embeds": embeddings(batch, 8),
        "prompt_attention_mask": mask,
        "negative_prompt_embeds": embeddings(batch, 11, 16, seed=1),
        "negative_pooled_prompt_embeds": embeddings(batch, 8, seed=1),
        "negative_prompt_attention_mask": mask,
        "true_cfg_scale": 2.0,
        "height": 80,
        "width": 112,
        "num_frames": 9,
        "num_inference_steps": 4,
        "output_type": "latent",
    }


FAMILIES = {
    "wan": (wan_pipeline, wan_inputs),
    "cogvideox": (cogvideox_pipeline, cogvideox_inputs),
    "hunyuan_video": (hunyuan_video_pipeline, hunyuan_video_inputs),
}


def run(pipe: Any, inputs: dict[str, Any], seed: int = 0) -> torch.Tensor:
    """Latents of one generation."""
    with torch.no_grad():
        return pipe(**inputs, generator=torch.Generator().manual_seed(seed)).frames
