"""What the profiler knows of a model: figures per (step group, layer, head), drawn from dense runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from dit_sparse.patterns import Calibration, GridFacts, ModelFacts, ScheduleFacts

PATTERN_CLASSES = ("diagonal", "multi-diagonal", "vertical", "local", "global", "skippable")


@dataclass(frozen=True)
class Template:
    """Something a head could do, tried on every head.

    Args:
        kind: one of :data:`~dit_sparse.patterns.KINDS`.
        density: fraction of pairs asked for, in (0, 1]; 1 for "dense", 0 for "skip".
        shape: proportions of a window along T, H and W, as shares of the axes; zeros otherwise.
    """

    kind: str
    density: float
    shape: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Recording:
    """Means over the observed calls. G step groups, L layers, H heads, C templates, P precisions.

    Errors are squared and relative to the mean square of the layer's dense output over all heads, so those of
    the heads of a layer sum up to the layer's.

    Args:
        model, grid, schedule, calibration: of the dense runs.
        templates: the C things tried.
        axes: uint8 ``[G, L, H]``, order of least error, index into AXIS_ORDERS.
        axes_error: float32 ``[G, L, H, 6]``, error of the heaviest blocks in every order.
        axes_sparse: float32 ``[G, L, H, 6]``, M_sparse of PARO: share of blocks that are nearly empty.
        axes_incoherence: float32 ``[G, L, H, 6]``, M_quant of PARO: mean over blocks of max / mean.
        error, density, recall: float32 ``[G, L, H, C]``: error, fraction of pairs, softmax mass kept.
        low_bit_error: float32 ``[G, L, P]``: error of dense attention in every precision.
        sensitivity: float32 ``[G, L]``: squared relative error of the transformer's output per error of
            the layer.
        pattern: uint8 ``[G, L, H]``, index into :data:`PATTERN_CLASSES`.
        stability: float32 ``[G, L, H, 2]``: overlap of the heaviest blocks between prompts, between steps;
            NaN where there is one only.
        lse: float32 ``[G, L, H, 2]``: mean and standard deviation over rows of the log-sum-exp.
        mass: (group, layer) -> float16 ``[H, nQ, nK]``: softmax mass of blocks in the head's order, mean over
            queries; every row sums to one.
        seconds: time spent on recording, the dense runs included.
        peak_bytes: largest extra memory on the model's device; None where the system does not tell.
    """

    model: ModelFacts
    grid: GridFacts
    schedule: ScheduleFacts
    calibration: Calibration
    templates: tuple[Template, ...]
    axes: Tensor
    axes_error: Tensor
    axes_sparse: Tensor
    axes_incoherence: Tensor
    error: Tensor
    density: Tensor
    recall: Tensor
    low_bit_error: Tensor
    sensitivity: Tensor
    pattern: Tensor
    stability: Tensor
    lse: Tensor
    mass: Mapping[tuple[int, int], Tensor]
    seconds: float
    peak_bytes: int | None
