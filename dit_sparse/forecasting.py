"""What a density can gain: a forecast from a model's structure, without running it.

The transformer's time is split into self-attention, which shrinks with the density, and matrix products and
element-wise kernels, which do not (Amdahl). Dense steps and layers keep their whole attention; planning adds
a share of it. Text encoder, autoencoder and scheduler are left out.

The module is not called ``forecast``: a module of that name would hide ``dit_sparse.forecast``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from dit_sparse.layout import Site
from dit_sparse.schedule import DenseLayers, DenseSteps, Schedule
from dit_sparse.work import DEVICE_RATES, Rates, Work, work_of


@dataclass(frozen=True)
class ForecastResult:
    """Times of the transformer over one generation, in seconds, and what follows from them.

    Args:
        density: at the sparse calls, as given.
        density_total: with the dense guard counted as 1.
        attention_s, linear_s, elementwise_s: of a dense generation.
        planning_s: added by the sparse calls.
    """

    tokens: int
    density: float
    density_total: float
    attention_s: float
    linear_s: float
    elementwise_s: float
    planning_s: float
    rates: Rates

    @property
    def dense_s(self) -> float:
        """The transformer, dense."""
        return self.attention_s + self.linear_s + self.elementwise_s

    @property
    def sparse_s(self) -> float:
        """The transformer, sparse."""
        return self.dense_s / self.speedup_transformer

    @property
    def speedup_attention(self) -> float:
        """Self-attention with planning and dense guard."""
        return attainable(self.attention_s, self.attention_s, self.density_total, self.planning_s)

    @property
    def speedup_transformer(self) -> float:
        """The whole transformer."""
        return attainable(self.dense_s, self.attention_s, self.density_total, self.planning_s)

    @property
    def limit(self) -> float:
        """Speed-up of the transformer if self-attention cost nothing."""
        return self.dense_s / (self.linear_s + self.elementwise_s)

    def __str__(self) -> str:
        share = self.attention_s / self.dense_s
        return (
            f"{self.tokens:,} tokens; transformer dense {self.dense_s:.1f} s, {share:.0%} self-attention\n"
            f"density {self.density:.3f} at the sparse calls, {self.density_total:.3f} with the dense guard: "
            f"sparse {self.sparse_s:.1f} s\n"
            f"speed-up {self.speedup_attention:.2f} x attention, "
            f"{self.speedup_transformer:.2f} x transformer, at most {self.limit:.2f} x by attention alone\n"
            f"rates: {self.rates.source}"
        )


def attainable(total_s: float, attention_s: float, density: float, planning_s: float = 0.0) -> float:
    """Speed-up of ``total_s`` when ``attention_s`` of it shrinks to ``density`` (Amdahl).

    Args:
        total_s, attention_s: dense, in the same unit; the second is part of the first.
        density: over all calls, dense guard included, in (0, 1].
        planning_s: what sparse attention adds.
    """
    return total_s / (total_s - attention_s * (1.0 - density) + planning_s)


def forecast(
    pipe: Any,
    *,
    height: int,
    width: int,
    num_frames: int,
    density: float,
    steps: int,
    dense_steps: DenseSteps = 0,
    dense_layers: DenseLayers | float = (),
    samples_per_step: int = 2,
    text_tokens: int | None = None,
    planning: float = 0.05,
    rates: Rates | None = None,
    compiled: bool = False,
) -> ForecastResult:
    """Forecast times and speed-ups of a pipeline at one size.

    Args:
        pipe: a pipeline of a known model; of two experts the first stands for both.
        height, width: pixels.
        num_frames: frames of the video.
        density: fraction of attention blocks computed at the sparse calls, in (0, 1].
        steps: denoising steps, >= 1.
        dense_steps, dense_layers: the dense guard, see :class:`~dit_sparse.schedule.Schedule`.
        samples_per_step: samples the transformer sees per step: 2 with classifier-free guidance, else 1.
        text_tokens: of the prompt as the transformer sees it; the pipeline's longest when None.
        planning: what a sparse call spends beside attention, as a share of its dense attention, >= 0. An
            assumption: it depends on method and kernels, and the report of a run says what it was.
        rates: of the device; when None those of the pipeline's own in :data:`dit_sparse.work.DEVICE_RATES`.
            From a dense run of the same model at another size: :meth:`dit_sparse.work.Work.rates`.
        compiled: whether the transformer is compiled (element-wise kernels are fused).

    Raises:
        ValueError: for values out of range, an unknown model, or a device without known rates.
    """
    if not 0.0 < density <= 1.0:
        raise ValueError(f"density must be in (0, 1], got {density}: it is the fraction of blocks computed")
    for name, number in (("steps", steps), ("samples_per_step", samples_per_step)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    if planning < 0:
        raise ValueError(f"planning must be a share >= 0, got {planning}")
    size = {"height": height, "width": width, "num_frames": num_frames}
    work = work_of(pipe, **size, text_tokens=text_tokens, compiled=compiled)
    rates = _device_rates(pipe) if rates is None else rates
    schedule = Schedule(dense_steps, dense_layers, min_tokens=0)
    guarded = _guarded(schedule, work, steps)
    forwards = steps * samples_per_step
    attention_s = forwards * work.attention_flops / rates.attention
    return ForecastResult(
        tokens=work.layout.num_tokens,
        density=density,
        density_total=guarded + (1.0 - guarded) * density,
        attention_s=attention_s,
        linear_s=forwards * work.linear_flops / rates.linear,
        elementwise_s=forwards * work.elementwise_bytes / rates.bandwidth,
        planning_s=planning * (1.0 - guarded) * attention_s,
        rates=rates,
    )


def _guarded(schedule: Schedule, work: Work, steps: int) -> float:
    """Share of the attention calls that the schedule leaves dense."""
    sites = [Site(layer, step, steps) for step in range(steps) for layer in range(work.layers)]
    dense = sum(schedule.dense_reason(site, work.layout, work.layers) is not None for site in sites)
    return dense / len(sites)


def _device_rates(pipe: Any) -> Rates:
    device = torch.device(getattr(pipe, "device", "cpu"))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if name not in DEVICE_RATES:
        raise ValueError(
            f"no rates are known for {name!r} (known: {', '.join(DEVICE_RATES)}): pass rates=Rates(...), "
            "or Work.rates(...) of a dense run's measured parts"
        )
    return DEVICE_RATES[name]
