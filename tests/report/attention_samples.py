"""Attention made by hand: one call whose softmax rows are known, for the tests of the inspector."""

from __future__ import annotations

import torch

from dit_sparse.layout import Site, TokenLayout
from dit_sparse.report.capture import CapturedCall

GRID = (3, 4, 5)


def layout(text: int = 0, position: str = "none") -> TokenLayout:
    return TokenLayout(*GRID, text_tokens=text, text_position=position)  # type: ignore[arg-type]


def softmax_of(call: CapturedCall) -> torch.Tensor:
    """float64 ``[H, N, N]``, by definition."""
    q, k = (x[0].transpose(0, 1).double() for x in (call.q, call.k))
    return (q @ k.mT * call.scale).softmax(-1)


def call_of(logits: torch.Tensor, where: TokenLayout, step: int = 0) -> CapturedCall:
    """A call whose logits are ``[H, N, N]``: queries are rows of the logits, keys unit vectors."""
    heads, tokens, _ = logits.shape
    q = logits.float().transpose(0, 1)[None].contiguous()
    k = torch.eye(tokens)[None, :, None].expand(1, tokens, heads, tokens).contiguous()
    v = torch.randn(1, tokens, heads, tokens, generator=torch.Generator().manual_seed(1))
    attention = logits.double().softmax(-1)
    out = torch.einsum("hij,jhd->ihd", attention, v[0].double()).float()[None]
    lse = logits.double().logsumexp(-1).float()[None]
    return CapturedCall(Site(0, step, 4, "conditional"), where, 1.0, 2, q, k, v, out, lse)


def random_call(where: TokenLayout, heads: int = 3, seed: int = 0, step: int = 0) -> CapturedCall:
    tokens = where.num_tokens
    logits = 2.5 * torch.randn(heads, tokens, tokens, generator=torch.Generator().manual_seed(seed))
    return call_of(logits, where, step)


def planted_call(where: TokenLayout, far: tuple[int, int, int]) -> CapturedCall:
    """Head 0 attends to itself, head 1 to one far token of the grid."""
    tokens = where.num_tokens
    target = where.video_start + (far[0] * where.height + far[1]) * where.width + far[2]
    logits = torch.zeros(2, tokens, tokens)
    logits[0] += 9 * torch.eye(tokens)
    logits[1, :, target] = 9
    return call_of(logits, where)
