"""What a comparison consists of: candidates and their rows, the file of them, several files made one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dit_sparse.report.comparison_schema import Comparison, Setup, check_same_setup
from dit_sparse.report.environment import package_versions

EQUAL = 0.1
"""How far, as a fraction, a pattern file's density may be from a density it is compared at."""


@dataclass(frozen=True)
class Candidate:
    """What is compared, a method or a profile.

    Args:
        label: what it is called in the table.
        method: name; None for a profile.
        fields: of the method or profile, beside the shared ones.
        profile: name or path of a preset or pattern file.
        density: its own: that among the fields, or what a pattern file was made for; None for what takes any.
    """

    label: str
    method: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    profile: str | None = None
    density: float | None = None

    def rows(self, densities: Sequence[float]) -> dict[float, dict[str, Any]]:
        """By density of its rows: what ``enable_sparse_attention`` is given for them.

        What has its own density stands beside the nearest of ``densities`` that is within :data:`EQUAL`
        of it, else alone.
        """
        kind = {"method": self.method} if self.profile is None else {"profile": self.profile}
        if self.density is None:
            return {density: {**kind, "density": density, **self.fields} for density in densities}
        own = self.density
        nearest = min(densities, key=lambda density: abs(density - own), default=own)
        return {nearest if abs(nearest - own) <= EQUAL * nearest else own: {**kind, **self.fields}}


def merged(parts: Sequence[Comparison], labels: Sequence[str], command: str | None) -> Comparison:
    """The rows of comparisons of one setup in one: dense and floor first, then by density and label.

    Args:
        parts: at least one; of a row that several have, the first counts.
        labels: of the methods, in the order wanted; others come after them.
        command: the command line that made them all.

    Raises:
        ValueError: if their setups differ.
    """
    whole = Comparison(command=command, setup=parts[0].setup, versions=parts[0].versions)
    for part in parts:
        check_same_setup(whole.setup, part.setup, "a part has rows")
        whole.rows += [row for row in part.rows if whole.find(*row.key) is None]
    kinds, places = ("dense", "floor", "method"), {label: place for place, label in enumerate(labels)}
    whole.rows.sort(
        key=lambda row: (kinds.index(row.kind), -(row.density or 0.0), places.get(row.label, len(places)))
    )
    return whole


def load_or_begin(path: Path, setup: Setup, command: str | None) -> Comparison:
    """The comparison that ``path`` holds, or a new one.

    Raises:
        ValueError: if the file is no comparison, or one of another setup.
    """
    if not path.exists():
        return Comparison(command=command, setup=setup, versions=package_versions())
    try:
        comparison = Comparison.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no comparison of this version: give another --output") from error
    check_same_setup(comparison.setup, setup, f"{path} holds rows")
    comparison.command = command
    return comparison
