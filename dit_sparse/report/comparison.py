"""Methods by densities against dense attention on the same prompts, seeds and guard: run, keep, resume.

Every row is written as soon as it is measured; a row that the file holds already is not measured again.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel

from dit_sparse.report.atomic import write_text
from dit_sparse.report.capture import CapturedCall, capture_calls, figures_by_layer
from dit_sparse.report.compare import Observer
from dit_sparse.report.comparison_rows import Candidate, load_or_begin
from dit_sparse.report.comparison_schema import Comparison, LayerFigures, Row, Setup
from dit_sparse.report.floor import dense_method
from dit_sparse.report.generation import Run, timed_batch
from dit_sparse.report.measure import compare_frames
from dit_sparse.report.metrics import capped_mean_psnr

DENSE = "dense"
FLOORS = ("dense, own kernel", "dense, SDPA math")
"""Labels of dense against dense: this package's kernel with every block kept, and SDPA's definition."""


class Bench:
    """Runs the rows of one comparison on one pipeline and keeps them in a file.

    Args:
        pipe: a diffusers pipeline.
        setup: what all rows share.
        path: of the JSON file; if it is there, its rows are taken over.
        lpips_weights: see :func:`~dit_sparse.report.measure.compare_frames`.
        observer: told (row, prompt, prompts) for a progress bar.
        command: the command line, for the file.

    Raises:
        ValueError: if the file is of another setup or cannot be read.
    """

    def __init__(
        self,
        pipe: Any,
        setup: Setup,
        path: Path,
        *,
        lpips_weights: Path | None = None,
        observer: Observer | None = None,
        command: str | None = None,
    ) -> None:
        import dit_sparse  # noqa: F401  adds enable_sparse_attention to pipelines

        self.pipe, self.path, self.lpips_weights = pipe, path, lpips_weights
        self.tell = observer or (lambda *_: None)
        self.comparison = load_or_begin(path, setup, command)
        self.failures: dict[str, str] = {}
        self._dense: list[Run] | None = None
        self._calls: list[CapturedCall] | None = None

    def run(
        self,
        candidates: Sequence[Candidate],
        densities: Sequence[float],
        *,
        floor: bool = True,
        layers: bool = False,
    ) -> Comparison:
        """Measure what the file does not hold yet.

        A row that breaks is left out and noted in ``failures``, reason by row.

        Args:
            candidates, densities: every method at every density.
            floor: also dense against dense.
            layers: also output error and recall by layer, on captured calls of the first prompt.

        Raises:
            ValueError: on a method, field or density that is wrong: before anything is run.
        """
        wanted = [
            (density, candidate.label, asked)
            for candidate in candidates
            for density, asked in candidate.rows(densities).items()
        ]
        for _, _, asked in wanted:
            self._enable(asked)
            self.pipe.disable_sparse_attention()
        if floor:
            for label in FLOORS:
                if self.comparison.find("floor", label, None) is None:
                    self._keep(self._floor(label))
        order = {density: place for place, density in enumerate(densities)}
        for density, label, asked in sorted(wanted, key=lambda row: order.get(row[0], len(order))):
            try:
                self._complete(label, density, asked, layers)
            except Exception as error:  # the other rows are worth having
                reason = "".join(traceback.format_exception_only(error)).strip()
                self.failures[f"{label} {density:g}"] = reason
        return self.comparison

    def _complete(self, label: str, density: float, asked: Mapping[str, Any], layers: bool) -> None:
        """Measure of a row what the file does not hold yet."""
        row = self.comparison.find("method", label, density)
        if row is None:
            row = self._measured(label, density, asked)
            self._keep(row)
        if layers and row.layers is None:
            row.layers = self._layer_figures(asked)
            self._save()

    def _enable(self, asked: Mapping[str, Any]) -> Any:
        """With one guard for all, and no sequence too short to be sparse."""
        setup = self.comparison.setup
        shared = {"dense_steps": setup.dense_steps, "dense_layers": setup.dense_layers, "min_tokens": 0}
        return self.pipe.enable_sparse_attention(**{**shared, **asked})

    def _measured(self, label: str, density: float, asked: Mapping[str, Any]) -> Row:
        self._dense_runs()
        handle = self._enable(asked)
        try:
            runs = self._generate(f"{label} {density:g}", handle)
        finally:
            self.pipe.disable_sparse_attention()
        return self._row("method", label, density, runs)

    def _floor(self, label: str) -> Row:
        self._dense_runs()
        if label == FLOORS[0]:
            handle = self.pipe.enable_sparse_attention(dense_method())
            try:
                runs = self._generate(label, handle)
            finally:
                self.pipe.disable_sparse_attention()
        else:
            with sdpa_kernel(SDPBackend.MATH):
                runs = self._generate(label)
        return self._row("floor", label, None, runs)

    def _dense_runs(self) -> list[Run]:
        """What everything is compared with; made anew by every process that has something to measure."""
        if self._dense is None:
            # Kernels are tuned and memory is claimed at the first use.
            self._generate("warm-up", prompts=self.comparison.setup.prompts[:1])
            self._dense = self._generate(DENSE)
            if self.comparison.find("dense", DENSE, None) is None:
                self._keep(self._row("dense", DENSE, None, self._dense))
        return self._dense

    def _generate(self, name: str, handle: Any = None, prompts: Sequence[str] | None = None) -> list[Run]:
        """One run per prompt, prompt i from seed i."""
        setup = self.comparison.setup
        prompts = setup.prompts if prompts is None else prompts
        runs: list[Run] = []
        for first in range(0, len(prompts), setup.batch):
            self.tell(name, first, len(prompts))
            batch = list(prompts[first : first + setup.batch])
            call = {"prompt": batch if len(batch) > 1 else batch[0], **setup.call}
            seeds = range(first, first + len(batch))
            runs += timed_batch(self.pipe, call, seeds=seeds, handle=handle, measure_parts=True)
        self.tell(name, len(runs), len(prompts))
        return runs

    def _row(self, kind: Any, label: str, density: float | None, runs: list[Run]) -> Row:
        stats = [run.stats for run in runs if run.stats is not None]
        attention = [run.attention_s for run in runs if run.attention_s is not None]
        timed = self.comparison.setup.timed
        sparse = [s.density_sparse_sites for s in stats if s.density_sparse_sites is not None]
        return Row(
            kind=kind,
            label=label,
            density=density,
            density_total=[s.density_total for s in stats] or [1.0] * len(runs),
            density_sparse=sparse or None,
            denoise_s=[run.denoise_s for run in runs] if timed else None,
            attention_s=attention if timed and len(attention) == len(runs) else None,
            kernel=runs[0].kernel,
            fallbacks=list(stats[0].fallbacks) if stats else [],
            **({} if kind == "dense" else self._metrics(runs)),
        )

    def _metrics(self, runs: list[Run]) -> dict[str, Any]:
        """PSNR, SSIM and LPIPS of every run against the dense one of its prompt."""
        psnr, ssim, lpips = [], [], []
        for dense, run in zip(self._dense_runs(), runs, strict=True):
            frames = compare_frames(dense.frames, run.frames, self.lpips_weights).per_frame
            assert frames is not None
            psnr.append(capped_mean_psnr(frames.psnr))
            ssim.append(_mean(frames.ssim))
            if frames.lpips is not None:
                lpips.append(_mean(frames.lpips))
        return {"psnr": psnr, "ssim": ssim, "lpips": lpips or None}

    def _layer_figures(self, asked: Mapping[str, Any]) -> LayerFigures:
        """Two successive steps of the first prompt: the earlier is learnt from, the later measured."""
        setup = self.comparison.setup
        if self._calls is None:
            middle = max(1, setup.call["num_inference_steps"] // 2)
            self.tell("captured calls", 0, None)
            call = {"prompt": setup.prompts[0], **setup.call}
            self._calls = capture_calls(self.pipe, call, seed=0, steps=(middle - 1, middle))
        method = self._enable(asked).runtimes[0].method
        self.pipe.disable_sparse_attention()
        figures = figures_by_layer(method, self._calls)
        return LayerFigures(
            step=self._calls[-1].site.step,
            error=[figure.error for figure in figures],
            recall=[figure.recall for figure in figures],
            density=[figure.density for figure in figures],
        )

    def _keep(self, row: Row) -> None:
        self.comparison.rows.append(row)
        self._save()

    def _save(self) -> None:
        write_text(self.path, self.comparison.model_dump_json(indent=1) + "\n")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
