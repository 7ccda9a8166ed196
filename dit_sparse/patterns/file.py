"""Pattern files: one ``.safetensors`` per profile. Reading one executes nothing and trusts nothing.

The container's metadata holds one entry: JSON with the :class:`ProfileHeader`, type, shape and SHA-256 of
every tensor, and the SHA-256 of all that. The tensors are those of :class:`PatternTable` by their names, and
``mask.GROUP.LAYER``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from dit_sparse.patterns.atomic import atomic_path
from dit_sparse.patterns.checks import check_header, check_table
from dit_sparse.patterns.container import Index, read_index, read_tensor, write_container
from dit_sparse.patterns.errors import ProfileError
from dit_sparse.patterns.header import FORMAT_VERSION, ProfileHeader
from dit_sparse.patterns.migrate import migrate
from dit_sparse.patterns.named_tensors import from_tensors, to_tensors
from dit_sparse.patterns.profile import Profile
from dit_sparse.patterns.seal import METADATA_KEY, open_seal, seal, validated
from dit_sparse.patterns.table import PatternTable


def save_profile(path: str | Path, header: ProfileHeader, table: PatternTable) -> None:
    """Write a pattern file; whatever interrupts it, the file is whole, or what it was before.

    Equal input gives equal bytes. Folders are made as needed.

    Args:
        path: of the file, by convention with the suffix ``.safetensors``.
        header: of the current format version.
        table: fits the header, see :func:`~dit_sparse.patterns.checks.check_table`.

    Raises:
        ProfileError: where the two do not make a profile that could be read again, or cannot be written.
    """
    with _about(path):
        if header.format_version != FORMAT_VERSION:
            raise ProfileError(f"format_version is {header.format_version}, can write {FORMAT_VERSION} only")
        check_header(header)
        facts = header.model_dump(mode="json")
        if validated(ProfileHeader, facts, "the header") != header:
            raise ProfileError("the header changes when it is written as JSON: give plain texts and numbers")
        check_table(table, header)
        tensors = to_tensors(table)
        metadata = {METADATA_KEY: seal(facts, tensors)}
        with atomic_path(Path(path)) as temporary, temporary.open("wb") as file:
            write_container(file, tensors, metadata)


def load_profile(path: str | Path) -> Profile:
    """Read a pattern file and check all of it: sizes, checksums, types, shapes, ranges, consistency.

    Takes as much memory as the file has bytes, plus at most a few ten megabytes for its header.

    Raises:
        ProfileError: for whatever cannot be read or is not right, with the value found and what would work.
    """
    with _about(path), _open(path) as (file, index):
        sealed = open_seal(index)
        tensors = {
            name: read_tensor(file, name, entry, sealed.tensors[name].sha256)
            for name, entry in index.entries.items()
        }
        facts, tensors = migrate(sealed.profile, tensors)
        header = _checked(facts)
        table = from_tensors(tensors)
        check_table(table, header)
    return Profile(header, table, Path(path))


def read_header(path: str | Path) -> ProfileHeader:
    """The header of a pattern file alone, without reading its tensors where its version is the current one.

    Raises:
        ProfileError: as :func:`load_profile`, as far as the header goes.
    """
    with _about(path), _open(path) as (_, index):
        facts = open_seal(index).profile
        if facts["format_version"] == FORMAT_VERSION:
            return _checked(facts)
    return load_profile(path).header


def _checked(facts: object) -> ProfileHeader:
    header = validated(ProfileHeader, facts, "the profile's header")
    check_header(header)
    return header


@contextmanager
def _open(path: str | Path) -> Iterator[tuple[BufferedReader, Index]]:
    """The file and what it says of its tensors."""
    # Before it is opened: to open a named pipe waits for somebody to write to it.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ProfileError("it is not a regular file: give the path of a .safetensors pattern file")
    with Path(path).open("rb") as file:
        yield file, read_index(file, os.fstat(file.fileno()).st_size)


@contextmanager
def _about(path: str | Path) -> Iterator[None]:
    """Put the path in front of every message, and make one of what the system refuses."""
    try:
        yield
    except ProfileError as error:
        raise ProfileError(f"profile {str(path)!r}: {error}") from error.__cause__
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise ProfileError(f"profile {str(path)!r} cannot be opened: {error}") from error
