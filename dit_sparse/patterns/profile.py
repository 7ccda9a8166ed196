"""A profile in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dit_sparse.patterns.header import ProfileHeader
from dit_sparse.patterns.table import PatternTable


@dataclass(frozen=True)
class Profile:
    """What every head does, and for which model, grid and steps that holds.

    Args:
        header: everything but the tensors.
        table: the choices; its sizes are those of the header.
        path: file that it came from; None where it was made in memory.
    """

    header: ProfileHeader
    table: PatternTable
    path: Path | None = None
