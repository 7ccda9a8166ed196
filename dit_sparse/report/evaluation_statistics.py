"""Means over prompts with their intervals, and differences to a baseline on the prompts that both have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from dit_sparse.report.evaluation_schema import ConfigurationResult, Evaluation, ScoreInfo, Times
from dit_sparse.report.intervals import Interval, mean_interval, paired_difference


@dataclass(frozen=True)
class Difference:
    """To the baseline, prompt by prompt.

    Args:
        interval: of configuration minus baseline.
        prompts: that both have.
    """

    interval: Interval
    prompts: int

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves out zero; one prompt tells nothing."""
        half = self.interval.half
        return half is not None and abs(self.interval.mean) > half


@dataclass(frozen=True)
class Summary:
    """One configuration over its finished prompts; None and missing keys where there is no value.

    Args:
        number: from 1, in the order given.
        scores: mean and interval by name.
        differences: to the baseline by name; empty for the baseline itself.
        sparse_s, speedup: medians of denoising time and of dense over sparse on the same prompt.
    """

    number: int
    label: str
    folder: str
    clips: int
    failed: int
    baseline: bool
    density: Interval | None
    scores: Mapping[str, Interval]
    differences: Mapping[str, Difference]
    sparse_s: float | None
    speedup: float | None
    speedup_attention: float | None
    fallbacks: tuple[str, ...]


def summarise(evaluation: Evaluation, times: Times, baseline: str) -> list[Summary]:
    """One summary per configuration, in the order given.

    Args:
        baseline: label of the configuration that the others are compared with.

    Raises:
        ValueError: if none has this label.
    """
    base = next((c for c in evaluation.configurations if c.label == baseline), None)
    if base is None:
        labels = ", ".join(configuration.label for configuration in evaluation.configurations)
        raise ValueError(f"the baseline {baseline!r} is none of the configurations: use one of {labels}")
    summaries = []
    for number, (found, seconds) in enumerate(zip(evaluation.configurations, times.configurations), 1):
        densities = [clip.density_total for clip in found.clips if clip.density_total is not None]
        values = {score.name: list(values_of(found, score.name).values()) for score in evaluation.scores}
        attention = [c.speedup_attention for c in seconds.clips if c.speedup_attention is not None]
        summaries.append(
            Summary(
                number=number,
                label=found.label,
                folder=found.folder,
                clips=len(found.clips),
                failed=len(evaluation.setup.prompts) - len(found.clips),
                baseline=found is base,
                density=mean_interval(densities) if densities else None,
                scores={name: mean_interval(given) for name, given in values.items() if given},
                differences={} if found is base else differences(found, base, evaluation.scores),
                sparse_s=median(clip.sparse_s for clip in seconds.clips) if seconds.clips else None,
                speedup=median(clip.speedup for clip in seconds.clips) if seconds.clips else None,
                speedup_attention=median(attention) if attention else None,
                fallbacks=tuple(sorted({text for clip in found.clips for text in clip.fallbacks})),
            )
        )
    return summaries


def values_of(configuration: ConfigurationResult, score: str) -> dict[int, float]:
    """Value by prompt; prompts without one are left out."""
    found = {clip.prompt: clip.scores.get(score) for clip in configuration.clips}
    return {prompt: value for prompt, value in found.items() if value is not None}


def differences(
    configuration: ConfigurationResult, base: ConfigurationResult, scores: list[ScoreInfo]
) -> dict[str, Difference]:
    """By score, on the prompts that both have."""
    made = {}
    for score in scores:
        ours, theirs = values_of(configuration, score.name), values_of(base, score.name)
        if both := sorted(ours.keys() & theirs.keys()):
            interval = paired_difference([ours[i] for i in both], [theirs[i] for i in both])
            made[score.name] = Difference(interval, len(both))
    return made


def ranked(summaries: list[Summary], score: ScoreInfo) -> list[Summary]:
    """Best mean first; configurations without a value last, as given."""
    sign = -1.0 if score.better == "lower" else 1.0
    return sorted(
        summaries,
        key=lambda s: (
            score.name not in s.scores,
            -sign * s.scores[score.name].mean if score.name in s.scores else 0.0,
        ),
    )
