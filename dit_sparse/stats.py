"""What was computed and what was not: the figures behind ``Handle.stats()`` and the report."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dit_sparse.layout import SiteRecord
from dit_sparse.runtime import FALLBACKS, PLANNED


@dataclass(frozen=True)
class Stats:
    """Records of the last generation, with the figures drawn from them.

    Args:
        records: one per attention call, densities as numbers and by head as tensors on the CPU.
        state_bytes: most bytes carried between steps.
    """

    records: tuple[SiteRecord, ...]
    state_bytes: int

    @classmethod
    def read(cls, records: Sequence[SiteRecord], state_bytes: int) -> Stats:
        """Take the records over; waits once per device and number of heads for what still lies there."""
        densities = fetched([r.density for r in records])
        heads = fetched([r.heads for r in records])
        read = (replace(r, density=float(d), heads=h) for r, d, h in zip(records, densities, heads))
        return cls(tuple(read), state_bytes)

    @cached_property
    def density_total(self) -> float:
        """Mean fraction of blocks computed over all calls, dense ones included; 1.0 before any call."""
        return _mean([float(r.density) for r in self.records], 1.0)

    @cached_property
    def density_sparse_sites(self) -> float | None:
        """The same over the sparse calls only; None if there was none."""
        sparse = [float(r.density) for r in self.records if r.dense_reason is None]
        return _mean(sparse, 0.0) if sparse else None

    @cached_property
    def dense_sites(self) -> dict[str, int]:
        """Number of dense calls by reason."""
        return dict(Counter(r.dense_reason for r in self.records if r.dense_reason is not None))

    @cached_property
    def fallbacks(self) -> list[str]:
        """Dense calls that the schedule did not ask for, in words."""
        return [
            f"{count} of {len(self.records)} attention calls ran dense: {FALLBACKS[reason]}"
            for reason, count in self.dense_sites.items()
            if reason not in PLANNED
        ]

    @cached_property
    def backends(self) -> list[str]:
        """Kernels that ran, sorted."""
        return sorted({r.backend for r in self.records if r.dense_reason is None})

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the figures and one row per call."""
        return {
            "density_total": self.density_total,
            "density_sparse_sites": self.density_sparse_sites,
            "dense_sites": self.dense_sites,
            "fallbacks": self.fallbacks,
            "backends": self.backends,
            "state_bytes": self.state_bytes,
            "records": [
                {
                    "transformer": r.site.transformer,
                    "layer": r.site.layer,
                    "step": r.site.step,
                    "branch": r.site.branch,
                    "density": float(r.density),
                    "dense_reason": r.dense_reason,
                    "backend": r.backend,
                }
                for r in self.records
            ],
        }


def fetched(values: Sequence[Any]) -> list[Any]:
    """The same values, tensors on the CPU: those of one device and shape come in one copy."""
    alike: dict[tuple[torch.device, torch.Size], list[int]] = defaultdict(list)
    for index, value in enumerate(values):
        if isinstance(value, Tensor):
            alike[value.device, value.shape].append(index)
    read = list(values)
    for indices in alike.values():
        for index, value in zip(indices, torch.stack([values[i] for i in indices]).cpu()):
            read[index] = value
    return read


def _mean(values: list[float], empty: float) -> float:
    return sum(values) / len(values) if values else empty
