"""The parts of a method that follow a profile: every head's order and pairs, every layer's precision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dit_sparse.layout import pack_bits, unpack_bits
from dit_sparse.methods.profiled_observed import PAIRS as LEARNT_PAIRS
from dit_sparse.methods.profiled_observed import LearningHeads
from dit_sparse.methods.profiled_rows import HeadRows, LayerRow, indices
from dit_sparse.orderings import AXIS_ORDERS, CHOICE, Heads, TokenOrder, axis_order, axis_orders
from dit_sparse.patterns import DENSE, DYNAMIC, KINDS, MASK, OBSERVED, RADIAL, SKIP, WINDOW
from dit_sparse.selectors import RadialBand, SelectionInput, Window, estimate_mass, forced_pairs
from dit_sparse.selectors.spend import spend_by_head

if TYPE_CHECKING:
    from dit_sparse.context import Observation, PlanContext

AXES, PAIRS = "profile.axes", "profile.pairs"
"""Keys in the layer's state: (step group, what was prepared for it)."""
Dynamic = tuple[Heads, Tensor, int]
"""Dynamic heads, the pairs that each keeps as int64 ``[heads]``, and the most of them."""


@dataclass(frozen=True)
class ProfiledAxes:
    """Every head's tokens in the axis order that the profile gives it; observed heads' in the shape of block
    that they learnt.

    Args:
        rows: what the profile says.
        learning: what observed heads learn.
    """

    rows: HeadRows
    learning: LearningHeads

    def wants(self, context: PlanContext) -> bool:
        """At the last dense step, and again, where heads learn."""
        return self.learning.wants(context, CHOICE)

    def observe(self, seen: Observation) -> None:
        """Choose the shapes."""
        self.learning.learn_shapes(seen)

    def order(self, q: Tensor, k: Tensor, context: PlanContext) -> TokenOrder:
        """``[H, Nv]``; ``[B, H, Nv]`` where heads learn theirs, ``[Nv]`` where all heads of the layer agree,
        None where that is the model's order."""
        chosen = _carried(self.rows, AXES, context, lambda: _choice(self.rows.row(context), q.device))
        layout = context.layout
        if isinstance(chosen, tuple):
            axes, learning = chosen
            return self.learning.order(context, axes, learning, q.shape[0])
        if isinstance(chosen, Tensor):
            order = axis_orders(layout.grid, chosen)[0]
        elif chosen == 0 and layout.text_position != "first":
            return TokenOrder()
        else:
            order = axis_order(layout.grid, AXIS_ORDERS[chosen], q.device)
        return TokenOrder(order, order)

    def __str__(self) -> str:
        table = self.rows.table
        heads = zip(table.kind.flatten().tolist(), table.axes.flatten().tolist())
        counts = Counter("learnt" if kind == OBSERVED else AXIS_ORDERS[axes] for kind, axes in heads)
        return "axis orders of the profile: " + _listed(counts)


@dataclass(frozen=True)
class ProfiledPairs:
    """Every head's pairs as the profile says, all heads of a layer in one map.

    Dense heads keep all pairs, skipped ones the rows of text only; masks are stored, windows and radial bands
    are rules at a density. These stay for a whole step group: they are made at its first call and carried as
    bits. Dynamic heads keep their heaviest pairs of the call, by mean keys, up to a budget of their own;
    observed heads those that they learnt.

    Text rows and columns and the own diagonal are kept by all but skipped heads, and count.

    Args:
        rows: what the profile says.
        learning: what observed heads learn.
    """

    rows: HeadRows
    learning: LearningHeads

    def wants(self, context: PlanContext) -> bool:
        """At the last dense step, and again, where heads learn."""
        return self.learning.wants(context, LEARNT_PAIRS)

    def observe(self, seen: Observation) -> None:
        """Draw the pairs of the observed heads."""
        self.learning.learn_pairs(seen)

    def select(self, given: SelectionInput) -> Tensor:
        """Bool ``[B, H, nQ, nK]``.

        Raises:
            ValueError: if an observed head has observed nothing yet.
        """
        bits, dynamic, observed = _carried(self.rows, PAIRS, given.context, lambda: self._prepared(given))
        mask = None if bits is None else unpack_bits(bits, given.forced.shape[1]).expand(given.shape)
        if dynamic is not None:
            mask = _put(mask, dynamic[0], _heaviest(given, *dynamic))
        if observed is not None:
            mask = _put(mask, observed, self.learning.pairs(given.context, given.forced))
        assert mask is not None, "a layer has heads"
        return mask

    def _prepared(self, given: SelectionInput) -> tuple[Tensor | None, Dynamic | None, Heads | None]:
        """Bits ``[H, nQ, ceil(nK / 8)]``, None where no head has pairs that stay; dynamic heads; observed
        heads."""
        row, device = self.rows.row(given.context), given.q.device
        count, size = len(row.kind), given.forced.numel()
        dynamic, observed = row.heads_of(DYNAMIC), row.heads_of(OBSERVED)
        bits = None if count in (len(dynamic), len(observed)) else pack_bits(fixed_pairs(row, given))
        chosen = None
        if dynamic:
            pairs = [max(1, round(row.density[head] * size)) for head in dynamic]
            chosen = (indices(dynamic, count, device), torch.tensor(pairs, device=device), max(pairs))
        return bits, chosen, indices(observed, count, device) if observed else None

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


def _choice(row: LayerRow, device: torch.device) -> Tensor | int | tuple[Tensor, Tensor]:
    """The axis order that all heads share, or int64 ``[H]``; where heads learn theirs, bool ``[H]`` says
    which."""
    axes = torch.tensor(row.axes, device=device)
    if OBSERVED in row.kind:
        return axes, torch.tensor([kind == OBSERVED for kind in row.kind], device=device)
    return row.axes[0] if len(set(row.axes)) == 1 else axes


def _heaviest(given: SelectionInput, heads: Heads, pairs: Tensor, most: int) -> Tensor:
    """Pairs of the dynamic heads."""
    mass = estimate_mass(replace(given, q=given.q[:, :, heads], k=given.k[:, :, heads]), "mean_key")
    return spend_by_head(-mass, given.forced, pairs, most)


def _put(mask: Tensor | None, heads: Heads, pairs: Tensor) -> Tensor:
    """A mask with the pairs of some heads put in."""
    if isinstance(heads, slice):
        return pairs
    return (pairs if mask is None else mask).index_copy(1, heads, pairs)


def fixed_pairs(row: LayerRow, given: SelectionInput) -> Tensor:
    """Pairs that stay for a step group, bool ``[H, nQ, nK]``; all other heads have the forced ones."""
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
