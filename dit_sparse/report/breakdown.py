"""Where the seconds of a run went, as disjoint parts that add up to the end-to-end time."""

from __future__ import annotations

from dataclasses import dataclass

from dit_sparse.report.schema import RunTime, Time


@dataclass(frozen=True)
class Part:
    """One part of a run.

    Args:
        key: CSS class.
        seconds: never negative; clocks of GPU and host differ by microseconds.
        share: of the end-to-end time of the slower run, in percent: the length of the bar.
    """

    key: str
    name: str
    seconds: float
    share: float


@dataclass(frozen=True)
class Breakdown:
    """The parts of the dense run (None without one) and of the sparse run."""

    dense: tuple[Part, ...] | None
    sparse: tuple[Part, ...]

    def rows(self) -> list[tuple[Part | None, Part]]:
        """The same part of both runs, side by side."""
        return list(zip(self.dense or [None] * len(self.sparse), self.sparse))


def breakdown(time: Time) -> Breakdown:
    """Split both runs by whatever was measured in both."""
    runs = [run for run in (time.dense, time.sparse) if run is not None]
    fine = all(run.attention_s is not None for run in runs)
    longest = max(run.end_to_end_s for run in runs)
    dense = None if time.dense is None else _parts(time.dense, fine, longest)
    return Breakdown(dense, _parts(time.sparse, fine, longest))


def _parts(run: RunTime, fine: bool, longest: float) -> tuple[Part, ...]:
    attention, linear = (run.attention_s or 0.0, run.linear_s or 0.0) if fine else (0.0, 0.0)
    named = [
        ("attention", "self-attention", attention),
        ("linear", "linear layers", linear),
        (
            "rest",
            "rest of the transformer" if fine else "transformer",
            run.transformer_s - attention - linear,
        ),
        ("between", "scheduler and guidance", run.denoise_s - run.transformer_s),
        ("around", "text encoding and decoding", run.end_to_end_s - run.denoise_s),
    ]
    return tuple(
        Part(key, name, max(seconds, 0.0), round(100 * max(seconds, 0.0) / longest, 3))
        for key, name, seconds in named
        if fine or key not in ("attention", "linear")
    )
