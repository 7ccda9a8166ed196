"""Presets: a method and its hyper-parameters for one model, a small YAML file with the source of each value.

They are looked up by name in the folder that ships with the package, or given as a path::

    method: svg2
    fields:
      density: 0.25          # own measurement, docs/...
      dense_steps: 0.2       # arXiv 2505.18875, table 6
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Preset:
    """A named choice of method and fields."""

    method: str
    fields: dict[str, Any]


def preset_folders() -> list[Path]:
    """Where shipped presets lie: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    return [folder for folder in (package / "profiles", package.parent / "profiles") if folder.is_dir()]


def list_presets() -> list[str]:
    """Names of the shipped presets, e.g. "tiny-wan/balanced"."""
    names = {
        path.relative_to(folder).with_suffix("").as_posix()
        for folder in preset_folders()
        for path in folder.rglob("*")
        if path.suffix in SUFFIXES
    }
    return sorted(names)


def load_preset(name_or_path: str | Path) -> Preset:
    """Read a preset.

    Args:
        name_or_path: a name from :func:`list_presets`, or the path of a YAML file.

    Raises:
        ValueError: if there is none, or it is not a preset; the message lists the shipped ones.
    """
    path = Path(name_or_path)
    if path.suffix not in SUFFIXES:
        shipped = [folder / f"{name_or_path}{suffix}" for folder in preset_folders() for suffix in SUFFIXES]
        found = [candidate for candidate in shipped if candidate.is_file()]
        if not found or str(name_or_path) not in list_presets():
            raise ValueError(
                f"no profile {str(name_or_path)!r}: give the path of a .yaml preset or one of "
                f"{', '.join(list_presets()) or 'none is shipped'}"
            )
        path = found[0]
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"profile {str(path)!r} cannot be read: {error}") from error
    if not isinstance(content, dict) or set(content) - {"method", "fields", "description"}:
        raise ValueError(f"profile {str(path)!r} must hold `method`, `fields` and `description` only")
    fields = content.get("fields") or {}
    if not isinstance(content.get("method"), str) or not isinstance(fields, dict):
        raise ValueError(f"profile {str(path)!r}: `method` must be a name and `fields` a mapping")
    return Preset(content["method"], fields)
