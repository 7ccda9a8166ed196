"""Write a file or a folder so that it is either whole or absent, whatever interrupts the writing."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dit_sparse.patterns.atomic import atomic_path, file_mask

__all__ = ["atomic_folder", "atomic_path", "write_text"]


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(path: Path, work: Path) -> Iterator[Path]:
    """Yield an empty folder inside ``work``; rename it to ``path`` on success, remove it on any exception.

    A process that is killed leaves it in ``work``, never at ``path``. The files reach the disk before the
    rename does, so that a machine that goes down does not leave empty ones either.

    Args:
        path: must not be there yet.
        work: on the same file system.
    """
    for parent in (work, path.parent):
        parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=work, prefix=f"{path.name}-"))
    try:
        yield temporary
        temporary.chmod(0o777 & ~file_mask())
        for entry in (*temporary.iterdir(), temporary):
            _flush(entry)
        os.rename(temporary, path)
        _flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
