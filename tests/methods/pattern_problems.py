"""Attention problems for methods, run through the engine, and block masks from rules for tokens."""

import torch

from dit_sparse.engine import sparse_attention
from dit_sparse.layout import Site, TokenLayout
from dit_sparse.methods import ModelInfo, make_method
from dit_sparse.selectors import forced_pairs
from dit_sparse.state import LayerState


def random_qkv(layout, batch=1, heads=2, dim=8, seed=0, scale=1.5):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, layout.num_tokens, heads, dim)
    return [scale * torch.randn(shape, generator=generator) for _ in range(3)]


def built(name, *, block=16, family="wan", **fields):
    return make_method(name, block_size=block, **fields).build(ModelInfo(family, 12, 8))


def planned(method, layout, qkv=None, *, layer=0, **random):
    """Output and plan of one call."""
    q, k, v = random_qkv(layout, **random) if qkv is None else qkv
    context = method.context(layout, Site(layer, 0), LayerState(), head_dim=q.shape[-1])
    return sparse_attention(q, k, v, method=method, context=context, impl="reference")


def mask_of(method, layout, qkv=None, **options):
    """Bool ``[B, H, nQ, nK]`` of the computed pairs."""
    return planned(method, layout, qkv, **options)[1].block_map.to_mask()


def coordinates(layout):
    """(t, h, w) of the video tokens in raster order, ``[Nv, 3]``."""
    return torch.stack(torch.unravel_index(torch.arange(layout.video_tokens), layout.grid), dim=-1)


def blocks_of(rule, layout, order, block):
    """Bool ``[nQ, nK]``: pairs that the rule for tokens touches, with the forced ones.

    ``rule`` is bool ``[Nv, Nv]`` in raster order; ``order`` the order of all N tokens, None for the model's.
    """
    n, video = layout.num_tokens, slice(layout.video_start, layout.video_start + layout.video_tokens)
    tokens = torch.eye(n, dtype=torch.bool)
    text = torch.ones(n, dtype=torch.bool)
    text[video] = False
    tokens[video, video] |= rule
    tokens |= text[:, None] | text
    if order is not None:
        tokens = tokens[order][:, order]
    pad = -n % block
    padded = torch.nn.functional.pad(tokens, (0, pad, 0, pad))
    return padded.unflatten(1, (-1, block)).unflatten(0, (-1, block)).any(dim=3).any(dim=1)


def forced_of(layout, reordered, block=16):
    """Bool ``[nQ, nK]`` of the pairs that every method keeps."""
    start = layout.video_tokens if reordered else layout.text_start
    return forced_pairs(layout.num_tokens, start, layout.text_tokens, (block, block), torch.device("cpu"))


def layout_of(grid, text=0, position="none"):
    return TokenLayout(*grid, text, position if text else "none")


def dense(q, k, v):
    heads_first = (x.transpose(1, 2).double() for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(*heads_first).transpose(1, 2)
