"""What a handle keeps while it is attached: method, state, records; and the decision sparse or dense per
call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dit_sparse import kernels
from dit_sparse.engine import SparseMethod, sparse_attention
from dit_sparse.layout import Site, SiteRecord, TokenLayout
from dit_sparse.state import State

PLANNED = ("dense_step", "dense_layer", "min_tokens")
"""Reasons to run dense that the schedule asked for; any other is a fallback."""

FALLBACKS = {
    "attention_mask": "an attention mask that is not plain text padding was passed",
    "token_count": "the sequence does not hold the tokens that the model's inputs announce",
    "parallelism": "context parallelism is enabled for this model",
}


@dataclass(frozen=True)
class Call:
    """One attention call: where it is, its tokens, and what dense attention would be.

    Args:
        site, layout: where, and the token grid with the padded text length.
        num_layers: self-attention layers of the transformer.
        valid_text: valid text tokens of every sample when the model pads its text at the tail, else None.
        dense: computes what the stock processor would have.
        scale: softmax scale or None.
        obstacle: None, or a key of :data:`FALLBACKS`.
    """

    site: Site
    layout: TokenLayout
    num_layers: int
    valid_text: tuple[int, ...] | None
    dense: Callable[[], Tensor]
    scale: float | None
    obstacle: str | None


class Runtime:
    """Runs attention calls for one handle.

    Args:
        method: the composition to run.
        impl: kernel, see :func:`dit_sparse.kernels.block_sparse_attention`.
        strict: raise instead of falling back to dense attention.
    """

    def __init__(self, method: SparseMethod, impl: str = "auto", strict: bool = False) -> None:
        self.method = method
        self.impl = impl
        self.strict = strict
        self.state = State()
        self.records: list[SiteRecord] = []

    def new_generation(self) -> None:
        """Forget everything that belongs to the previous generation."""
        self.state.reset()
        self.records.clear()

    def run(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        """Attention of one call ``[B, N, H, D]``, sparse where the schedule and the inputs allow it.

        Raises:
            RuntimeError: with ``strict``, where only dense attention can serve the call.
        """
        obstacle = call.obstacle
        if obstacle is None and q.shape[1] != call.layout.num_tokens:
            obstacle = "token_count"
        planned = self.method.schedule.dense_reason(call.site, call.layout, call.num_layers)
        if planned is not None:
            self.records.append(SiteRecord(call.site, 1.0, planned, "dense"))
            return call.dense()
        if obstacle is not None:
            self.fall_back(call.site, obstacle)
            return call.dense()
        if call.valid_text is None or set(call.valid_text) == {call.layout.text_tokens}:
            return self._sparse(q, k, v, call.layout, call)
        return self._sparse_padded(q, k, v, call.valid_text, call)

    def fall_back(self, site: Site, obstacle: str) -> None:
        """Take note of a dense call that the schedule did not ask for.

        Raises:
            RuntimeError: with ``strict``.
        """
        if self.strict:
            raise RuntimeError(
                f"{site} cannot run sparse: {FALLBACKS[obstacle]}; pass strict=False to run it dense"
            )
        self.records.append(SiteRecord(site, 1.0, obstacle, "dense"))

    def _sparse(
        self, q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, call: Call, sample: int = 0
    ) -> Tensor:
        out, plan = sparse_attention(
            q,
            k,
            v,
            method=self.method,
            layout=layout,
            site=call.site,
            state=self.state.layer(call.site, sample),
            scale=call.scale,
            impl=self.impl,
        )
        self.records.append(
            SiteRecord(call.site, plan.density, None, self._backend(q, plan.block_map.block_size))
        )
        return out

    def _sparse_padded(self, q: Tensor, k: Tensor, v: Tensor, valid: tuple[int, ...], call: Call) -> Tensor:
        """Text padding is trimmed; its rows come out as zeros, which no later layer reads."""
        out = torch.zeros_like(q)
        groups = {0: slice(None)} if len(set(valid)) == 1 else {i: slice(i, i + 1) for i in range(len(valid))}
        for sample, rows in groups.items():
            text = valid[sample]
            layout = replace(call.layout, text_tokens=text, text_position="last" if text else "none")
            live = (rows, slice(0, layout.num_tokens))
            out[live] = self._sparse(q[live], k[live], v[live], layout, call, sample)
        return out

    def _backend(self, q: Tensor, block_size: tuple[int, int]) -> str:
        if self.impl != "auto":
            return self.impl
        return kernels.explain_backend(q.device, q.dtype, q.shape[-1], block_size)[0]
