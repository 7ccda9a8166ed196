"""The folder of an evaluation: where its units lie, which are finished, what failed, who writes in it.

A unit is the dense clip of a prompt, its floor, or one sparse clip. It is finished when its folder is at its
place, and it gets there by one rename.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dit_sparse.report.atomic import atomic_folder, write_text
from dit_sparse.report.comparison_schema import check_same_setup
from dit_sparse.report.evaluation_schema import EvaluationSetup, Failure
from dit_sparse.report.generation import Run

SLUG_LENGTH = 48


@dataclass(frozen=True)
class Configuration:
    """One way to run sparsely.

    Args:
        label: what it is called on the page.
        asked: keyword arguments of ``enable_sparse_attention``, JSON values.
    """

    label: str
    asked: Mapping[str, Any]

    @property
    def folder(self) -> str:
        """Name of its folder: readable, and different for everything that is run differently."""
        readable = re.sub(r"[^A-Za-z0-9.]+", "-", self.label).strip("-.")[:SLUG_LENGTH]
        key = json.dumps([self.label, self.asked, self._profile_digest()], sort_keys=True, default=str)
        return f"{readable or 'sparse'}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"

    def _profile_digest(self) -> str | None:
        """Of the profile's file, which may change under its name."""
        path = Path(str(self.asked.get("profile") or ""))
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


@dataclass(frozen=True)
class Unit:
    """What is made, and counts as finished, as a whole."""

    kind: Literal["dense", "floor", "clip"]
    prompt: int
    configuration: Configuration | None = None

    @property
    def label(self) -> str:
        """For the progress bar and the table of failures."""
        return self.configuration.label if self.configuration is not None else self.kind

    @property
    def place(self) -> str:
        """Its folder, from the evaluation's."""
        if self.configuration is None:
            return f"{self.kind}/{self.prompt:03d}"
        return f"clips/{self.configuration.folder}/{self.prompt:03d}"


class EvaluationFolder:
    """Units of a setup and some configurations in a folder.

    Args:
        path: of the folder.
        setup: what all units share.
        configurations: the ones wanted now; others may lie there too.
    """

    def __init__(self, path: Path, setup: EvaluationSetup, configurations: Sequence[Configuration]) -> None:
        self.path, self.setup, self.configurations = path, setup, tuple(configurations)
        self.work = path / ".work"

    def units(self, prompt: int) -> list[Unit]:
        """Everything for one prompt, in the order in which it is made."""
        first = [Unit("dense", prompt)] + ([Unit("floor", prompt)] if self.setup.floor else [])
        return first + [Unit("clip", prompt, configuration) for configuration in self.configurations]

    def all_units(self) -> list[Unit]:
        """Everything for all prompts."""
        return [unit for prompt in range(len(self.setup.prompts)) for unit in self.units(prompt)]

    def of(self, unit: Unit) -> Path:
        """The folder of a unit."""
        return self.path / unit.place

    def finished(self, unit: Unit) -> bool:
        """Whether it is at its place."""
        return self.of(unit).is_dir()

    def begin(self) -> None:
        """Clear away what an interrupted run left, and settle the setup.

        Raises:
            ValueError: if the folder holds clips of another setup.
        """
        file = self.path / "setup.json"
        if file.exists():
            check_same_setup(read_setup(file), self.setup, f"{self.path} holds clips")
        shutil.rmtree(self.work, ignore_errors=True)
        for partial in self.path.glob(".*.partial*"):
            partial.unlink()
        self.work.mkdir(parents=True)
        if not file.exists():
            write_text(file, self.setup.model_dump_json(indent=1) + "\n")

    @contextmanager
    def making(self, unit: Unit) -> Iterator[Path]:
        """A folder to fill; it becomes the unit's when the context closes without an exception."""
        with atomic_folder(self.of(unit), self.work) as folder:
            yield folder

    def fail(self, unit: Unit, error: str) -> None:
        """Note that a unit could not be made, until the next run."""
        label = unit.configuration.label if unit.configuration is not None else None
        failure = Failure(prompt=unit.prompt, kind=unit.kind, configuration=label, error=error)
        name = "-".join(Path(unit.place).parts)
        write_text(self.work / f"failed-{name}.json", failure.model_dump_json())

    def failures(self) -> list[Failure]:
        """What this run could not make, in the order of :meth:`all_units`."""
        order = {(u.prompt, u.kind, u.label): i for i, u in enumerate(self.all_units())}
        found = [Failure.model_validate_json(path.read_text()) for path in self.work.glob("failed-*.json")]
        return sorted(found, key=lambda f: order[f.prompt, f.kind, f.configuration or f.kind])


def read_setup(path: Path) -> EvaluationSetup:
    """The setup of a folder.

    Raises:
        ValueError: if the file is not one of this version.
    """
    try:
        return EvaluationSetup.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no setup of this version: give another --output") from error


@contextmanager
def writing_in(path: Path) -> Iterator[None]:
    """Keep every other evaluation and comparison out of a folder; the system lets go when the process ends,
    however it ends.

    Raises:
        ValueError: if one writes there now.
    """
    import fcntl

    made = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    with (path / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"another command writes in {path}: wait for it, or give another --output"
            ) from error
        try:
            yield
        except BaseException:
            if made and [place.name for place in path.iterdir()] == [".lock"]:  # nothing came of it
                (path / ".lock").unlink()
                path.rmdir()
            raise


def save_run(folder: Path, run: Run) -> None:
    """Keep a dense run: frames exactly as they came, and its times."""
    np.savez_compressed(folder / "frames.npz", frames=run.frames)
    facts = {name: value for name, value in vars(run).items() if name not in ("frames", "stats")}
    (folder / "run.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def load_run(folder: Path) -> Run:
    """What :func:`save_run` kept."""
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    tuples = {name: tuple(value) for name, value in facts.items() if isinstance(value, list)}
    with np.load(folder / "frames.npz") as kept:
        return Run(frames=kept["frames"], **{**facts, **tuples})
