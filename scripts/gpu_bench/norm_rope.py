"""QK norm and RoPE: the fused kernel beside the chain of the stock processors and a plain copy.

The stock chain is diffusers' own code: the real processor runs, with projections that hand out ready tensors
and an attention that hands q and k on. So eager, compiled and fused calls differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from dit_sparse.adapters.fused import NormRopeFusion
from dit_sparse.adapters.processors import make_processor
from dit_sparse.kernels import inverse_order, norm_rope, permute_rows, rotary_table
from dit_sparse.kernels.dispatch import installed
from gpu_bench.harness import Row, Settings, benchmark, error_note, random_qkv
from gpu_bench.models import Model, chosen_models

EPS = 1e-6
WARPS = (2, 4, 8, 16)


class _HandOn:
    """A tap that keeps q and k, and computes nothing."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
        self.seen = (q, k)
        return q


class Chain:
    """Random q and k of one model, and all that its processor needs to normalise and turn them.

    Args:
        model: Wan (norm over all heads) or HunyuanVideo (per head; text last, not turned).
        device: where the tensors live.
    """

    def __init__(self, model: Model, device: str) -> None:
        from diffusers.models.normalization import RMSNorm
        from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
        from diffusers.models.transformers.transformer_wan import WanAttnProcessor

        torch.manual_seed(0)
        self.layout, heads, dim = model.layout, model.heads, model.dim
        self.q, self.k, _ = random_qkv(self.layout.num_tokens, heads, dim, device)
        video = self.layout.num_tokens - self.layout.text_tokens
        angles = torch.rand(video, dim // 2, device=device).mul(6.3).repeat_interleave(2, dim=1)
        self.cos, self.sin = angles.cos(), angles.sin()
        across = model.family == "wan"
        self.stock: Any = WanAttnProcessor() if across else HunyuanVideoAttnProcessor2_0()
        norm = torch.nn.RMSNorm(heads * dim, eps=EPS) if across else RMSNorm(dim, eps=EPS)
        self.norm = norm.to(device, torch.bfloat16).requires_grad_(False)
        self.rounding = "torch" if across else "diffusers"
        dummy = torch.empty(1, video, 1, device=device, dtype=torch.bfloat16)
        text = torch.empty(1, self.layout.text_tokens, 1, device=device, dtype=torch.bfloat16)
        turn = (self.cos[None, :, None], self.sin[None, :, None]) if across else (self.cos, self.sin)
        self._arguments = (dummy, None if across else text, None, turn)

    def processor(self, fused: bool) -> Callable[[], tuple[Tensor, Tensor]]:
        """A call of the stock processor, or of the fused one, that returns q and k as attention gets them."""
        q, k = self.q.flatten(2), self.k.flatten(2)
        attn = SimpleNamespace(
            heads=self.q.shape[2],
            add_q_proj=None,
            add_k_proj=None,
            fused_projections=False,
            to_q=lambda x: q,
            to_k=lambda x: k,
            to_v=lambda x: k,
            to_out=[lambda x: x] * 2,
            norm_q=self.norm,
            norm_k=self.norm,
            parameters=self.norm.parameters,
        )
        tap = _HandOn()
        call = make_processor(self.stock, tap, NormRopeFusion(auto=False) if fused else None)

        def run() -> tuple[Tensor, Tensor]:
            call(attn, *self._arguments)
            return tap.seen

        return run

    def kernel(self, **options: Any) -> Callable[[], tuple[Tensor, Tensor]]:
        """The kernel alone on q and k."""
        table = rotary_table(self.cos, self.sin)
        run = partial(norm_rope, eps=EPS, rounding=self.rounding, **options)
        return lambda: (run(self.q, self.norm.weight, table), run(self.k, self.norm.weight, table))


@benchmark("norm_rope")
def bench_norm_rope(settings: Settings) -> list[Row]:
    """Norm and RoPE of q and k of one layer: stock, compiled, fused; alone and with an order per head."""
    rows: list[Row] = []
    for name, model in chosen_models(settings.quick).items():
        if model.family != "cogvideox":  # it normalises by LayerNorm
            rows += norm_rope_rows(name, model, settings)
    return rows


@torch.no_grad()
def norm_rope_rows(name: str, model: Model, settings: Settings) -> list[Row]:
    """Every way to normalise and turn q and k of one model; GB/s count one read and one write of both."""
    chain = Chain(model, settings.device)
    q, k = chain.q, chain.k
    orders = torch.rand(1, model.heads, q.shape[1], device=settings.device).argsort(dim=-1).int()
    spare = torch.empty_like(q)
    stock, alone = chain.processor(fused=False), chain.kernel()

    def then_permute() -> list[Tensor]:
        return [permute_rows(x, orders) for x in alone()]

    runs: dict[str, Callable[[], object]] = {
        "copy": lambda: (spare.copy_(q), spare.copy_(k)),
        "stock processor, eager": stock,
        "stock processor, compiled": torch.compile(stock, dynamic=False),
        "fused processor, eager": chain.processor(fused=True),
        "fused kernel": alone,
        "fused kernel, then permute": then_permute,
        "fused kernel with order": chain.kernel(order=orders),
        "fused kernel with inverted order": chain.kernel(positions=inverse_order(orders)),
    }
    times: dict[str, float] = {}
    rows: list[Row] = []
    for kernel, run in runs.items():
        row: Row = {"shape": name, "kernel": kernel}
        try:
            times[kernel] = settings.time(run)
        except Exception as error:  # one way's failure must not cost the table
            rows.append(row | {"ms": None, "note": error_note(error)})
            continue
        row["ms"] = round(times[kernel], 3)
        row["GB/s"] = round(4 * q.numel() * q.element_size() / times[kernel] / 1e6)
        if copy_ms := times.get("copy"):
            row["of_copy"] = round(copy_ms / times[kernel], 2)
        if eager_ms := times.get("stock processor, eager"):
            row["speedup_vs_stock"] = round(eager_ms / times[kernel], 2)
        rows.append(row)
    return rows


@benchmark("norm_rope_warps", default=False)
def bench_warps(settings: Settings) -> list[Row]:
    """The fused kernel on q by warps per program: the source of its choice."""
    if not installed("triton"):
        return [{"note": "triton is not installed"}]
    from dit_sparse.kernels import triton_norm_rope

    rows: list[Row] = []
    for name, model in chosen_models(settings.quick).items():
        if model.family == "cogvideox":
            continue
        chain = Chain(model, settings.device)
        table, diffusers = rotary_table(chain.cos, chain.sin), chain.rounding == "diffusers"
        for warps in WARPS:
            run = partial(
                triton_norm_rope.forward, chain.q, chain.norm.weight, table, None, eps=EPS, start=0,
                round_scaled=diffusers, round_normed=True, num_warps=warps,
            )  # fmt: skip
            rows.append({"shape": name, "warps": warps, "ms": round(settings.time(run), 3)})
    return rows
