"""The video autoencoder: configuration, and its function over whole clips.

diffusers runs AutoencoderKLWan four frames at a time with a cache of past activations. `encode_clip` and
`decode_clip` walk the same modules over the whole clip: causal zero padding makes it the same function,
faster and differentiable in one graph. Channels stay innermost in memory all the way, and on a GPU
normalisation, activation and causal padding are one kernel (`fused_norm`): these activations are so large and
the convolutions so small that memory traffic decides. Written for `is_residual=True`.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify
from torch import Tensor

from .fused_norm import norm_silu_pad, works_on

Autoencoder: TypeAlias = Any  # AutoencoderKLWan; diffusers has no types
TEMPORAL, SPATIAL, CHANNELS, PATCH = 4, 8, 16, 2


def build_vae(base_dim: int) -> Autoencoder:
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


def channels_last(vae: Autoencoder) -> Autoencoder:
    """Lay the kernels of convolutions out with channels innermost, as tensor cores want them."""
    for p in vae.parameters():
        if p.ndim >= 4 and p.shape[0] > 1:
            layout = torch.channels_last_3d if p.ndim == 5 else torch.channels_last
            p.data = p.data.contiguous(memory_format=layout)
    return vae


def encode_clip(vae: Autoencoder, video: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance [B, 16, 1 + (T - 1) / 4, H / 8, W / 8] of clips [B, 3, T, H, W] in [-1, 1]."""
    encoder = vae.encoder
    x = encoder.conv_in(patchify(video, PATCH))
    for block in encoder.down_blocks:
        shortcut = _average(block.avg_shortcut, x)
        for resnet in block.resnets:
            x = _residual(resnet, x)
        if block.downsampler is not None:
            x = _downsample(block.downsampler, x)
        x = x + shortcut
    x = _middle(encoder.mid_block, x)
    x = _norm_silu_conv(encoder.norm_out, encoder.conv_out, x)
    mean, log_variance = vae.quant_conv(x).chunk(2, dim=1)
    return mean, log_variance.clamp(-30.0, 20.0)


def decode_clip(vae: Autoencoder, latents: Tensor) -> Tensor:
    """Clips [B, 3, T, H, W] of latents [B, 16, t, h, w]; not clamped to [-1, 1], unlike `vae.decode`."""
    decoder = vae.decoder
    x = _middle(decoder.mid_block, decoder.conv_in(vae.post_quant_conv(latents)))
    for block in decoder.up_blocks:
        shortcut = None if block.avg_shortcut is None else _duplicate(block.avg_shortcut, x)
        for resnet in block.resnets:
            x = _residual(resnet, x)
        if block.upsampler is not None:
            x = _upsample(block.upsampler, x)
        if shortcut is not None:
            x = x + shortcut
    x = _norm_silu_conv(decoder.norm_out, decoder.conv_out, x)
    return unpatchify(x, PATCH)


def _norm_silu_conv(norm: Any, conv: Any, x: Tensor) -> Tensor:
    """The convolution of the activation of the normalised `x`."""
    if works_on(x):
        return F.conv3d(norm_silu_pad(x, norm.gamma), conv.weight, conv.bias, padding=(0, 1, 1))
    return conv(F.silu(norm(x)))


def _residual(block: Any, x: Tensor) -> Tensor:
    hidden = _norm_silu_conv(block.norm1, block.conv1, x)
    return _norm_silu_conv(block.norm2, block.conv2, hidden) + block.conv_shortcut(x)


def _middle(block: Any, x: Tensor) -> Tensor:
    x = _residual(block.resnets[0], x)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        x = _residual(resnet, attention(x))
    return x


def _average(shortcut: Any, x: Tensor) -> Tensor:
    """AvgDown3D, channels innermost: fold `factor_t` frames and `factor_s`^2 pixels into channels, then
    means."""
    ft, fs = shortcut.factor_t, shortcut.factor_s
    x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % ft, 0)).permute(0, 2, 3, 4, 1)  # [B, T, H, W, C]
    x = x.unflatten(3, (-1, fs)).unflatten(2, (-1, fs)).unflatten(1, (-1, ft))
    x = x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(4)  # [B, t, h, w, C * ft * fs * fs]
    return x.unflatten(4, (shortcut.out_channels, -1)).mean(dim=5).permute(0, 4, 1, 2, 3)


def _duplicate(shortcut: Any, x: Tensor) -> Tensor:
    """DupUp3D, channels innermost: repeat channels, then unfold them into frames and pixels; less the
    first."""
    ft, fs = shortcut.factor_t, shortcut.factor_s
    x = x.permute(0, 2, 3, 4, 1)
    x = x[..., None].expand(*x.shape, shortcut.repeats).flatten(4)
    x = x.unflatten(4, (shortcut.out_channels, ft, fs, fs)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    x = x.flatten(5, 6).flatten(3, 4).flatten(1, 2)  # [B, T * ft, H * fs, W * fs, C]
    return x.permute(0, 4, 1, 2, 3)[:, :, ft - 1 :]


def _per_frame(layer: Any, x: Tensor) -> Tensor:
    frames = x.permute(0, 2, 1, 3, 4)
    return layer(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).permute(0, 2, 1, 3, 4)


def _downsample(layer: Any, x: Tensor) -> Tensor:
    """Halve height and width; halve time after the first frame, which stays alone."""
    x = _per_frame(layer.resample, x)
    if layer.mode == "downsample3d" and x.shape[2] > 1:
        x = torch.cat([x[:, :, :1], layer.time_conv(x)], dim=2)
    return x


def _upsample(layer: Any, x: Tensor) -> Tensor:
    """Double time after the first frame, which skips the temporal convolution; double height and width."""
    if layer.mode == "upsample3d" and x.shape[2] > 1:
        rest = layer.time_conv(x[:, :, 1:]).permute(0, 2, 3, 4, 1)  # [B, t, H, W, 2 * C]: even, odd frames
        rest = rest.unflatten(4, (2, -1)).permute(0, 1, 4, 2, 3, 5).flatten(1, 2)
        x = torch.cat([x[:, :, :1].permute(0, 2, 3, 4, 1), rest], dim=1).permute(0, 4, 1, 2, 3)
    enlarge, conv = layer.resample

    def resample(frames: Tensor) -> Tensor:  # diffusers enlarges in float32, which changes nothing
        return conv(F.interpolate(frames, scale_factor=enlarge.scale_factor, mode=enlarge.mode))

    return _per_frame(resample, x)


def latent_scale(vae: Autoencoder, device: torch.device) -> tuple[Tensor, Tensor]:
    """`latents_mean` and `latents_std` of the configuration, [1, 16, 1, 1, 1]."""
    mean = torch.tensor(vae.config.latents_mean, device=device).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std, device=device).view(1, -1, 1, 1, 1)
    return mean, std
