"""The neighbourhood of a token along one axis: window, stride, dilation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Border = Literal["cut", "shift"]
FAR = 1e6
"""Wider than any window."""


def least_window(
    q: Tensor, k: Tensor, length: int, stride: int = 1, dilation: int = 1, border: Border = "shift"
) -> Tensor:
    """Smallest window along one axis at which queries see keys.

    Generalised neighbourhood attention (arXiv 2504.16922): tokens whose positions are equal modulo the
    dilation form a line of their own. On it, ``stride`` consecutive queries share the window of their middle
    one (the right one of two). A window of w holds w keys: w // 2 before its centre, the rest from it on. At
    the ends of the line it is shifted to stay inside, or cut off; cut, it reaches w / 2 to either side.

    Args:
        q, k: int64 ``[n]`` and ``[m]``, positions along the axis, 0 .. length - 1.
        length: tokens along the axis.
        stride, dilation: >= 1.
        border: "shift" or "cut".

    Returns:
        float32 ``[n, m]``; :data:`FAR` for keys on another line.
    """
    line, centre = q % dilation, q // dilation
    size = (length - line + dilation - 1) // dilation
    centre = torch.minimum(centre // stride * stride + stride // 2, size - 1)
    centre, size, key = centre[:, None], size[:, None], (k // dilation)[None]
    offset = key - centre
    if border == "cut":
        window = 2 * offset.abs()
    else:
        before = torch.minimum(-2 * offset, size - key)
        after = torch.minimum(2 * offset + 1, key + 1)
        window = torch.where(offset < 0, before, after)
    return window.float().masked_fill(line[:, None] != k % dilation, FAR)
