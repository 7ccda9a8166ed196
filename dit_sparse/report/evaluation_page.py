"""``index.html`` of an evaluation: one page over all its clips, readable from disk, in dark and light."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from dit_sparse.embedded import NAME as EMBEDDED_MODEL
from dit_sparse.report.atomic import write_text
from dit_sparse.report.evaluation_chart import COSTS, difference_strips, scatter, strips, verdict
from dit_sparse.report.evaluation_folder import EvaluationFolder
from dit_sparse.report.evaluation_schema import ClipResult, Evaluation, ScoreInfo, Times
from dit_sparse.report.evaluation_statistics import Summary, ranked, summarise
from dit_sparse.report.templating import environment

VERDICTS = {
    "better": ("▲", "better than the baseline"),
    "worse": ("▼", "worse than the baseline"),
    "apart": ("≠", "different from the baseline"),
    "level": ("≈", "not told apart from the baseline"),
}


def write_pages(folder: EvaluationFolder, evaluation: Evaluation, times: Times, baseline: str) -> None:
    """Write ``index.html``, ``times.json`` and, last of all, ``evaluation.json``, each atomically.

    Raises:
        ValueError: if no configuration has the baseline's label.
        MissingExtraError: without jinja2.
    """
    page = render(evaluation, times, baseline, thumbnail_size(folder.path))
    write_text(folder.path / "index.html", page)
    write_text(folder.path / "times.json", times.model_dump_json(indent=1) + "\n")
    write_text(folder.path / "evaluation.json", evaluation.model_dump_json(indent=1) + "\n")


def render(evaluation: Evaluation, times: Times, baseline: str, thumbnail: tuple[int, int]) -> str:
    """The page as a string.

    Args:
        thumbnail: width and height of the clips' thumbnails, in pixels.
    """
    summaries = summarise(evaluation, times, baseline)
    scores = [score for score in evaluation.scores if any(score.name in s.scores for s in summaries)]
    floors = {score.name: floor_mean(evaluation, score) for score in scores}
    return (
        environment()
        .get_template("evaluation.html.j2")
        .render(
            evaluation=evaluation,
            setup=evaluation.setup,
            times=times,
            baseline=baseline,
            scores=scores,
            summaries=ranked(summaries, scores[0]) if scores else summaries,
            floors=floors,
            scatters=[
                drawn
                for score in scores
                for cost in COSTS
                if (drawn := scatter(summaries, score, cost, floors[score.name])) is not None
            ],
            strips={score.name: strips(summaries, score) for score in scores},
            difference_strips={score.name: difference_strips(summaries, score) for score in scores},
            verdict=lambda difference, score: VERDICTS[verdict(difference, score)],
            prompts=prompt_rows(evaluation),
            best=best_of(summaries, scores),
            fastest=max((s for s in summaries if s.speedup), key=lambda s: s.speedup or 0.0, default=None),
            thumbnail=thumbnail,
            tiny=evaluation.setup.model == EMBEDDED_MODEL,
        )
    )


def prompt_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """One entry per prompt: text, seed, and the clip of every configuration, None where it failed."""
    by_key: dict[tuple[int, int], ClipResult] = {
        (i, clip.prompt): clip
        for i, configuration in enumerate(evaluation.configurations)
        for clip in configuration.clips
    }
    without_dense = {failure.prompt for failure in evaluation.failures if failure.kind == "dense"}
    return [
        {
            "number": number,
            "text": text,
            "seed": evaluation.setup.seed + number,
            "dense": number not in without_dense,
            "clips": [by_key.get((i, number)) for i in range(len(evaluation.configurations))],
        }
        for number, text in enumerate(evaluation.setup.prompts)
    ]


def best_of(summaries: list[Summary], scores: list[ScoreInfo]) -> Summary | None:
    """The configuration that comes first by the first score."""
    return ranked(summaries, scores[0])[0] if scores and summaries else None


def floor_mean(evaluation: Evaluation, score: ScoreInfo) -> float | None:
    """Mean over prompts of dense against dense, for the scores that it has."""
    if score.name not in ("psnr", "ssim", "lpips"):
        return None
    values = [value for floor in evaluation.floor if (value := getattr(floor, score.name)) is not None]
    return mean(values) if values else None


def thumbnail_size(folder: Path) -> tuple[int, int]:
    """Of the first thumbnail there is; square if there is none."""
    from PIL import Image

    first = next(iter(sorted(folder.glob("dense/*/thumbnail.webp"))), None)
    if first is None:
        return 1, 1
    with Image.open(first) as image:
        return image.size
