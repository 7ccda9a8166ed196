"""Some heads of one observed call, every one in its own order: their exact block mass, and templates tried on
them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse import kernels
from dit_sparse.context import Observation
from dit_sparse.kernels.pooling import block_lengths
from dit_sparse.orderings import TokenOrder, axis_orders
from dit_sparse.profiler.recording import Template
from dit_sparse.selectors import ObservedHeads, RadialBand, SelectionInput, Window
from dit_sparse.selectors.scores import estimate_mass
from dit_sparse.selectors.spend import spend

Figures = tuple[Tensor, Tensor, Tensor]
"""Error, density and recall of one template, float32 ``[B, heads]`` each, as :class:`Trial` has them."""


@dataclass(frozen=True)
class Trial:
    """What C templates make of the heads of a call.

    Args:
        error: float32 ``[B, heads, C]``, squared error summed over tokens and channels.
        density, recall: float32 ``[B, heads, C]``.
    """

    error: Tensor
    density: Tensor
    recall: Tensor


def ordered_heads(seen: Observation, heads: slice, axes: Tensor) -> ObservedHeads:
    """Bring heads of an observed call into their axis orders.

    Args:
        seen: the call.
        heads: which.
        axes: integers ``[heads]``, index in :data:`~dit_sparse.orderings.AXIS_ORDERS`.
    """
    choice = axes.to(seen.q.device).long()
    order, candidates = axis_orders(seen.context.layout.grid, choice)
    orders = TokenOrder(order, order, candidates=candidates, choice=choice[None])
    return ObservedHeads.sorted(seen, orders, heads)


def fit_blocks(mass: Tensor, queries: int, keys: int) -> Tensor:
    """Block mass ``[..., nQ, nK]`` of one length of text as if there had been another.

    Blocks of video are the same for every length. Behind them, mass in more blocks of keys than asked for
    goes to the last one, blocks that are missing hold none; rows that are missing are like the last. Where
    the lengths differ, these are blocks of text, which are kept by all means.

    Returns:
        ``[..., queries, keys]``; rows keep their sum.
    """
    rows, columns = mass.shape[-2:]
    if columns > keys:
        mass = torch.cat([mass[..., : keys - 1], mass[..., keys - 1 :].sum(-1, keepdim=True)], dim=-1)
    elif columns < keys:
        mass = torch.nn.functional.pad(mass, (0, keys - columns))
    if rows < queries:
        last = mass[..., -1:, :].expand(*mass.shape[:-2], queries - rows, keys)
        mass = torch.cat([mass, last], dim=-2)
    return mass[..., :queries, :]


def try_templates(
    heads: ObservedHeads, templates: tuple[Template, ...], mass: Tensor, earlier: Tensor
) -> Trial:
    """Try templates against dense attention.

    Args:
        heads: of a call.
        templates: what to try.
        mass: of this call, ``[B, heads, nQ, nK]``: the recall is read from it.
        earlier: of other calls, ``[heads, nQ, nK]``: masks are drawn from it. Any scale.
    """
    given = heads.given
    tokens, share = given.q.shape[1], _row_shares(given)
    whole = given.q.new_ones(given.q.shape[0], given.q.shape[2], dtype=torch.float32)
    estimate: Tensor | None = None
    found: list[Figures] = []
    for template in templates:
        if template.kind == "dense":
            found.append((torch.zeros_like(whole), whole, whole))
            continue
        if template.kind == "skip":
            video = ~heads.text_rows.repeat_interleave(given.context.block_size[0])[:tokens]
            error = energy(heads.out[:, video])
            found.append(
                (error, whole * heads.text_rows.float().mean(), whole * (share * heads.text_rows).sum())
            )
            continue
        if template.kind == "dynamic" and estimate is None:
            estimate = estimate_mass(given, "mean_key")
        mask = _mask(given, template, earlier, estimate).expand(mass.shape)
        error = kernels.mask_error(
            *(given.q, given.k, given.v, heads.out, mask, given.context.block_size, given.context.scale)
        )
        found.append((error, *kept_by(given, mask, mass)))
    return trial_of(found)


def kept_by(given: SelectionInput, mask: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Density and recall, float32 ``[B, heads]``, of a mask ``[B, heads, nQ, nK]`` on a mass like it."""
    recall = ((mass * mask).sum(dim=-1) * _row_shares(given)).sum(dim=-1)
    return mask.float().mean(dim=(-1, -2)), recall


def trial_of(found: list[Figures]) -> Trial:
    """Templates side by side."""
    return Trial(*(torch.stack(figures, dim=-1) for figures in zip(*found, strict=True)))


def _row_shares(given: SelectionInput) -> Tensor:
    """``[nQ]``: part of the queries that every block holds."""
    tokens = given.q.shape[1]
    return block_lengths(tokens, given.context.block_size[0], given.q.device) / tokens


def energy(out: Tensor) -> Tensor:
    """Square of an output ``[B, N, H, D]`` summed over tokens and channels, float32 ``[B, H]``."""
    return out.float().square().sum(dim=(1, 3))


def _mask(given: SelectionInput, template: Template, earlier: Tensor, estimate: Tensor | None) -> Tensor:
    """Bool ``[B or 1, heads, nQ, nK]``, forced pairs included."""
    if template.kind == "window":
        return Window(template.shape, density=template.density).select(given)
    if template.kind == "radial":
        return RadialBand(density=template.density).select(given)
    heaviest = earlier[None] if template.kind == "mask" else estimate
    assert heaviest is not None
    return spend(-heaviest, given.forced, template.density, "head")
