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
from functools import lru_cache, partial

import torch
from torch import Tensor

from dit_sparse.kernels import flash4, variable_blocks
from dit_sparse.kernels.checks import check_attention, resolve_scale
from dit_sparse.kernels.quantize import check_precision, fp8_refusal
from dit_sparse.kernels.variable_blocks import VariableBlocks
from dit_sparse.layout import BlockMap

Forward = Callable[..., tuple[Tensor, "Tensor | None"]]
TRITON_BLOCK_MULTIPLE = 16
MAX_TRITON_HEAD = 128
IMPLEMENTATIONS = ("auto", "triton", "reference")
"""What ``impl`` may be where there is one kernel beside the definition; see :func:`use_triton`."""


@dataclass(frozen=True)
class Request:
    """What the choice of a backend depends on.

    Args:
        device: where q lives.
        dtype, head_dim: of q, k and v.
        block_size: (query, key) block in tokens.
        by_name: whether the caller named the backend; slow debugging paths answer only then.
        precision: arithmetic, one of :data:`dit_sparse.kernels.PRECISIONS`.

    Raises:
        ValueError: for an unknown precision.
    """

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    block_size: tuple[int, int]
    by_name: bool = False
    precision: str = "native"

    def __post_init__(self) -> None:
        check_precision(self.precision)


@dataclass(frozen=True)
class Backend:
    """One way to compute block-sparse attention.

    Args:
        module: module within this package whose ``forward`` does it; imported at first use.
        refusal: the reason why it cannot serve a request, or None.
        merit: why ``auto`` takes it, for :func:`explain_backend`.
        quantized: the module for every precision but "native", if the backend has one.
    """

    module: str
    refusal: Callable[[Request], str | None]
    merit: str
    quantized: str | None = None

    def forward(self, precision: str) -> Forward:
        """Import the module and return its entry for ``precision``."""
        if precision == "native":
            return importlib.import_module(f"dit_sparse.kernels.{self.module}").forward
        module = importlib.import_module(f"dit_sparse.kernels.{self.quantized}")
        return partial(module.forward, precision=precision)


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
    if request.precision != "native":
        return f"serves precision 'native' only, got {request.precision!r}"
    if request.device.type != "cuda" or torch.version.hip is not None:
        return f"needs an NVIDIA GPU, the tensors are on {request.device}"
    if not installed("flash_attn.cute"):
        return "flash-attn-4 is not installed: pip install 'dit-sparse[gpu]'"
    if (broken := flash4.import_error()) is not None:
        return broken
    capability = torch.cuda.get_device_capability(request.device)
    return flash4.limits(capability, request.dtype, request.head_dim, request.block_size)


def _triton_device_refusal(device: torch.device, by_name: bool) -> str | None:
    if not installed("triton"):
        return "triton is not installed: it comes with PyTorch for GPUs, or pip install triton"
    if device.type != "cuda":
        if not (by_name and triton_interpreted()):
            return f"needs a GPU, the tensors are on {device} (TRITON_INTERPRET=1 emulates one)"
    elif torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return "needs compute capability 8.0 or later"
    return None


def _triton_head_refusal(head_dim: int) -> str | None:
    if head_dim > MAX_TRITON_HEAD:
        return f"needs a head size up to {MAX_TRITON_HEAD}, got {head_dim}"
    return None


def _triton_refusal(request: Request) -> str | None:
    if (reason := _triton_device_refusal(request.device, request.by_name)) is not None:
        return reason
    if any(edge % TRITON_BLOCK_MULTIPLE for edge in request.block_size):
        return f"needs block edges that are multiples of {TRITON_BLOCK_MULTIPLE}, got {request.block_size}"
    return _triton_head_refusal(request.head_dim) or fp8_refusal(
        request.precision, request.device, request.block_size
    )


def use_triton(x: Tensor, impl: str, *, products: bool = False) -> bool:
    """Whether an operation with one Triton kernel beside its definition runs the kernel.

    Args:
        x: an operand ``[B, N, H, D]``.
        impl: "auto" (Triton where it can run), "triton" or "reference".
        products: whether the kernel multiplies whole heads, which bounds the head size.

    Raises:
        ValueError: for an unknown ``impl``, or "triton" where it cannot run.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"unknown impl {impl!r}: choose one of {list(IMPLEMENTATIONS)}")
    if impl == "reference":
        return False
    refusal = _triton_device_refusal(x.device, by_name=impl == "triton")
    if refusal is None and products:
        refusal = _triton_head_refusal(x.shape[-1])
    if refusal is not None and impl == "triton":
        raise ValueError(_cannot_run(impl, refusal))
    return refusal is None


def _cannot_run(impl: str, refusal: str) -> str:
    return f"impl {impl!r} cannot run here: it {refusal}. impl='auto' chooses one that can"


BACKENDS: dict[str, Backend] = {
    "flash4": Backend(
        "flash4", _flash4_refusal, "FlashAttention-4, within 4-8% of the dense kernel's rate on Hopper"
    ),
    "triton": Backend(
        "triton_forward",
        _triton_refusal,
        "the fastest installed kernel for this GPU and these shapes",
        "triton_quantized",
    ),
    "gathered": Backend(
        "gathered",
        lambda request: None,
        "works everywhere and skips what the block map skips",
        "quantized_gathered",
    ),
    "reference": Backend(
        "reference", lambda request: None, "the definition, for checking", "quantized_reference"
    ),
}
"""By descending speed: ``auto`` takes the first that can serve."""


def explain_backend(
    q_device: torch.device | str,
    dtype: torch.dtype,
    head_dim: int,
    block_size: tuple[int, int],
    precision: str = "native",
) -> tuple[str, str]:
    """The backend that ``impl="auto"`` runs for such tensors, and why: its merit, and why the faster ones
    cannot.

    Args:
        q_device, dtype, head_dim: of q.
        block_size: (query, key) block in tokens.
        precision: arithmetic, see :func:`block_sparse_attention`.
    """
    request = Request(torch.device(q_device), dtype, head_dim, block_size, precision=precision)
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
        return explain_backend(
            request.device, request.dtype, request.head_dim, request.block_size, request.precision
        )[0]
    if impl not in BACKENDS:
        raise ValueError(f"unknown impl {impl!r}: choose one of {['auto', *BACKENDS]}")
    refusal = BACKENDS[impl].refusal(request)
    if refusal is not None:
        raise ValueError(_cannot_run(impl, refusal))
    return impl


@torch.no_grad()
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_map: BlockMap | VariableBlocks,
    *,
    scale: float | None = None,
    return_lse: bool = False,
    impl: str = "auto",
    precision: str = "native",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of every query to the keys of the blocks its row of ``block_map`` keeps, and to no others.

    Skipping precedes the softmax: a skipped block adds nothing to the denominator either. Inference only: the
    result carries no gradient.

    Args:
        q: ``[B, Nq, H, D]``, float16, bfloat16 or float32; any strides with a contiguous last dimension.
        k, v: ``[B, Nk, H, D]`` like q.
        block_map: kept blocks for Nq queries and Nk keys, on q's device. Blocks of variable length run as a
            reference only, see :mod:`dit_sparse.kernels.variable_blocks`.
        scale: factor on the logits, positive; 1 / sqrt(D) when None.
        return_lse: also return the log-sum-exp.
        impl: "auto", or a name in ``BACKENDS`` ("flash4", "triton", "gathered", "reference").
        precision: "native", that of the input; "int8" (q k^T in int8), "int4" (the same with 4-bit levels),
            "int8_fp8" (q k^T in int8, the product with v in e4m3) or "fp8" (both in e4m3). See
            :mod:`dit_sparse.kernels.quantize`. All but "native" read every token of k and v, kept or not: all
            must be finite. "gathered" and "reference" emulate them, at no gain in speed.

    Returns:
        out ``[B, Nq, H, D]`` contiguous, in q's dtype. With ``return_lse`` also lse, float32 ``[B, H, Nq]``:
        the natural logarithm of the sum of exp(scaled logits) over kept keys. A row that keeps nothing gives
        zeros and -inf.

    Raises:
        ValueError: for tensors or a map that do not fit together, an unknown ``impl`` or ``precision``, or an
            ``impl`` that cannot run here.
    """
    if isinstance(block_map, VariableBlocks):
        result = variable_blocks.attend(q, k, v, block_map, scale=scale, impl=impl, precision=precision)
        return result if return_lse else result[0]
    check_attention(q, k, v, block_map)
    head_dim = q.shape[-1]
    request = Request(q.device, q.dtype, head_dim, block_map.block_size, by_name=True, precision=precision)
    forward = BACKENDS[resolve_backend(impl, request)].forward(precision)
    out, lse = forward(q, k, v, block_map, scale=resolve_scale(scale, head_dim), return_lse=return_lse)
    if lse is None:
        return out
    return out, lse
