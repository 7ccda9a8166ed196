"""Run an evaluation: for every prompt the dense clip once, its floor, and a sparse clip by configuration.

Whatever is finished is not made again; a clip that fails is noted and the next one is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from dit_sparse.report.atomic import write_text
from dit_sparse.report.compare import Context, Pair, write_comparison
from dit_sparse.report.evaluation_folder import Configuration, EvaluationFolder, Unit, load_run, save_run
from dit_sparse.report.evaluation_schema import ClipScores
from dit_sparse.report.evaluation_workers import Workers
from dit_sparse.report.floor import floor_section, second_kernel
from dit_sparse.report.generation import Run
from dit_sparse.report.measure import compare_frames
from dit_sparse.report.pair import check_sparse, dense_run, execution_device, floor_run, sparse_run
from dit_sparse.report.schema import Floor
from dit_sparse.report.scores import REGISTRY, ScoredClip, score_clip
from dit_sparse.report.thumbnail import write_thumbnail
from dit_sparse.report.video import write_video

Describe = Callable[[str, int, Mapping[str, Any]], Context]
"""(prompt, seed, method and how it was enabled) -> what the clip's report says beside the measurements."""


class Follower(Protocol):
    """Follows an evaluation, for a progress bar."""

    def clips(self, done: int, total: int) -> None:
        """How many units are finished or given up, of those that were to be made."""

    def __call__(self, name: str, step: int, total: int | None) -> None:
        """As :data:`dit_sparse.report.pair.Observer`, for the run that is under way."""


class Evaluator:
    """Makes the units of an evaluation on one pipeline.

    Args:
        pipe: a diffusers pipeline.
        folder: where, of what setup, with which configurations.
        describe: context of a clip's report.
        warmup: untimed steps before the first timed run of dense and of every configuration.
        lpips_weights: see :func:`~dit_sparse.report.measure.compare_frames`.
        follower: for a progress bar.
        workers: this process among others.

    Raises:
        ValueError: on a wrong method, field, backend or profile of a configuration.
    """

    def __init__(
        self,
        pipe: Any,
        folder: EvaluationFolder,
        describe: Describe,
        *,
        warmup: bool = False,
        lpips_weights: Path | None = None,
        follower: Follower | None = None,
        workers: Workers | None = None,
    ) -> None:
        self.pipe, self.folder, self.describe = pipe, folder, describe
        self.warmup, self.lpips_weights = warmup, lpips_weights
        self.follower, self.workers = follower, workers or Workers()
        self._warm: set[str] = set()
        self._dense: tuple[int, Run] | None = None
        for configuration in folder.configurations:
            check_sparse(pipe, configuration.asked)

    def run(self) -> None:
        """Make what the folder does not hold yet.

        Raises:
            ValueError: if the folder holds clips of another setup, before anything is generated.
        """
        if self.workers.main:
            self.folder.begin()
        self.workers.meet()
        missing = [unit for unit in self.folder.all_units() if not self.folder.finished(unit)]
        self.workers.meet()
        if self.workers.main:
            self._tell(missing)
        for prompt in self.workers.share(list(dict.fromkeys(unit.prompt for unit in missing))):
            for unit in (unit for unit in missing if unit.prompt == prompt):
                self._try(unit)
                self._tell(missing)
        self.workers.done(self.folder.work, lambda: self._tell(missing))

    def _tell(self, missing: Sequence[Unit]) -> None:
        if self.follower is not None:
            there = sum(self.folder.finished(unit) for unit in missing) + len(self.folder.failures())
            self.follower.clips(there, len(missing))

    def _try(self, unit: Unit) -> None:
        try:
            if unit.kind != "dense" and not self.folder.finished(Unit("dense", unit.prompt)):
                raise RuntimeError("its dense clip failed")
            {"dense": self._make_dense, "floor": self._make_floor, "clip": self._make_clip}[unit.kind](unit)
        except Exception as error:
            self.folder.fail(unit, f"{type(error).__name__}: {' '.join(str(error).split())}")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _call(self, unit: Unit) -> dict[str, Any]:
        return {"prompt": self.folder.setup.prompts[unit.prompt], **self.folder.setup.call}

    def _seed(self, unit: Unit) -> int:
        return self.folder.setup.seed + unit.prompt

    def _observer(self, unit: Unit) -> Any:
        if self.follower is None:
            return None
        follower, number = self.follower, unit.prompt
        return lambda name, step, total: follower(f"{number} {unit.label} {name}", step, total)

    def _warms(self, name: str) -> bool:
        """Once per process: kernels are tuned and memory is claimed at the first use."""
        first = name not in self._warm
        self._warm.add(name)
        return self.warmup and first

    def _dense_of(self, unit: Unit) -> Run:
        if self._dense is None or self._dense[0] != unit.prompt:
            self._dense = (unit.prompt, load_run(self.folder.of(Unit("dense", unit.prompt))))
        return self._dense[1]

    def _make_dense(self, unit: Unit) -> None:
        made = dense_run(
            self.pipe,
            self._call(unit),
            seed=self._seed(unit),
            warmup=self._warms("dense"),
            observer=self._observer(unit),
        )
        with self.folder.making(unit) as folder:
            save_run(folder, made)
            write_video(folder / "dense.mp4", made.frames, self.folder.setup.fps)
            write_thumbnail(folder / "thumbnail.webp", made.frames)
        self._dense = (unit.prompt, made)

    def _make_floor(self, unit: Unit) -> None:
        device = execution_device(self.pipe)
        # The kernel of the sparse runs on a GPU; torch's own attention must not be compared with itself.
        backend = second_kernel("gathered" if device.type == "cpu" else "dense", device)
        made = floor_run(
            self.pipe,
            self._call(unit),
            backend=backend,
            seed=self._seed(unit),
            observer=self._observer(unit),
        )
        metrics = compare_frames(self._dense_of(unit).frames, made.frames, self.lpips_weights)
        section = floor_section(metrics, made.kernel, made.denoise_s)
        with self.folder.making(unit) as folder:
            write_text(folder / "floor.json", section.model_dump_json(indent=1) + "\n")

    def _make_clip(self, unit: Unit) -> None:
        assert unit.configuration is not None
        configuration: Configuration = unit.configuration
        dense, setup, prompt = self._dense_of(unit), self.folder.setup, self.folder.setup.prompts[unit.prompt]
        made, method = sparse_run(
            self.pipe,
            self._call(unit),
            configuration.asked,
            seed=self._seed(unit),
            warmup=self._warms(configuration.folder),
            observer=self._observer(unit),
        )
        device = execution_device(self.pipe)
        pair = Pair(made, dense, method, device, self.warmup)
        asked = configuration.asked
        enabled = {key: asked[key] for key in ("profile", "backend", "strict") if key in asked}
        context = self.describe(prompt, self._seed(unit), {**method, **enabled})
        with self.folder.making(unit) as folder:
            report = write_comparison(
                folder,
                pair,
                context,
                fps=setup.fps,
                lpips_weights=self.lpips_weights,
                floor=self._floor_of(unit),
            )
            clip = ScoredClip(prompt, made.frames, report.metrics, folder / report.files.sparse, device)
            values, reasons = score_clip(clip, [REGISTRY[name] for name in setup.scores])
            scores = ClipScores(values=values, unavailable=reasons)
            write_thumbnail(folder / "thumbnail.webp", made.frames)
            write_text(folder / "scores.json", scores.model_dump_json(indent=1) + "\n")

    def _floor_of(self, unit: Unit) -> Floor | None:
        place = self.folder.of(Unit("floor", unit.prompt)) / "floor.json"
        return Floor.model_validate_json(place.read_text(encoding="utf-8")) if place.exists() else None
