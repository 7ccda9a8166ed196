"""The dense-versus-dense floor: how far two exact attention kernels already are apart on this model.

Rounding differs between kernels, and a sampler amplifies it over its steps: no sparse method can be expected
to come closer to the dense video than a second dense kernel does. The second kernel is the one that the
sparse run used, with every block kept, so that the floor is what skipping alone is to be measured against.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.engine import SparseMethod
from dit_sparse.report.schema import Floor, Metrics
from dit_sparse.schedule import Schedule
from dit_sparse.selectors import SelectionInput

NOT_ASKED = "it was not asked for: --floor (in Python floor=True) measures it by one more dense run"
WITHOUT_DENSE = "it needs the dense run of --compare"


@dataclass(frozen=True)
class Everything:
    """A selector that keeps every pair: dense attention by a block-sparse kernel."""

    def select(self, given: SelectionInput) -> Tensor:
        """All true, ``[B, H, nQ, nK]``."""
        return torch.ones(given.shape, dtype=torch.bool, device=given.q.device)


def dense_method() -> SparseMethod:
    """Dense attention through the kernels of this package, at every step and layer."""
    return SparseMethod("dense", Everything(), schedule=Schedule(min_tokens=0))


def second_kernel(used: str, device: torch.device) -> str:
    """The backend for the floor of a sparse run that used kernel ``used`` ("dense" if nothing ran sparse).

    "gathered" attends through torch's own attention on the CPU: it would compare a kernel with itself.
    """
    if used == "gathered" and device.type == "cpu":
        return "reference"
    return "auto" if used == "dense" or "+" in used else used


def floor_section(metrics: Metrics, kernel: str, seconds: float) -> Floor:
    """The report's floor, from the metrics of the second dense video against the first.

    Args:
        kernel: that made the second video.
        seconds: its denoising time.
    """
    return Floor(
        psnr=metrics.psnr,
        ssim=metrics.ssim,
        lpips=metrics.lpips,
        identical=bool(metrics.identical),
        kernel=kernel,
        denoise_s=seconds,
    )
