"""What is drawn from the first observed call of a step group and layer alone: axis orders, pattern classes,
and the errors of the precisions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dit_sparse import kernels
from dit_sparse.context import Observation
from dit_sparse.kernels.dense import BLOCK
from dit_sparse.layout import BlockMap, ceil_div
from dit_sparse.profiler.pattern_classes import SHARE, pattern_classes
from dit_sparse.profiler.record_axes import axis_figures
from dit_sparse.profiler.record_heads import energy, ordered_heads
from dit_sparse.profiler.record_settings import RecordSettings
from dit_sparse.profiler.record_sums import Key
from dit_sparse.selectors import Window

NEAR = Window((1.0, 1.0, 1.0), density=SHARE)
FLOOR = 1e-30


def learn_first(
    seen: Observation,
    chunks: Sequence[slice],
    total: Tensor,
    settings: RecordSettings,
    tensors: dict[str, Tensor],
    key: Key,
) -> None:
    """Draw it and write it into the sums.

    Args:
        seen: the call.
        chunks: heads to work on at once, all heads together.
        total: output squared, float32 ``[B, H]``.
        settings: density and blocks at which axis orders are compared.
        tensors: of the sums.
        key: (group, layer).
    """
    missed, compared = [], []
    for heads in chunks:
        found = axis_figures(seen, heads, settings.density, settings.query_blocks, settings.score_blocks)
        missed.append(found.error)
        compared.append(found.energy)
        tensors["axes_sparse"][key][heads] = found.sparse.cpu()
        tensors["axes_incoherence"][key][heads] = found.incoherence.cpu()
        tensors["pattern"][key][heads] = _patterns(seen, heads, total).cpu()
    # Every order compares other queries: its errors count against what all heads had there.
    layer = torch.cat(compared, dim=1).sum(dim=1, keepdim=True).clamp(min=FLOOR)
    error = (torch.cat(missed, dim=1) / layer).mean(dim=0).cpu()
    tensors["axes_error"][key] = error
    tensors["axes"][key] = error.argmin(dim=-1).to(torch.uint8)
    tensors["low_bit_error"][key] = _low_bit(seen, chunks, total.sum(dim=1).clamp(min=FLOOR)).cpu()


def _patterns(seen: Observation, heads: slice, total: Tensor) -> Tensor:
    """Pattern classes uint8 ``[heads]``, from the exact mass in raster order."""
    layout = seen.context.layout
    raster = ordered_heads(seen, heads, torch.zeros(heads.stop - heads.start, dtype=torch.uint8))
    video = slice(0, ceil_div(layout.video_tokens, seen.context.block_size[0]))
    mass = raster.mass().mean(dim=0)[:, video, video]
    near = NEAR.select(raster.given)[0, 0, video, video]
    strength = (total / total.mean(dim=1, keepdim=True).clamp(min=FLOOR)).mean(dim=0)
    return pattern_classes(mass, near, strength[heads])


def _low_bit(seen: Observation, chunks: Sequence[slice], layer: Tensor) -> Tensor:
    """Error of dense attention in every precision, float32 ``[P]``; none for the input's own."""
    context, tokens = seen.context, seen.q.shape[1]
    error = torch.zeros(len(kernels.PRECISIONS), device=seen.q.device)
    for heads in chunks:
        q, k, v, out = (x[:, :, heads] for x in (seen.q, seen.k, seen.v, seen.out))
        full = BlockMap.full(q.shape[0], q.shape[2], tokens, tokens, BLOCK, q.device)
        for i, precision in enumerate(kernels.PRECISIONS):
            if precision == "native":
                continue
            low = kernels.block_sparse_attention(q, k, v, full, scale=context.scale, precision=precision)
            assert isinstance(low, Tensor)
            error[i] += (energy(low.float() - out.float()).sum(dim=1) / layer).mean()
    return error
