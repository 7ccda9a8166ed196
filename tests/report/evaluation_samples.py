"""A synthetic evaluation: figures by formula, thumbnails on disk, one clip and one dense clip that failed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from report_samples import SCRIPT_PROMPT, make_video

from dit_sparse.report.environment import package_versions
from dit_sparse.report.evaluation_folder import Configuration, EvaluationFolder, Unit
from dit_sparse.report.evaluation_schema import (
    ClipResult,
    ClipTime,
    ConfigurationResult,
    ConfigurationTimes,
    Evaluation,
    EvaluationSetup,
    Failure,
    FloorResult,
    ScoreInfo,
    Times,
)
from dit_sparse.report.schema import Device
from dit_sparse.report.scores import select_scores
from dit_sparse.report.thumbnail import write_thumbnail

LABELS = ("svg2:score=mean_key at 0.25", "draft at 0.25", "<i>paro</i> at 0.1", "svg2 at 0.5", "sale at 0.5")
CALL = {"height": 96, "width": 160, "num_frames": 9, "num_inference_steps": 25, "guidance_scale": 4.0}


def make_setup(prompts: int = 10, **changes) -> EvaluationSetup:
    """A setup whose first prompt holds markup."""
    texts = [SCRIPT_PROMPT] + [
        f"a red circle bouncing over a blue checkerboard, take {i}" for i in range(1, prompts)
    ]
    return EvaluationSetup(
        model="models/<b>bold</b>",
        config_sha256="0" * 64,
        dtype="float32",
        device=Device(type="cpu", name="a processor"),
        prompts=texts[:prompts],
        call=CALL,
        seed=0,
        fps=8.0,
        floor=True,
        scores=[score.name for score in select_scores(())],
    ).model_copy(update=changes)


def make_configurations(labels: tuple[str, ...] = LABELS) -> list[Configuration]:
    """One configuration by label."""
    return [Configuration(label, {"method": label.split(" ")[0], "density": 0.25}) for label in labels]


def make_evaluation(
    setup: EvaluationSetup, labels: tuple[str, ...] = LABELS, *, failing: bool = True
) -> tuple[Evaluation, Times]:
    """Prompts differ by much, configurations by little: the paired differences are what tells them apart."""
    rng = np.random.default_rng(0)
    prompts = range(len(setup.prompts))
    hard = {i: 6 * rng.random() for i in prompts}
    missing = {(1, 2)} | {(c, len(setup.prompts) - 1) for c in range(len(labels))} if failing else set()
    results, times, failures = [], [], []
    for c, configuration in enumerate(make_configurations(labels)):
        clips, seconds = [], []
        for i in prompts:
            if (c, i) in missing:
                error = (
                    "OutOfMemoryError: <b>none</b> left"
                    if c == 1 and i == 2
                    else "RuntimeError: its dense clip failed"
                )
                failures.append(
                    Failure(prompt=i, kind="clip", configuration=configuration.label, error=error)
                )
                continue
            psnr = 24 + hard[i] + 1.5 * c + 0.3 * rng.random()
            scores = {
                "psnr": psnr,
                "ssim": 0.6 + psnr / 100,
                "lpips": 0.5 - psnr / 100,
                "flicker": 0.2 * rng.standard_normal(),
            }
            clips.append(
                ClipResult(
                    prompt=i,
                    folder=Unit("clip", i, configuration).place,
                    scores=scores,
                    identical=False,
                    density_total=0.2 + 0.12 * c + 0.01 * rng.random(),
                    density_sparse=0.1 + 0.1 * c,
                    kernel="gathered",
                    fallbacks=[],
                )
            )
            sparse = 4.0 + c + 0.2 * rng.random()
            seconds.append(
                ClipTime(prompt=i, dense_s=10.0, sparse_s=sparse, speedup=10 / sparse, speedup_attention=3.0,
                         speedup_end_to_end=1.5)
            )  # fmt: skip
        folder = f"clips/{configuration.folder}"
        results.append(
            ConfigurationResult(
                label=configuration.label, folder=folder, asked=dict(configuration.asked), clips=clips
            )
        )
        times.append(ConfigurationTimes(label=configuration.label, clips=seconds))
    if failing:
        last = len(setup.prompts) - 1
        failures.append(Failure(prompt=last, kind="dense", configuration=None, error="RuntimeError: lost"))
    floors = [
        FloorResult(prompt=i, psnr=80.0 + i, ssim=0.9999, lpips=1e-5, identical=False, kernel="reference")
        for i in prompts
    ]
    infos = [
        ScoreInfo(
            name=s.name, title=s.title, unit=s.unit, decimals=s.decimals, better=s.better, about=s.about
        )
        for s in select_scores(())
    ]
    evaluation = Evaluation(
        setup=setup, scores=infos, configurations=results, floor=floors, failures=failures
    )
    return evaluation, Times(
        created="2026-01-02T03:04:05+00:00",
        command=f"dit-sparse eval --prompt-file '{SCRIPT_PROMPT}'",
        device=Device(type="cpu", name="a processor", threads=2),
        versions=package_versions(),
        processes=2,
        configurations=times,
    )


def make_thumbnails(folder: EvaluationFolder, evaluation: Evaluation) -> None:
    """A thumbnail for every clip that is there, dense ones included."""
    video = make_video(1, 96, 160)
    places = [f"dense/{i:03d}" for i in range(len(folder.setup.prompts))]
    places += [clip.folder for configuration in evaluation.configurations for clip in configuration.clips]
    for i, place in enumerate(places):
        target: Path = folder.path / place
        target.mkdir(parents=True)
        write_thumbnail(target / "thumbnail.webp", np.roll(video, 7 * i, axis=2))
