"""Means of a few prompts with their 95% intervals, and differences between methods on the same prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dit_sparse.report.extras import require

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and the half-width of its interval; None with a single value."""

    mean: float
    half: float | None

    def text(self, digits: int, sign: str = "") -> str:
        """``"27.31 ± 0.42"``; with ``sign`` "+" the mean always shows its own."""
        mean = f"{self.mean:{sign}.{digits}f}"
        return mean if self.half is None else f"{mean} ± {self.half:.{digits}f}"


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean with its 95% interval by Student's t, which a few prompts need.

    Raises:
        ValueError: without values.
    """
    if not values:
        raise ValueError("no values to take the mean of")
    mean, count = float(np.mean(values)), len(values)
    if count == 1:
        return Interval(mean, None)
    quantile = float(require("scipy.stats").t.ppf((1 + LEVEL) / 2, count - 1))
    return Interval(mean, quantile * float(np.std(values, ddof=1)) / math.sqrt(count))


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Interval:
    """Interval of ``values - baseline`` prompt by prompt: what prompts have in common cancels.

    Raises:
        ValueError: if the two have not the same number of prompts.
    """
    if len(values) != len(baseline):
        raise ValueError(f"cannot pair {len(values)} prompts with {len(baseline)}")
    return mean_interval([value - base for value, base in zip(values, baseline)])
