"""The parts of a method that follow a profile: every head's order and pairs, every layer's precision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dit_sparse.layout import pack_bits, unpack_bits
from dit_sparse.methods.profiled_rows import HeadRows, LayerRow
from dit_sparse.orderings import AXIS_ORDERS, TokenOrder, axis_order, axis_orders
from dit_sparse.patterns import DENSE, DYNAMIC, KINDS, MASK, RADIAL, SKIP, WINDOW
from dit_sparse.selectors import RadialBand, SelectionInput, Window, estimate_mass, forced_pairs
from dit_sparse.selectors.spend import spend

if TYPE_CHECKING:
    from dit_sparse.context import PlanContext

AXES, PAIRS = "profile.axes", "profile.pairs"
"""Keys in the layer's state: (step group, what was prepared for it)."""


@dataclass(frozen=True)
class ProfiledAxes:
    """Every head's tokens in the axis order that the profile gives it.

    Args:
        rows: what the profile says.
    """

    rows: HeadRows

    def order(self, q: Tensor, k: Tensor, context: PlanContext) -> TokenOrder:
        """``[H, Nv]``; ``[Nv]`` where all heads of the layer agree, None where that is the model's order."""
        chosen = _carried(self.rows, AXES, context, lambda: _choice(self.rows.row(context), q.device))
        layout = context.layout
        if isinstance(chosen, Tensor):
            order = axis_orders(layout.grid, chosen)[0]
        elif chosen == 0 and layout.text_position != "first":
            return TokenOrder()
        else:
            order = axis_order(layout.grid, AXIS_ORDERS[chosen], q.device)
        return TokenOrder(order, order)

    def __str__(self) -> str:
        counts = Counter(AXIS_ORDERS[axes] for axes in self.rows.table.axes.flatten().tolist())
        return "axis orders of the profile: " + _listed(counts)


@dataclass(frozen=True)
class ProfiledPairs:
    """Every head's pairs as the profile says, all heads of a layer in one map.

    Dense heads keep all pairs, skipped ones the rows of text only; masks are stored, windows and radial bands
    are rules at a density. These stay for a whole step group: they are made at its first call and carried as
    bits. Dynamic heads keep their heaviest pairs of the call, by mean keys, up to a budget of their own.

    Text rows and columns and the own diagonal are kept by all but skipped heads, and count.

    Args:
        rows: what the profile says.
    """

    rows: HeadRows

    def select(self, given: SelectionInput) -> Tensor:
        """Bool ``[B, H, nQ, nK]``."""
        bits, heads, budgets = _carried(self.rows, PAIRS, given.context, lambda: self._prepared(given))
        fixed = None if bits is None else unpack_bits(bits, given.forced.shape[1]).expand(given.shape)
        if fixed is not None and not budgets:
            return fixed
        if heads is not None:
            given = replace(given, q=given.q.index_select(2, heads), k=given.k.index_select(2, heads))
        cost = -estimate_mass(given, "mean_key")
        parts = cost.split([count for _, count in budgets], dim=1)
        chosen = [spend(part, given.forced, density, "head") for part, (density, _) in zip(parts, budgets)]
        dynamic = torch.cat(chosen, dim=1)
        return (
            dynamic if heads is None else (dynamic if fixed is None else fixed).index_copy(1, heads, dynamic)
        )

    def _prepared(self, given: SelectionInput) -> tuple[Tensor | None, Tensor | None, tuple[Any, ...]]:
        """Bits ``[H, nQ, ceil(nK / 8)]`` of the fixed heads, None if there is none; indices of the dynamic
        heads by density, None if they are all heads in their order; (density, number of heads) of those."""
        row = self.rows.row(given.context)
        dynamic = [head for head, kind in enumerate(row.kind) if kind == DYNAMIC]
        dynamic.sort(key=lambda head: row.density[head])
        budgets = tuple(Counter(row.density[head] for head in dynamic).items())  # in the order of the heads
        whole = dynamic == list(range(len(row.kind)))
        heads = None if whole or not dynamic else torch.tensor(dynamic, device=given.q.device)
        fixed = len(dynamic) < len(row.kind)
        return pack_bits(_fixed_pairs(row, given)) if fixed else None, heads, budgets

    def __str__(self) -> str:
        counts = Counter(KINDS[kind] for kind in self.rows.table.kind.flatten().tolist())
        return f"pairs of the profile: {_listed(counts)}"


@dataclass(frozen=True)
class ProfiledPrecision:
    """The arithmetic of every step group and layer.

    Args:
        rows: what the profile says.
    """

    rows: HeadRows

    @property
    def names(self) -> tuple[str, ...]:
        """Those that occur."""
        return tuple(sorted({name for layers in self.rows.table.precisions for name in layers}))

    def at(self, context: PlanContext) -> str:
        """That of the layer in the step's group."""
        return self.rows.table.precisions[self.rows.group(context.site)][context.site.layer]


def _carried(rows: HeadRows, key: str, context: PlanContext, make: Callable[[], Any]) -> Any:
    """What was made for this layer in this step group; made now where it was not."""
    values, group = context.state.values, rows.group(context.site)
    held = values.get(key)
    if held is None or held[0] != group:
        held = values[key] = (group, make())
    return held[1]


def _choice(row: LayerRow, device: torch.device) -> Tensor | int:
    """The axis order that all heads share, or int64 ``[H]``."""
    return row.axes[0] if len(set(row.axes)) == 1 else torch.tensor(row.axes, device=device)


def _fixed_pairs(row: LayerRow, given: SelectionInput) -> Tensor:
    """Bool ``[H, nQ, nK]``; dynamic heads have the forced pairs."""
    layout, forced, device = given.context.layout, given.forced, given.q.device
    size, tokens = given.context.block_size, layout.num_tokens
    text = forced_pairs(tokens, layout.video_tokens, layout.text_tokens, size, device, diagonal=False)
    kept = forced.repeat(len(row.kind), 1, 1)
    masks = iter(() if row.masks is None else _fitted(row.masks.to(device), row.mask_columns, forced))
    rules: dict[tuple[Any, ...], Tensor] = {}
    for head, kind in enumerate(row.kind):
        if kind == DENSE:
            kept[head] = True
        elif kind == SKIP:
            kept[head] = text.all(dim=-1, keepdim=True)
        elif kind == MASK:
            kept[head] |= next(masks)
        elif kind in (WINDOW, RADIAL):
            rule = (kind, row.axes[head], row.density[head], row.shape[head])
            if rule not in rules:
                rules[rule] = _rule_pairs(*rule, given)
            kept[head] = rules[rule]
    return kept


def _rule_pairs(
    kind: int, axes: int, density: float, shape: tuple[float, float, float], given: SelectionInput
) -> Tensor:
    """Bool ``[nQ, nK]`` of a window or radial band in an axis order."""
    order = axis_order(given.context.layout.grid, AXIS_ORDERS[axes], given.q.device)
    selector = Window(shape, density) if kind == WINDOW else RadialBand(density)
    return selector.select(replace(given, order=TokenOrder(order, order)))[0, 0]


def _fitted(bits: Tensor, columns: int, forced: Tensor) -> Tensor:
    """Stored masks for a call whose text is longer or shorter: all that differs are blocks of text, which lie
    last and are forced. Bool ``[heads, nQ, nK]``."""
    mask = unpack_bits(bits, columns)[:, : forced.shape[0], : forced.shape[1]]
    more = [want - have for want, have in zip(forced.shape, mask.shape[1:])]
    return torch.nn.functional.pad(mask, (0, more[1], 0, more[0]))


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common())
