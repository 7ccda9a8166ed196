"""Where the seconds of a run went, as disjoint parts that add up to the end-to-end time."""

from __future__ import annotations

from dataclasses import dataclass

from dit_sparse.report.schema import RunTime, Time

PART_NAMES = {
    "attention": "self-attention",
    "linear": "linear layers",
    "rest": "rest of the transformer",
    "between": "scheduler and guidance",
    "around": "text encoding and decoding",
}
STAGE_KEY = "at-"
STAGE_NAMES = {
    "order": "order tokens",
    "permute": "permute",
    "select": "score and select",
    "attend": "attend to kept blocks",
    "correct": "compensate",
    "restore": "restore order",
    "other": "bookkeeping",
    "dense": "calls that ran dense",
}


@dataclass(frozen=True)
class Part:
    """One part of a run.

    Args:
        key: CSS class.
        seconds: never negative; clocks of GPU and host differ by microseconds.
        share: in percent of what the bar or column stands for.
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
    """Split both runs by whatever was measured in both; bars are as long as the slower run."""
    runs = [run for run in (time.dense, time.sparse) if run is not None]
    fine = all(run.attention_s is not None for run in runs)
    longest = max(run.end_to_end_s for run in runs)
    dense = None if time.dense is None else _parts(time.dense, fine, longest)
    return Breakdown(dense, _parts(time.sparse, fine, longest))


def _parts(run: RunTime, fine: bool, longest: float) -> tuple[Part, ...]:
    attention, linear = (run.attention_s or 0.0, run.linear_s or 0.0) if fine else (0.0, 0.0)
    seconds = {
        "attention": attention,
        "linear": linear,
        "rest": run.transformer_s - attention - linear,
        "between": run.denoise_s - run.transformer_s,
        "around": run.end_to_end_s - run.denoise_s,
    }
    names = PART_NAMES if fine else {**PART_NAMES, "rest": "transformer"}
    return tuple(
        Part(key, names[key], max(part, 0.0), round(100 * max(part, 0.0) / longest, 3))
        for key, part in seconds.items()
        if fine or key not in ("attention", "linear")
    )


def stages(run: RunTime) -> tuple[Part, ...]:
    """The stages of a sparse run's self-attention; shares are of their sum."""
    whole = sum(stage.seconds_s for stage in run.stages)
    return tuple(
        Part(
            STAGE_KEY + stage.name,
            STAGE_NAMES[stage.name],
            stage.seconds_s,
            round(100 * stage.seconds_s / whole, 3) if whole else 0.0,
        )
        for stage in run.stages
    )
