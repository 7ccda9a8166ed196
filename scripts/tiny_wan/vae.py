"""The video autoencoder: configuration, and its function over whole clips.

diffusers runs AutoencoderKLWan four frames at a time with a cache of past activations. `encode_clip` and
`decode_clip` walk the same modules over the whole clip: causal zero padding makes it the same function,
faster and differentiable in one graph. Written for `is_residual=True`.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, patchify, unpatchify
from torch import Tensor, nn

TEMPORAL, SPATIAL, CHANNELS, PATCH = 4, 8, 16, 2


def build_vae(base_dim: int) -> AutoencoderKLWan:
    """8x8x4 compression to 16 channels; 2x2 pixels are folded into channels first."""
    return AutoencoderKLWan(
        base_dim=base_dim,
        z_dim=CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[True, True],
        is_residual=True,
        patch_size=PATCH,
        in_channels=12,
        out_channels=12,
        latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS,
        scale_factor_temporal=TEMPORAL,
        scale_factor_spatial=SPATIAL,
    )


def channels_last(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Lay the kernels of 3D convolutions out with channels innermost, as tensor cores want them."""
    for p in vae.parameters():
        if p.ndim == 5:
            p.data = p.data.contiguous(memory_format=torch.channels_last_3d)
    return vae


def encode_clip(vae: AutoencoderKLWan, video: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance [B, 16, 1 + (T - 1) / 4, H / 8, W / 8] of clips [B, 3, T, H, W] in [-1, 1]."""
    encoder = vae.encoder
    x = encoder.conv_in(patchify(video, PATCH))
    for block in encoder.down_blocks:
        shortcut = block.avg_shortcut(x)
        for resnet in block.resnets:
            x = resnet(x)
        if block.downsampler is not None:
            x = _downsample(block.downsampler, x)
        x = x + shortcut
    x = encoder.mid_block(x)
    x = encoder.conv_out(encoder.nonlinearity(encoder.norm_out(x)))
    mean, log_variance = vae.quant_conv(x).chunk(2, dim=1)
    return mean, log_variance.clamp(-30.0, 20.0)


def decode_clip(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Clips [B, 3, T, H, W] of latents [B, 16, t, h, w]; not clamped to [-1, 1], unlike `vae.decode`."""
    decoder = vae.decoder
    x = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(latents)))
    for block in decoder.up_blocks:
        shortcut = None if block.avg_shortcut is None else block.avg_shortcut(x, first_chunk=True)
        for resnet in block.resnets:
            x = resnet(x)
        if block.upsampler is not None:
            x = _upsample(block.upsampler, x)
        if shortcut is not None:
            x = x + shortcut
    x = decoder.conv_out(decoder.nonlinearity(decoder.norm_out(x)))
    return unpatchify(x, PATCH)


def _per_frame(layer: nn.Module, x: Tensor) -> Tensor:
    frames = x.permute(0, 2, 1, 3, 4)
    return layer(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).permute(0, 2, 1, 3, 4)


def _downsample(layer: WanResample, x: Tensor) -> Tensor:
    """Halve height and width; halve time after the first frame, which stays alone."""
    x = _per_frame(layer.resample, x)
    if layer.mode == "downsample3d" and x.shape[2] > 1:
        x = torch.cat([x[:, :, :1], layer.time_conv(x)], dim=2)
    return x


def _upsample(layer: WanResample, x: Tensor) -> Tensor:
    """Double time after the first frame, which skips the temporal convolution; double height and width."""
    if layer.mode == "upsample3d" and x.shape[2] > 1:
        rest = layer.time_conv(x[:, :, 1:])
        even, odd = rest.chunk(2, dim=1)
        x = torch.cat([x[:, :, :1], torch.stack([even, odd], dim=3).flatten(2, 3)], dim=2)
    return _per_frame(layer.resample, x)


def latent_scale(vae: AutoencoderKLWan, device: torch.device) -> tuple[Tensor, Tensor]:
    """`latents_mean` and `latents_std` of the configuration, [1, 16, 1, 1, 1]."""
    mean = torch.tensor(vae.config.latents_mean, device=device).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std, device=device).view(1, -1, 1, 1, 1)
    return mean, std
