"""Where the time of every denoising step went: stacked columns, dense and sparse on one scale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dit_sparse.report.breakdown import PART_NAMES, STAGE_KEY, STAGE_NAMES, Part
from dit_sparse.report.charts import nice_ticks, tick_labels
from dit_sparse.report.schema import RunTime, Time


@dataclass(frozen=True)
class StepChart:
    """One run: a column per step, its parts from the bottom up.

    Args:
        ticks: (place in percent from the top, label).
        legend: the parts that occur, (CSS class, name), in the order of the columns.
    """

    run: str
    ticks: tuple[tuple[float, str], ...]
    columns: tuple[tuple[Part, ...], ...]
    legend: tuple[tuple[str, str], ...]


def step_charts(time: Time) -> list[StepChart]:
    """Charts of the runs whose steps were timed."""
    both = (("dense", time.dense), ("sparse", time.sparse))
    runs = [(name, run) for name, run in both if run is not None and run.step_s]
    if not runs:
        return []
    fine = all(run.step_attention_s for _, run in runs)
    parts = [(name, [list(_parts(run, step, fine)) for step in range(len(run.step_s))]) for name, run in runs]
    highest = max(sum(seconds for _, seconds in step) for _, steps in parts for step in steps)
    ticks = nice_ticks(0.0, highest)
    labels = tuple(zip((round(100 * (1 - tick / ticks[-1]), 2) for tick in ticks), tick_labels(ticks)))
    names = PART_NAMES | {STAGE_KEY + stage: name for stage, name in STAGE_NAMES.items()}
    if not fine:
        names["rest"] = "transformer"
    charts = []
    for name, steps in parts:
        columns = tuple(
            tuple(Part(key, names[key], part, round(100 * part / ticks[-1], 3)) for key, part in step)
            for step in steps
        )
        seen = {part.key for column in columns for part in column if part.seconds > 0}
        legend = tuple((part.key, part.name) for part in columns[0] if part.key in seen)
        charts.append(StepChart(name, labels, columns, legend))
    return charts


def _parts(run: RunTime, step: int, fine: bool) -> Iterator[tuple[str, float]]:
    """(key, seconds) of the parts of one step; clocks of GPU and host differ by microseconds, so none is
    negative."""
    attention = linear = 0.0
    if fine:
        attention, linear = run.step_attention_s[step], run.step_linear_s[step] if run.step_linear_s else 0.0
        if run.stages:
            yield from ((STAGE_KEY + stage.name, stage.step_s[step]) for stage in run.stages)
        else:
            yield "attention", attention
        yield "linear", linear
    transformer = run.step_transformer_s[step] if run.step_transformer_s else run.step_s[step]
    yield "rest", max(0.0, transformer - attention - linear)
    yield "between", max(0.0, run.step_s[step] - transformer)
