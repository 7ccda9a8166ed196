"""Heads of an observed call, brought into their orders: what every pair of their blocks is worth."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dit_sparse import kernels
from dit_sparse.context import Observation
from dit_sparse.kernels.sampling import RANKING_ROWS
from dit_sparse.orderings import ALL, Heads, TokenOrder, with_text
from dit_sparse.selectors.base import SelectionInput, forced_pairs


@dataclass(frozen=True)
class ObservedHeads:
    """Heads of one call in their orders, with dense attention.

    Args:
        given: the selection problem.
        out: dense output ``[B, N, heads, D]``.
        lse: float32 ``[B, heads, N]``.
    """

    given: SelectionInput
    out: Tensor
    lse: Tensor

    @classmethod
    def of(cls, seen: Observation, given: SelectionInput, heads: Heads = ALL) -> ObservedHeads:
        """The dense attention of some heads, in the order of a problem that was posed for them."""
        out, lse = seen.out[:, :, heads], seen.lse[:, heads]
        order = with_text(given.order.q, given.context.layout)
        if order is None:
            return cls(given, out, lse)
        return cls(given, kernels.permute_rows(out, order), lse.gather(-1, order.expand(lse.shape)))

    @classmethod
    def sorted(cls, seen: Observation, order: TokenOrder, heads: Heads = ALL) -> ObservedHeads:
        """Some heads in another order than the method's own.

        Args:
            seen: the call.
            order: of the video tokens, queries and keys alike, ``[heads, Nv]`` or ``[B, heads, Nv]``.
            heads: which.
        """
        context, layout = seen.context, seen.context.layout
        rows = with_text(order.q, layout)
        assert rows is not None, "a model's own order has no tensor"
        q, k, v = (kernels.permute_rows(x[:, :, heads], rows) for x in (seen.q, seen.k, seen.v))
        sizes = (layout.num_tokens, layout.video_tokens, layout.text_tokens)
        forced = forced_pairs(*sizes, context.block_size, q.device)
        return cls.of(seen, SelectionInput(q, k, v, order, forced, 0, context), heads)

    @property
    def text_rows(self) -> Tensor:
        """Bool ``[nQ]``: blocks of queries that hold text."""
        given, layout = self.given, self.given.context.layout
        sizes = (layout.num_tokens, layout.video_tokens, layout.text_tokens)
        text = forced_pairs(*sizes, given.context.block_size, given.q.device, diagonal=False)
        return text.all(dim=-1)

    def mass(self) -> Tensor:
        """Exact softmax mass of every pair, float32 ``[B, heads, nQ, nK]``."""
        given = self.given
        return kernels.block_mass(given.q, given.k, self.lse, given.context.block_size, given.context.scale)

    def skip_error(self, rows: int = RANKING_ROWS) -> Tensor:
        """Exact error that every pair causes when its means stand in for it, float32 ``[B, heads, nQ, nK]``.

        Args:
            rows: queries of every query block that stand for it, >= 1.
        """
        given = self.given
        return kernels.skip_error(
            *(given.q, given.k, given.v, self.out, self.lse, given.context.block_size, given.context.scale),
            rows=rows,
        )

    def worth(self, compensated: bool) -> Tensor:
        """What keeping every pair is worth: :meth:`skip_error` where skipped ones enter through their means,
        else :meth:`mass`."""
        return self.skip_error() if compensated else self.mass()
