"""Pattern files of earlier versions are brought up to date when they are loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from dit_sparse.patterns.errors import ProfileError, quoted
from dit_sparse.patterns.header import FORMAT_VERSION
from dit_sparse.patterns.table import OBSERVED

Migration = Callable[[dict[str, Any], dict[str, Tensor]], tuple[dict[str, Any], dict[str, Tensor]]]
"""From the header and the tensors (by their names in the file) of one version to those of the next."""


def _to_version_2(
    header: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Version 2 knows observed heads, and names the correction that the choices were made for."""
    if (kind := tensors["kind"]).numel() and int(kind.max()) >= OBSERVED:
        raise ProfileError(
            f"it is of version 1 and holds a head of kind {int(kind.max())}, must be below {OBSERVED}: it is "
            "damaged, make it again"
        )
    if "correction" in header:
        raise ProfileError(
            f"it is of version 1 and has a correction, {quoted(header['correction'])}, which is a field of "
            "version 2: it is damaged, make it again"
        )
    return {**header, "correction": "none"}, tensors


MIGRATIONS: dict[int, Migration] = {1: _to_version_2}
"""Version -> how to get from it to the next one. The header and the tensors that a migration is given have
been compared with their checksums, but nothing else is known of them; what it returns is checked in full."""


def check_version(header: Any) -> int:
    """The version of a header as parsed.

    Raises:
        ProfileError: where it has none, or one that cannot be read.
    """
    version = header.get("format_version") if isinstance(header, dict) else None
    if type(version) is not int or version < 0:
        raise ProfileError(
            f"format_version is {quoted(version)}, must be an integer from 0 on: it is damaged"
        )
    if version > FORMAT_VERSION:
        raise ProfileError(
            f"format_version is {version}, this dit_sparse reads versions up to {FORMAT_VERSION}: upgrade "
            "dit_sparse, or make the file again with this one"
        )
    for step in range(version, FORMAT_VERSION):
        if step not in MIGRATIONS:
            raise ProfileError(
                f"format_version is {version}, which this dit_sparse cannot read any more: make the file "
                "again with `dit-sparse profile`"
            )
    return version


def migrate(header: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors in the current version.

    Raises:
        ProfileError: where the version cannot be read, or a migration fails on what is there.
    """
    for version in range(check_version(header), FORMAT_VERSION):
        try:
            header, tensors = MIGRATIONS[version](dict(header), dict(tensors))
        except ProfileError:
            raise
        except Exception as error:  # it indexes data that nothing has checked
            raise ProfileError(f"it is damaged: from version {version} on it lacks {error!r}") from error
        header = {**header, "format_version": version + 1}
    return header, tensors
