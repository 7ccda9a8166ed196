"""Muon: momentum whose matrix updates are orthogonalised, batched over parameters of equal shape.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon), with the update scaled to the root mean square of
AdamW's as in Moonlight (arXiv 2502.16982), so that one learning rate suits all shapes. Convolution kernels
are flattened to [out, in * taps]. Everything stays on the device, the learning rate too: a step waits for
nothing and can be recorded as a CUDA graph.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration towards U V^T of each of `matrices` [N, rows, columns]; same shape returned."""
    a, b, c = _COEFFICIENTS
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for parameters of two or more dimensions."""

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.02
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads = [p.grad for p in params]
            buffers = [self._buffer(p) for p in params]
            torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
            updates = torch._foreach_lerp(grads, buffers, group["momentum"])
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])

            same_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
            for i, update in enumerate(updates):
                same_shape[(update.shape[0], update.numel() // update.shape[0])].append(i)
            for (rows, columns), indices in same_shape.items():
                batch = orthogonalize(torch.stack([updates[i].reshape(rows, columns) for i in indices]))
                batch = batch * (-0.2 * max(rows, columns) ** 0.5 * group["lr"])
                deltas = [
                    delta.view(params[i].shape) for i, delta in zip(indices, batch.unbind(), strict=True)
                ]
                torch._foreach_add_([params[i] for i in indices], deltas)

    def _buffer(self, param: Tensor) -> Tensor:
        state = self.state[param]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(param)
        return state["momentum"]


class Optimizers:
    """Muon for the hidden matrices of `modules`, AdamW for everything else; one learning-rate `scale` for
    both.

    Args:
        exclude: parts of names of matrices that AdamW takes all the same (inputs, outputs, embeddings).
    """

    def __init__(
        self, modules: nn.ModuleDict, muon_lr: float, adam_lr: float, exclude: tuple[str, ...], fused: bool
    ) -> None:
        matrices: list[Tensor] = []
        rest: list[Tensor] = []
        for name, p in modules.named_parameters():
            flat = (p.shape[0], p.numel() // p.shape[0]) if p.ndim >= 2 else (1, 1)
            is_matrix = min(flat) >= 8 and not any(part in name for part in exclude)
            (matrices if is_matrix else rest).append(p)
        self.params = matrices + rest
        self.parts: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=muon_lr),
            torch.optim.AdamW(
                rest, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=fused, capturable=fused
            ),
        ]
        self.base_lr = (muon_lr, adam_lr)
        self.scale = torch.ones((), device=self.params[0].device)  # of both learning rates

    def minimize(self, loss: Tensor, clip_norm: float = 1.0) -> None:
        """One step down the gradient of `loss`, clipped."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params, clip_norm)
        for part, base in zip(self.parts, self.base_lr, strict=True):
            for group in part.param_groups:
                group["lr"] = base * self.scale
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)
