"""The one exception of pattern files."""

from __future__ import annotations

from typing import Any

_SHOWN = 80


class ProfileError(ValueError):
    """A pattern file that cannot be written, read, trusted or used here. The message says what would work."""


def quoted(value: Any) -> str:
    """``repr`` of what a file claims, cut to one line: hostile files claim long things."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
