"""Some heads of one observed call, every one in its own order: their exact block mass, and templates tried on
them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse import kernels
from dit_sparse.context import Observation
from dit_sparse.kernels.pooling import block_lengths
from dit_sparse.orderings import TokenOrder, axis_orders, with_text
from dit_sparse.profiler.recording import Template
from dit_sparse.selectors import RadialBand, SelectionInput, Window, forced_pairs
from dit_sparse.selectors.scores import estimate_mass
from dit_sparse.selectors.spend import spend


@dataclass(frozen=True)
class OrderedHeads:
    """Heads of one call in their orders, text behind the video.

    Args:
        given: the selection problem; its order has the six candidates and the heads' choices ``[1, heads]``.
        out: dense output ``[B, N, heads, D]``.
        lse: float32 ``[B, heads, N]``.
        text_rows: bool ``[nQ]``, blocks of queries that hold text.
    """

    given: SelectionInput
    out: Tensor
    lse: Tensor
    text_rows: Tensor

    def mass(self) -> Tensor:
        """Exact block mass, float32 ``[B, heads, nQ, nK]``."""
        given = self.given
        return kernels.block_mass(given.q, given.k, self.lse, given.context.block_size, given.context.scale)


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


def ordered_heads(seen: Observation, heads: slice, axes: Tensor) -> OrderedHeads:
    """Bring heads of an observed call into their orders.

    Args:
        seen: the call.
        heads: which.
        axes: integers ``[heads]``, index in :data:`~dit_sparse.orderings.AXIS_ORDERS`.
    """
    context = seen.context
    layout, device = context.layout, seen.q.device
    choice = axes.to(device).long()
    video, candidates = axis_orders(layout.grid, choice)
    order = with_text(video, layout)
    q, k, v, out = (kernels.permute_rows(x[:, :, heads], order) for x in (seen.q, seen.k, seen.v, seen.out))
    lse = seen.lse[:, heads]
    own, text = (
        forced_pairs(
            layout.num_tokens, layout.video_tokens, layout.text_tokens, context.block_size, device, diagonal=x
        )
        for x in (True, False)
    )
    orders = TokenOrder(video, video, candidates=candidates, choice=choice[None])
    given = SelectionInput(q, k, v, orders, own, 0, context)
    return OrderedHeads(given, out, lse.gather(-1, order.expand(lse.shape)), text.all(dim=-1))


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
    heads: OrderedHeads, templates: tuple[Template, ...], mass: Tensor, earlier: Tensor
) -> Trial:
    """Try templates against dense attention.

    Args:
        heads: of a call.
        templates: what to try.
        mass: of this call, ``[B, heads, nQ, nK]``: the recall is read from it.
        earlier: of other calls, ``[heads, nQ, nK]``: masks are drawn from it. Any scale.
    """
    given = heads.given
    batch, tokens = given.q.shape[0], given.q.shape[1]
    share = block_lengths(tokens, given.context.block_size[0], given.q.device) / tokens
    whole = given.q.new_ones(batch, given.q.shape[2], dtype=torch.float32)
    estimate: Tensor | None = None
    found: list[tuple[Tensor, Tensor, Tensor]] = []
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
        mask = _mask(given, template, earlier, estimate).expand(batch, -1, -1, -1)
        error = kernels.mask_error(
            *(given.q, given.k, given.v, heads.out, mask, given.context.block_size, given.context.scale)
        )
        recall = ((mass * mask).sum(dim=-1) * share).sum(dim=-1)
        found.append((error, mask.float().mean(dim=(-1, -2)), recall))
    return Trial(*(torch.stack(figures, dim=-1) for figures in zip(*found, strict=True)))


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
