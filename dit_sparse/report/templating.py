"""The jinja2 environment of the pages: escaping on, numbers with fixed decimals and their unit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dit_sparse.report.extras import require

TEMPLATES = Path(__file__).parent / "templates"
MISSING = "\N{EN DASH}"
BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def environment() -> Any:
    """An environment that finds the templates of the package.

    Raises:
        MissingExtraError: without jinja2.
    """
    jinja2 = require("jinja2")
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(number=number, percent=percent, bytes=byte_size, ranges=ranges)
    return made


def number(value: float | None, decimals: int = 2) -> str:
    """Fixed decimals; a dash for None."""
    return MISSING if value is None else f"{value:.{decimals}f}"


def percent(value: float | None, decimals: int = 1) -> str:
    """A fraction in percent; a dash for None."""
    return MISSING if value is None else f"{100 * value:.{decimals}f} %"


def byte_size(value: float | None) -> str:
    """Bytes in the largest unit that leaves a number of at least one; a dash for None."""
    if value is None:
        return MISSING
    for unit in BYTE_UNITS:
        if value < 1024 or unit == BYTE_UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def ranges(numbers: Iterable[int], start: int = 0) -> str:
    """Whole numbers as text, runs joined: "0-4, 7"; ``start`` is added to every number."""
    runs: list[list[int]] = []
    for value in sorted(numbers):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    dash = "\N{EN DASH}"
    return ", ".join(f"{a + start}" if a == b else f"{a + start}{dash}{b + start}" for a, b in runs)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
