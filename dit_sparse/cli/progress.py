"""Progress bars: one per run with one tick per denoising step, or one over all clips, with the time left."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

ALL_OF_IT_S = 7 * 24 * 3600.0  # a clip may take an hour: the speed is that of the whole run


def _bars(console: Console, **options: Any) -> Progress:
    return Progress(
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description:<14}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        expand=console.width < 100,
        **options,
    )


class RunProgress:
    """Observer of :func:`dit_sparse.report.compare.generate_pair`: announces loading, runs, and writing.

    A pipeline without a step callback shows a spinner and the time elapsed.
    """

    def __init__(self, console: Console) -> None:
        self._progress = _bars(console)
        self._current: TaskID | None = None

    def __enter__(self) -> RunProgress:
        self._progress.start()
        self._begin("load")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        self._progress.stop()

    def __call__(self, name: str, step: int, total: int | None) -> None:
        """Show ``step`` of ``total`` for the run ``name``; step 0 begins it."""
        if step == 0:
            self._begin(name, total)
        elif self._current is not None:
            self._progress.update(self._current, completed=step, total=total)

    def _begin(self, name: str, total: int | None = None) -> None:
        self._finish()
        self._current = self._progress.add_task(name, total=total)

    def _finish(self) -> None:
        if self._current is None:
            return
        task = self._progress.tasks[self._current]
        done = task.completed or 1
        self._progress.update(self._current, total=done, completed=done)


class ClipsProgress:
    """Follower of :class:`dit_sparse.report.evaluation.Evaluator`: all clips, and the run under way.

    A clip counts by the share of its steps that are done, so that there is a time left before the first one
    is finished.

    Args:
        console: where it is drawn.
        shown: False on the processes that have nothing to say.
    """

    def __init__(self, console: Console, shown: bool = True) -> None:
        self._progress = _bars(console, speed_estimate_period=ALL_OF_IT_S, disable=not shown)
        self._all: TaskID | None = None
        self._run: TaskID | None = None
        self._done = 0

    def __enter__(self) -> ClipsProgress:
        self._progress.start()
        self._run = self._progress.add_task("load", total=None)
        return self

    def __exit__(self, *error: object) -> None:
        if self._run is not None:
            self._progress.update(self._run, visible=False)
        self._progress.stop()

    def clips(self, done: int, total: int) -> None:
        """Finished or given up, of those that were to be made."""
        self._done = done
        if self._all is None:
            self._all = self._progress.add_task("all clips", total=total)
        self._progress.update(self._all, completed=done)

    def __call__(self, name: str, step: int, total: int | None) -> None:
        """Show ``step`` of ``total`` of the run under way."""
        if self._run is not None:
            self._progress.update(self._run, description=name, completed=step, total=total)
        if self._all is not None and total:
            self._progress.update(self._all, completed=self._done + min(step / total, 1.0) * 0.99)


class RecordProgress:
    """Progress of :func:`dit_sparse.profiler.record`: layers of observed steps, and perturbed forwards."""

    def __init__(self, console: Console) -> None:
        self._progress = _bars(console, speed_estimate_period=ALL_OF_IT_S)
        self._task: TaskID | None = None

    def __enter__(self) -> RecordProgress:
        self._progress.start()
        self._task = self._progress.add_task("load", total=None)
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def start(self, total: int, done: int = 0) -> None:
        """A recording of ``total`` units begins, of which ``done`` are there already."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task("record", total=total, completed=done)

    def advance(self) -> None:
        """One more unit is done."""
        if self._task is not None:
            self._progress.advance(self._task)
