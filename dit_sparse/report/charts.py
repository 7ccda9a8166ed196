"""Line charts for the report: data in, coordinates out, drawn by the template as stretched inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Values = Sequence[float | None]


@dataclass(frozen=True)
class Series:
    """One line: name, CSS class, and unbroken runs as SVG ``points`` strings; a missing value is a gap."""

    name: str
    style: str
    lines: tuple[str, ...]
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Chart:
    """A line chart in a 100 x 100 box.

    Args:
        ticks: (vertical position in percent from the top, label).
        positions: horizontal position of every sample in percent.
        follows_player: whether the cursor follows the video's frame.
    """

    title: str
    unit: str
    hint: str
    x_label: str
    series: tuple[Series, ...]
    ticks: tuple[tuple[float, str], ...]
    positions: tuple[float, ...]
    follows_player: bool = False


def line_chart(
    title: str,
    lines: Sequence[tuple[str, str, Values]],
    *,
    unit: str = "",
    hint: str = "",
    x_label: str = "frame",
    from_zero: bool = False,
    follows_player: bool = False,
) -> Chart | None:
    """Lay out a chart of equally long ``(name, style, values)`` lines; None without any value."""
    present = [value for _, _, values in lines for value in values if value is not None]
    if not present:
        return None
    count = max(len(values) for _, _, values in lines)
    ticks = nice_ticks(0.0 if from_zero else min(present), max(present))
    low, high = ticks[0], ticks[-1]
    positions = tuple(_round(100 * (i + 0.5) / count) for i in range(count))

    def y(value: float) -> float:
        return _round(100 * (high - value) / (high - low))

    series = tuple(
        Series(
            name,
            style,
            _polylines([(x, None if v is None else y(v)) for x, v in zip(positions, values)]),
            tuple(values),
        )
        for name, style, values in lines
    )
    labels = tuple(zip((y(tick) for tick in ticks), tick_labels(ticks)))
    return Chart(title, unit, hint, x_label, series, labels, positions, follows_player)


def nice_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round tick values whose ends enclose [low, high]; at least two, even for a constant."""
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-6):
        margin = max(abs(high) * 0.05, 1e-3)
        low, high = low - margin, high + margin
    rough = (high - low) / about
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = magnitude * min((m for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * (1 - 1e-9)), default=10)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Ticks at equal distances as text, all with the decimals that tell them apart."""
    decimals = tick_decimals(ticks[1] - ticks[0])
    return [f"{tick:.{decimals}f}" for tick in ticks]


def tick_decimals(step: float) -> int:
    """Decimals that tell neighbouring ticks apart: 0 for a step of 5, 1 for 2.5, 2 for 0.25."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return decimals if math.isclose(round(step, decimals), step, rel_tol=1e-6) else decimals + 1


def _polylines(points: Sequence[tuple[float, float | None]]) -> tuple[str, ...]:
    """SVG ``points`` strings of the unbroken runs; a run of one point becomes a short dash."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is None:
            runs.append([])
        else:
            runs[-1].append((x, y))
    drawn = [
        [(run[0][0] - 0.5, run[0][1]), (run[0][0] + 0.5, run[0][1])] if len(run) == 1 else run
        for run in runs
        if run
    ]
    return tuple(" ".join(f"{x:g},{y:g}" for x, y in run) for run in drawn)


def _round(value: float) -> float:
    return round(value, 2)
