"""Read the finished units of an evaluation into ``evaluation.json`` and ``times.json``."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from dit_sparse.report.environment import package_versions
from dit_sparse.report.evaluation_folder import Configuration, EvaluationFolder, Unit
from dit_sparse.report.evaluation_schema import (
    ClipResult,
    ClipScores,
    ClipTime,
    ConfigurationResult,
    ConfigurationTimes,
    Evaluation,
    FloorResult,
    ScoreInfo,
    Times,
)
from dit_sparse.report.metrics import IDENTICAL_DB
from dit_sparse.report.schema import Device, Floor, Report
from dit_sparse.report.scores import REGISTRY


def collect(
    folder: EvaluationFolder, *, device: Device, processes: int = 1, command: str | None = None
) -> tuple[Evaluation, Times]:
    """What the folder holds of the configurations wanted now.

    Args:
        folder: after :meth:`~dit_sparse.report.evaluation.Evaluator.run`.
        device, processes, command: of this run.
    """
    results, times, reasons = [], [], {}
    for configuration in folder.configurations:
        clips, seconds = [], []
        for prompt in range(len(folder.setup.prompts)):
            unit = Unit("clip", prompt, configuration)
            if folder.finished(unit):
                report, scores = _read_clip(folder.of(unit))
                clips.append(_result(unit, report, scores))
                seconds.append(_time(prompt, report))
                reasons.update(scores.unavailable)
        results.append(_configuration(configuration, clips))
        times.append(ConfigurationTimes(label=configuration.label, clips=seconds))
    evaluation = Evaluation(
        setup=folder.setup,
        scores=[_info(name, reasons) for name in folder.setup.scores],
        configurations=results,
        floor=_floors(folder),
        failures=folder.failures(),
    )
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return evaluation, Times(
        created=created,
        command=command,
        device=device,
        versions=package_versions(),
        processes=processes,
        configurations=times,
    )


def _read_clip(place: Path) -> tuple[Report, ClipScores]:
    report, scores = ((place / name).read_text(encoding="utf-8") for name in ("report.json", "scores.json"))
    return Report.model_validate_json(report), ClipScores.model_validate_json(scores)


def _configuration(configuration: Configuration, clips: list[ClipResult]) -> ConfigurationResult:
    place = f"clips/{configuration.folder}"
    return ConfigurationResult(
        label=configuration.label, folder=place, asked=dict(configuration.asked), clips=clips
    )


def _result(unit: Unit, report: Report, scores: ClipScores) -> ClipResult:
    return ClipResult(
        prompt=unit.prompt,
        folder=unit.place,
        scores=scores.values,
        identical=bool(report.metrics.identical),
        density_total=report.density.total,
        density_sparse=report.density.sparse_sites,
        kernel=report.backend,
        fallbacks=report.fallbacks,
    )


def _time(prompt: int, report: Report) -> ClipTime:
    time = report.time
    assert time.dense_s is not None
    return ClipTime(
        prompt=prompt,
        dense_s=time.dense_s,
        sparse_s=time.sparse_s,
        speedup=time.dense_s / time.sparse_s,
        speedup_attention=time.speedup_attention,
        speedup_end_to_end=time.speedup_end_to_end,
    )


def _info(name: str, reasons: dict[str, str]) -> ScoreInfo:
    score = REGISTRY[name]
    shown = {key: getattr(score, key) for key in ("name", "title", "unit", "decimals", "better", "about")}
    return ScoreInfo(**shown, unavailable=reasons.get(name))


def _floors(folder: EvaluationFolder) -> list[FloorResult]:
    found = []
    for prompt in range(len(folder.setup.prompts)):
        unit = Unit("floor", prompt)
        if folder.setup.floor and folder.finished(unit):
            floor = Floor.model_validate_json((folder.of(unit) / "floor.json").read_text(encoding="utf-8"))
            found.append(
                FloorResult(
                    prompt=prompt,
                    psnr=IDENTICAL_DB if floor.psnr is None else min(floor.psnr, IDENTICAL_DB),
                    ssim=floor.ssim,
                    lpips=floor.lpips,
                    identical=floor.identical,
                    kernel=floor.kernel,
                )
            )
    return found
