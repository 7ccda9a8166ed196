"""Shipped profiles by name, and presets: a method and its hyper-parameters for one model, a small YAML file.

A preset gives the source of each value::

    method: svg2
    fields:
      density: 0.25          # own measurement, docs/...
      dense_steps: 0.2       # arXiv 2505.18875, table 6

A pattern file (:mod:`dit_sparse.patterns`) says for every head what it does. Both are looked up by name in
the folder that ships with the package, or given as a path.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SUFFIXES = (".yaml", ".yml")
PATTERN_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Preset:
    """A named choice of method and fields."""

    method: str
    fields: dict[str, Any]


def preset_folders() -> list[Path]:
    """Where shipped profiles lie: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    return [folder for folder in (package / "profiles", package.parent / "profiles") if folder.is_dir()]


def shipped_profiles() -> dict[str, Path]:
    """File of every shipped profile by name, e.g. "tiny-wan/balanced"; sorted.

    Where a pattern file and a preset share a name, it is the pattern file's.
    """
    found = {name: path for suffix in (*SUFFIXES, PATTERN_SUFFIX) for name, path in _shipped(suffix)}
    return dict(sorted(found.items()))


def list_presets() -> list[str]:
    """Names of the shipped presets, e.g. "tiny-wan/balanced"."""
    return sorted({name for suffix in SUFFIXES for name, _ in _shipped(suffix)})


def find_profile(name_or_path: str | Path) -> Path:
    """The file of a profile: a pattern file or a preset, by its suffix.

    Args:
        name_or_path: a name from :func:`shipped_profiles`, or a path that ends in .safetensors or .yaml.

    Raises:
        ValueError: for an unknown name; the message lists the shipped ones.
    """
    path = Path(name_or_path)
    if path.suffix in (*SUFFIXES, PATTERN_SUFFIX):
        return path
    return _known(shipped_profiles(), name_or_path, "a .safetensors pattern file or a .yaml preset")


def load_preset(name_or_path: str | Path) -> Preset:
    """Read a preset.

    Args:
        name_or_path: a name from :func:`list_presets`, or the path of a YAML file.

    Raises:
        ValueError: if there is none, or it is not a preset; the message lists the shipped ones.
    """
    path = Path(name_or_path)
    if path.suffix not in SUFFIXES:
        shipped = {name: found for suffix in SUFFIXES for name, found in _shipped(suffix)}
        path = _known(shipped, name_or_path, "a .yaml preset")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"profile {str(path)!r} cannot be read: {error}") from error
    if not isinstance(content, dict) or set(content) - {"method", "fields", "description"}:
        raise ValueError(f"profile {str(path)!r} must hold `method`, `fields` and `description` only")
    fields = content.get("fields") or {}
    if not isinstance(content.get("method"), str) or not isinstance(fields, dict):
        raise ValueError(f"profile {str(path)!r}: `method` must be a name and `fields` a mapping")
    return Preset(content["method"], {name: _as_tuples(value) for name, value in fields.items()})


def _as_tuples(value: Any) -> Any:
    """Lists, and lists in them, as tuples: fields of methods are hashable, and YAML knows lists only."""
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _shipped(suffix: str) -> Iterator[tuple[str, Path]]:
    """Names and files with a suffix; those inside the package last, so that they win in a mapping."""
    for folder in reversed(preset_folders()):
        for path in folder.rglob(f"*{suffix}"):
            yield path.relative_to(folder).with_suffix("").as_posix(), path


def _known(shipped: dict[str, Path], name: str | Path, kinds: str) -> Path:
    """The file of a shipped name."""
    if str(name) not in shipped:
        names = ", ".join(sorted(shipped)) or "none is shipped"
        raise ValueError(f"no profile {str(name)!r}: give the path of {kinds} or one of {names}")
    return shipped[str(name)]
