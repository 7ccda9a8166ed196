"""The time section of the report: both runs, their ratios, and what was to be expected."""

from __future__ import annotations

from dit_sparse.forecasting import attainable
from dit_sparse.report.generation import Run
from dit_sparse.report.schema import Forecast, RunTime, Stage, Time


def time_section(sparse: Run, dense: Run | None, warmup: bool) -> Time:
    """Times of the sparse run, and of the dense one where there is one."""
    if dense is None:
        return Time(sparse_s=sparse.denoise_s, sparse=_run_time(sparse), warmup=warmup)
    return Time(
        dense_s=dense.denoise_s,
        sparse_s=sparse.denoise_s,
        speedup=_ratio(dense.denoise_s, sparse.denoise_s),
        speedup_end_to_end=_ratio(dense.end_to_end_s, sparse.end_to_end_s),
        speedup_transformer=_ratio(dense.transformer_s, sparse.transformer_s),
        speedup_attention=_ratio(dense.attention_s, sparse.attention_s),
        parts_unmeasured=dense.parts_unmeasured or sparse.parts_unmeasured,
        forecast=forecast_section(sparse, dense),
        dense=_run_time(dense),
        sparse=_run_time(sparse),
        warmup=warmup,
    )


def forecast_section(sparse: Run, dense: Run) -> Forecast | None:
    """What the dense run's times and the density of the sparse one lead one to expect.

    The kernel is taken to be as fast per block as the dense one, and planning to cost nothing: what the
    measured figures fall short of the forecast is what these two cost. None where the dense run's attention
    was not measured, or nothing was recorded.
    """
    if dense.attention_s is None or sparse.stats is None or not sparse.stats.records:
        return None
    density, attention = sparse.stats.density_total, dense.attention_s
    return Forecast(
        density=density,
        attention_share=attention / dense.transformer_s,
        speedup_attention=attainable(attention, attention, density),
        speedup_transformer=attainable(dense.transformer_s, attention, density),
        speedup=attainable(dense.denoise_s, attention, density),
        speedup_end_to_end=attainable(dense.end_to_end_s, attention, density),
        limit_transformer=attainable(dense.transformer_s, attention, 0.0),
    )


def _run_time(run: Run) -> RunTime:
    return RunTime(
        denoise_s=run.denoise_s,
        end_to_end_s=run.end_to_end_s,
        transformer_s=run.transformer_s,
        step_s=list(run.step_s),
        attention_s=run.attention_s,
        linear_s=run.linear_s,
        step_transformer_s=list(run.step_transformer_s),
        step_attention_s=list(run.step_attention_s),
        step_linear_s=list(run.step_linear_s),
        stages=[
            Stage(name=name, seconds_s=seconds, step_s=list(by_step))
            for name, (seconds, by_step) in run.stages.items()
        ],
    )


def _ratio(dense: float | None, sparse: float | None) -> float | None:
    return dense / sparse if dense is not None and sparse else None
