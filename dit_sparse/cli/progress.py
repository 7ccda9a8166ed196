"""Progress bars of a generation: one per run, one tick per denoising step, with the time left."""

from __future__ import annotations

from types import TracebackType

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


class RunProgress:
    """Observer of :func:`dit_sparse.report.compare.generate_pair`: announces loading, runs, and writing.

    A pipeline without a step callback shows a spinner and the time elapsed.
    """

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description:<14}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            expand=console.width < 100,
        )
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
