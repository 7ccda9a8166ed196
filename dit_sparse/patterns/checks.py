"""Whether a header and a table make sense, alone and together: of files that are read or written."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dit_sparse.kernels import PRECISIONS
from dit_sparse.layout import BYTE_BITS, TokenLayout, ceil_div
from dit_sparse.orderings import AXIS_ORDERS
from dit_sparse.patterns.errors import ProfileError, quoted
from dit_sparse.patterns.header import GridFacts, ProfileHeader
from dit_sparse.patterns.named_tensors import FIELDS, mask_name
from dit_sparse.patterns.table import KINDS, MASK, OBSERVED, SKIP, WINDOW, PatternTable

MAX_TOKENS = 1 << 24
"""Over a hundred times the longest sequences of today. What a file claims is allocated when it is used."""
MAX_BLOCK = 1 << 16


def layout_of(grid: GridFacts) -> TokenLayout:
    """The token layout of a profile.

    Raises:
        ProfileError: where the text contradicts its position.
    """
    try:
        return TokenLayout(grid.frames, grid.height, grid.width, grid.text_tokens, grid.text_position)
    except ValueError as error:
        raise ProfileError(f"grid: {error}") from None


def block_counts(layout: TokenLayout, block_size: tuple[int, int]) -> tuple[int, int]:
    """(nQ, nK): blocks of both axes, the last ones ragged."""
    return ceil_div(layout.num_tokens, block_size[0]), ceil_div(layout.num_tokens, block_size[1])


def check_header(header: ProfileHeader) -> None:
    """What the types of the header leave open.

    Raises:
        ProfileError: on a grid that is none or too large, and step groups with gaps.
    """
    layout = layout_of(header.grid)
    if layout.num_tokens > MAX_TOKENS:
        raise ProfileError(f"grid: {layout.num_tokens} tokens, at most {MAX_TOKENS} are allowed")
    if not all(1 <= size <= MAX_BLOCK for size in header.grid.block_size):
        raise ProfileError(f"grid: block_size is {header.grid.block_size}, must be 1 to {MAX_BLOCK} tokens")
    groups, steps = header.schedule.groups, header.schedule.num_steps
    edges = [0, *(edge for group in groups for edge in group), steps]
    ascending = all(first < last for first, last in groups) and edges == sorted(edges)
    if not groups or not ascending or edges[2::2] != edges[3::2]:
        raise ProfileError(
            f"schedule: the step groups are {quoted(groups)}, must be ascending [first, last) without gaps "
            f"up to {steps}"
        )
    for name, value in header.figures:
        if isinstance(value, float) and not 0.0 <= value < math.inf:
            raise ProfileError(f"figures: {name} is {value}, must be finite and not negative")
    if header.figures.density > 1.0:
        raise ProfileError(f"figures: density is {header.figures.density}, must be in [0, 1]")


def check_table(table: PatternTable, header: ProfileHeader) -> None:
    """Types, shapes and ranges of a table, against a header that passed :func:`check_header`.

    Raises:
        ProfileError: that names the first value which does not fit.
    """
    groups = len(header.schedule.groups)
    heads = (groups, header.model.layers, header.model.heads)
    shapes = {"shape": (*heads, 3), "precision": heads[:2], "mask_group": heads[:2]}
    for name, dtype in FIELDS.items():
        _check_form(name, getattr(table, name), dtype, shapes.get(name, heads))
    for name, names in (("kind", KINDS), ("axes", AXIS_ORDERS), ("precision", PRECISIONS)):
        values = getattr(table, name)
        _refuse(name, values, values >= len(names), f"an index into {', '.join(names)}")
    learnt = table.kind == OBSERVED
    _refuse("axes", table.axes, learnt & (table.axes != 0), "0 for an observed head, which learns its order")
    density = table.density
    # What a skipped head computes is rows of text, and not every model has text.
    positive = (density > 0) | ((table.kind == SKIP) & (density == 0))
    _refuse("density", density, ~(positive & (density <= 1)), "in (0, 1], or 0 for a skipped head")
    # Not bounded by this grid: a span that was fitted on longer sequences is kept for them.
    span = table.constant
    _refuse("constant", span, ~((span >= 0) & (span <= MAX_TOKENS)), f"in [0, {MAX_TOKENS}] tokens")
    window, shape = (table.kind == WINDOW)[..., None], table.shape
    _refuse("shape", shape, window & ~((shape > 0) & (shape <= 1)), "in (0, 1] for a window")
    _refuse("shape", shape, ~window & (shape != 0), "0 for what is not a window")
    _check_mask_groups(table)
    _check_masks(table, header)


def _check_form(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tuple(tensor.shape) != shape or tensor.device.type != "cpu":
        raise ProfileError(
            f"{name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device.type}, must be {dtype} "
            f"{list(shape)} on cpu"
        )


def _refuse(name: str, values: Tensor, wrong: Tensor, rule: str) -> None:
    """Name the first wrong value, where there is one."""
    if wrong.any():
        place = tuple(wrong.nonzero()[0].tolist())
        raise ProfileError(f"{name}{list(place)} is {values[place].item()}, must be {rule}")


def _check_mask_groups(table: PatternTable) -> None:
    """Layers with masked heads, and no others, name a group that stores masks of the same heads and axes."""
    group, masked = table.mask_group.long(), table.kind == MASK
    groups, layers = group.shape
    _refuse("mask_group", group, (group < -1) | (group >= groups), f"-1 or a step group below {groups}")
    has = masked.any(dim=-1)
    _refuse("mask_group", group, (group < 0) & has, "a step group: the layer has heads of kind mask there")
    _refuse("mask_group", group, (group >= 0) & ~has, "-1: the layer has no head of kind mask there")
    owner, layer = group.clamp(min=0), torch.arange(layers)
    _refuse("mask_group", group, has & (group[owner, layer] != group), "a group that stores its own masks")
    same = (masked == masked[owner, layer]).all(dim=-1)
    _refuse("mask_group", group, has & ~same, "a group in which the same heads are of kind mask")
    moved = (masked & (table.axes != table.axes[owner, layer])).any(dim=-1)
    _refuse("mask_group", group, has & moved, "a group in which the masked heads have the same axes")


def _check_masks(table: PatternTable, header: ProfileHeader) -> None:
    n_q, n_k = block_counts(layout_of(header.grid), header.grid.block_size)
    named = {
        (group, layer)
        for layer, column in enumerate(table.mask_group.T.tolist())
        for group in column
        if group >= 0
    }
    if wrong := sorted(named ^ set(table.masks)):
        key = wrong[0]
        what = (
            "is missing, though mask_group names it"
            if key in named
            else "is there, but no mask_group names it"
        )
        raise ProfileError(f"{mask_name(*key)} {what}")
    counts = (table.kind == MASK).sum(dim=-1)
    for key, mask in table.masks.items():
        name = mask_name(*key)
        _check_form(name, mask, torch.uint8, (int(counts[key]), n_q, ceil_div(n_k, BYTE_BITS)))
        if spare := n_k % BYTE_BITS:
            _refuse(
                name, mask[..., -1], (mask[..., -1] >> spare) != 0, f"0 in the bits behind column {n_k - 1}"
            )
