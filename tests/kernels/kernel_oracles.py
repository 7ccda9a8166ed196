"""Float64 definitions and input builders for the kernel tests, on CPU and GPU alike; independent of the
package's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor

from dit_sparse.layout import BlockMap, ceil_div


def tokens_of(mask: Tensor, block_size: tuple[int, int], num_queries: int, num_keys: int) -> Tensor:
    """Block mask ``[B, H, nQ, nK]`` to token mask ``[B, H, Nq, Nk]``, by indexing."""
    rows = torch.arange(num_queries, device=mask.device) // block_size[0]
    columns = torch.arange(num_keys, device=mask.device) // block_size[1]
    return mask[:, :, rows][..., columns]


def attention64(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(out ``[B, Nq, H, D]``, lse ``[B, H, Nq]``) in float64; rows of an all-false token mask give 0 and
    -inf."""
    q64, k64, v64 = (x.double().transpose(1, 2) for x in (q, k, v))
    logits = (q64 @ k64.transpose(-1, -2) * scale).masked_fill(~mask, -torch.inf)
    empty = ~mask.any(dim=-1, keepdim=True)
    weights = torch.softmax(logits.masked_fill(empty, 0.0), dim=-1).masked_fill(empty, 0.0)
    return (weights @ v64).transpose(1, 2), torch.logsumexp(logits, dim=-1)


def eager_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """What stock eager attention gives in the inputs' own precision: the error budget is twice its error."""
    logits = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1) * scale).masked_fill(~mask, -torch.inf)
    weights = torch.softmax(logits, dim=-1).masked_fill(~mask.any(dim=-1, keepdim=True), 0.0)
    return (weights @ v.transpose(1, 2)).transpose(1, 2)


def norm_rope64(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float, start: int = 0) -> Tensor:
    """RMSNorm and RoPE of ``[B, N, H, D]`` in float64, the rotation as a complex product; cos and sin ``[R,
    D]``."""
    dim = x.shape[-1]
    values = x.double()
    flat = values if weight.numel() == dim else values.flatten(2)
    flat = flat / torch.sqrt(flat.pow(2).mean(dim=-1, keepdim=True) + eps) * weight.double()
    out = flat.reshape(x.shape).contiguous()
    angles = torch.complex(cos.double(), sin.double())[:, None, 0::2]
    turned = slice(start, start + cos.shape[0])
    pairs = torch.view_as_complex(out[:, turned].unflatten(-1, (-1, 2)).contiguous())
    out[:, turned] = torch.view_as_real(pairs * angles).flatten(-2)
    return out


def error(actual: Tensor, expected: Tensor) -> float:
    """Root mean square difference, in float64."""
    return (actual.double() - expected).square().mean().sqrt().item()


def random_tokens(
    generator: torch.Generator,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    layout: str,
    device: str = "cpu",
) -> Tensor:
    """Random ``[B, N, H, D]`` whose memory is "contiguous", "transposed" (``[B, H, N, D]``) or "sliced" (of a
    fused qkv)."""
    batch, tokens, heads, dim = shape
    if layout == "contiguous":
        x = torch.randn(shape, generator=generator, device=device)
        return x.to(dtype)
    if layout == "transposed":
        return (
            torch.randn(batch, heads, tokens, dim, generator=generator, device=device)
            .to(dtype)
            .transpose(1, 2)
        )
    fused = torch.randn(batch, tokens, heads, 3 * dim, generator=generator, device=device).to(dtype)
    return fused[..., dim : 2 * dim]


def random_mask(
    generator: torch.Generator, shape: tuple[int, int, int, int], density: float, device: str = "cpu"
) -> Tensor:
    """Random block mask with uneven rows, of which the first of the first head is empty and the last full."""
    mask = torch.rand(shape, generator=generator, device=device) < density
    mask[0, 0, 0] = False
    mask[-1, -1, -1] = True
    return mask


def map_of(mask: Tensor, num_queries: int, num_keys: int, block_size: tuple[int, int]) -> BlockMap:
    """The block map of ``mask``, with what lies behind the counts set to the last block: it must never be
    used."""
    block_map = BlockMap.from_mask(mask, num_queries, num_keys, block_size)
    dead = torch.arange(mask.shape[-1], device=mask.device) >= block_map.counts[..., None]
    indices = block_map.indices.masked_fill(dead, mask.shape[-1] - 1)
    return BlockMap(indices, block_map.counts, num_queries, num_keys, block_size)


def block_shape(
    batch: int, heads: int, num_queries: int, num_keys: int, block: tuple[int, int]
) -> tuple[int, ...]:
    """(B, H, nQ, nK)."""
    return (batch, heads, ceil_div(num_queries, block[0]), ceil_div(num_keys, block[1]))


@contextlib.contextmanager
def poisoned_empty() -> Iterator[None]:
    """``torch.empty`` hands out NaN (all bits set for integers), so that an output left unwritten shows."""
    real = torch.empty

    def poisoned(*args, **kwargs):
        out = real(*args, **kwargs)
        return out.fill_(torch.nan if out.is_floating_point() else -1)

    with mock.patch.object(torch, "empty", poisoned):
        yield
