"""Where queries look: exact softmax rows of some on the (T, H, W) grid, and what rows tell of a head."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dit_sparse.kernels.sampling import sampled_attention
from dit_sparse.layout import TokenLayout
from dit_sparse.orderings.sampling import spread_tokens
from dit_sparse.report.attention_schema import Pattern
from dit_sparse.report.capture import CapturedCall

Point = tuple[int, int, int]
PATTERN_ROWS = 64
"""Queries that stand for a head in :func:`patterns`."""


def check_points(points: int | Sequence[Point], grid: Point) -> list[Point]:
    """Query tokens as (t, h, w).

    Args:
        points: those to take, or how many to spread over the grid.
        grid: (T, H, W) in tokens.

    Raises:
        ValueError: for a point outside of the grid, or a count below 1.
    """
    if isinstance(points, int):
        if points < 1:
            raise ValueError(f"--points: give at least 1 point, got {points}")
        spread = spread_tokens(grid, points, torch.device("cpu"))
        return [(int(t), int(h), int(w)) for t, h, w in torch.stack(torch.unravel_index(spread, grid), -1)]
    for point in points:
        if any(not 0 <= at < size for at, size in zip(point, grid)):
            raise ValueError(
                f"--points {','.join(map(str, point))} is outside of the token grid: t,h,w go from 0,0,0 to "
                f"{','.join(str(size - 1) for size in grid)} (latent patches, not pixels)"
            )
    return list(points)


def point_rows(call: CapturedCall, points: Sequence[Point]) -> tuple[Tensor, Tensor]:
    """Exact attention of single queries over all keys.

    Args:
        call: one sample.
        points: P queries.

    Returns:
        float32 on the CPU: share of every video token ``[H, P, T, H, W]``, and of the text ``[H, P]``; a row
        sums to 1 over both.
    """
    layout = call.layout
    flat = [(t * layout.height + h) * layout.width + w for t, h, w in points]
    shares = _rows(call, torch.tensor(flat, device=call.q.device)).cpu()
    video = shares[..., layout.video_start : layout.video_start + layout.video_tokens]
    text = shares[..., layout.text_start : layout.text_start + layout.text_tokens]
    return video.unflatten(-1, layout.grid), text.sum(dim=-1)


def patterns(call: CapturedCall, rows: int = PATTERN_ROWS) -> list[Pattern]:
    """Where every head looks, mean over queries spread over the grid; text queries are left out.

    Args:
        call: one sample.
        rows: how many queries.
    """
    sampled = spread_tokens(call.layout.grid, rows, call.q.device)
    return [_pattern(share, sampled, call.layout) for share in _rows(call, sampled)]


def uniform_pattern(layout: TokenLayout, rows: int = PATTERN_ROWS) -> Pattern:
    """The same figures of a head that looks everywhere alike: what chance gives on this grid."""
    sampled = spread_tokens(layout.grid, rows, torch.device("cpu"))
    share = torch.full((len(sampled), layout.num_tokens), 1 / layout.num_tokens)
    return _pattern(share, sampled, layout)


def _rows(call: CapturedCall, video_tokens: Tensor) -> Tensor:
    """Softmax of some video queries, ``[H, rows, N]``."""
    q = call.q.index_select(1, video_tokens + call.layout.video_start)
    return torch.cat([share for _, share in sampled_attention(q, call.k, call.scale)], dim=1)[0]


def _pattern(share: Tensor, sampled: Tensor, layout: TokenLayout) -> Pattern:
    """Figures of the rows ``[rows, N]`` of one head."""
    tokens = torch.arange(layout.video_tokens, device=share.device)
    keys = torch.stack(torch.unravel_index(tokens, layout.grid), -1)
    apart = (keys[sampled][:, None] - keys).abs()
    video = share[:, layout.video_start : layout.video_start + layout.video_tokens]
    seen = video.sum()
    entropy = torch.special.entr(share).sum(dim=-1).mean()

    def held(where: Tensor) -> float:
        return float((video * where).sum(dim=-1).mean())

    def mean(distance: Tensor) -> float:
        return float((video * distance).sum() / seen) if seen > 0 else 0.0

    return Pattern(
        entropy=float(entropy),
        effective_keys=math.exp(float(entropy)),
        same_frame=held(apart[..., 0] == 0),
        same_place=held((apart[..., 1:] == 0).all(-1)),
        neighbours=held((apart <= 1).all(-1)),
        first_frame=held((keys[:, 0] == 0).expand_as(video)),
        text=float((share.sum(dim=-1) - video.sum(dim=-1)).mean()) if layout.text_tokens else 0.0,
        frame_distance=mean(apart[..., 0].float()),
        space_distance=mean(apart[..., 1:].float().square().sum(-1).sqrt()),
    )
