"""Which backend runs: one registry, one request, one reason for every refusal.

A backend is a row in ``BACKENDS``: what it needs (a function from :class:`Request` to a reason or None) and
how to load its ``forward``. ``auto`` takes the first row, in order of speed, that gives no reason. Asking for
a backend by name never falls back: what cannot run raises with the reason.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from dit_sparse.kernels import flash4
from dit_sparse.kernels.checks import check_attention, resolve_scale
from dit_sparse.layout import BlockMap

Forward = Callable[..., tuple[Tensor, "Tensor | None"]]
TRITON_BLOCK_MULTIPLE = 16
MAX_TRITON_HEAD = 128


@dataclass(frozen=True)
class Request:
    """What the choice of a backend depends on.

    Args:
        device: where q lives.
        dtype, head_dim: of q, k and v.
        block_size: (query, key) block in tokens.
        by_name: whether the caller named the backend; slow debugging paths answer only then.
    """

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    block_size: tuple[int, int]
    by_name: bool = False


@dataclass(frozen=True)
class Backend:
    """One way to compute block-sparse attention.

    Args:
        module: module within this package whose ``forward`` does it; imported at first use.
        refusal: the reason why it cannot serve a request, or None.
        merit: why ``auto`` takes it, for :func:`explain_backend`.
    """

    module: str
    refusal: Callable[[Request], str | None]
    merit: str

    def forward(self) -> Forward:
        """Import the module and return its entry."""
        return importlib.import_module(f"dit_sparse.kernels.{self.module}").forward


@lru_cache
def installed(module: str) -> bool:
    """Whether ``module`` (dotted) can be found, without importing it; a broken parent package counts as
    absent."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def triton_interpreted() -> bool:
    """Whether Triton kernels run in Python on CPU tensors (``TRITON_INTERPRET=1``): for tests, very slow."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def _flash4_refusal(request: Request) -> str | None:
    if request.device.type != "cuda" or torch.version.hip is not None:
        return f"needs an NVIDIA GPU, the tensors are on {request.device}"
    if not installed("flash_attn.cute"):
        return "flash-attn-4 is not installed: pip install 'dit-sparse[gpu]'"
    if (broken := flash4.import_error()) is not None:
        return broken
    capability = torch.cuda.get_device_capability(request.device)
    return flash4.limits(capability, request.dtype, request.head_dim, request.block_size)


def _triton_refusal(request: Request) -> str | None:
    if not installed("triton"):
        return "triton is not installed: it comes with PyTorch for GPUs, or pip install triton"
    if request.device.type != "cuda":
        if not (request.by_name and triton_interpreted()):
            return f"needs a GPU, the tensors are on {request.device} (TRITON_INTERPRET=1 emulates one)"
    elif torch.version.hip is None and torch.cuda.get_device_capability(request.device) < (8, 0):
        return "needs compute capability 8.0 or later"
    if any(edge % TRITON_BLOCK_MULTIPLE for edge in request.block_size):
        return f"needs block edges that are multiples of {TRITON_BLOCK_MULTIPLE}, got {request.block_size}"
    if request.head_dim > MAX_TRITON_HEAD:
        return f"needs a head size up to {MAX_TRITON_HEAD}, got {request.head_dim}"
    return None


BACKENDS: dict[str, Backend] = {
    "flash4": Backend(
        "flash4", _flash4_refusal, "FlashAttention-4, within 4-8% of the dense kernel's rate on Hopper"
    ),
    "triton": Backend(
        "triton_forward", _triton_refusal, "the fastest installed kernel for this GPU and these shapes"
    ),
    "gathered": Backend(
        "gathered", lambda request: None, "works everywhere and skips what the block map skips"
    ),
    "reference": Backend("reference", lambda request: None, "the definition, for checking"),
}
"""By descending speed: ``auto`` takes the first that can serve."""


def explain_backend(
    q_device: torch.device | str, dtype: torch.dtype, head_dim: int, block_size: tuple[int, int]
) -> tuple[str, str]:
    """The backend that ``impl="auto"`` runs for such tensors, and why: its merit, and why the faster ones
    cannot.

    Args:
        q_device, dtype, head_dim: of q.
        block_size: (query, key) block in tokens.
    """
    request = Request(torch.device(q_device), dtype, head_dim, block_size)
    refusals: list[str] = []
    for name, backend in BACKENDS.items():
        refusal = backend.refusal(request)
        if refusal is None:
            return name, "; ".join([backend.merit, *refusals])
        refusals.append(f"{name} {refusal}")
    raise AssertionError("unreachable: the last backends serve every request")


def available_backends() -> dict[str, str]:
    """Every backend of this machine: "available", or why not; for bfloat16, head size 128 and 128x128
    blocks."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    request = Request(device, torch.bfloat16, 128, (128, 128), by_name=True)
    return {name: backend.refusal(request) or "available" for name, backend in BACKENDS.items()}


def resolve_backend(impl: str, request: Request) -> str:
    """Name of the backend that runs for ``impl``.

    Raises:
        ValueError: for an unknown name, or a named backend that cannot serve the request.
    """
    if impl == "auto":
        return explain_backend(request.device, request.dtype, request.head_dim, request.block_size)[0]
    if impl not in BACKENDS:
        raise ValueError(f"unknown impl {impl!r}: choose one of {['auto', *BACKENDS]}")
    refusal = BACKENDS[impl].refusal(request)
    if refusal is not None:
        raise ValueError(f"impl {impl!r} cannot run here: it {refusal}. impl='auto' chooses one that can")
    return impl


@torch.no_grad()
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_map: BlockMap,
    *,
    scale: float | None = None,
    return_lse: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of every query to the keys of the blocks its row of ``block_map`` keeps, and to no others.

    Skipping precedes the softmax: a skipped block adds nothing to the denominator either. Inference only: the
    result carries no gradient.

    Args:
        q: ``[B, Nq, H, D]``, float16, bfloat16 or float32; any strides with a contiguous last dimension.
        k, v: ``[B, Nk, H, D]`` like q.
        block_map: kept blocks for Nq queries and Nk keys, on q's device.
        scale: factor on the logits, positive; 1 / sqrt(D) when None.
        return_lse: also return the log-sum-exp.
        impl: "auto", or a name in ``BACKENDS`` ("flash4", "triton", "gathered", "reference").

    Returns:
        out ``[B, Nq, H, D]`` contiguous, in q's dtype. With ``return_lse`` also lse, float32 ``[B, H, Nq]``:
        the natural logarithm of the sum of exp(scaled logits) over kept keys. A row that keeps nothing gives
        zeros and -inf.

    Raises:
        ValueError: for tensors or a map that do not fit together, an unknown ``impl``, or one that cannot run
            here.
    """
    check_attention(q, k, v, block_map)
    head_dim = q.shape[-1]
    name = resolve_backend(impl, Request(q.device, q.dtype, head_dim, block_map.block_size, by_name=True))
    forward = BACKENDS[name].forward()
    out, lse = forward(q, k, v, block_map, scale=resolve_scale(scale, head_dim), return_lse=return_lse)
    if lse is None:
        return out
    return out, lse
