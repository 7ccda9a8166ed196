"""JSON from a file that nobody vouches for."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from dit_sparse.patterns.errors import ProfileError, quoted

_DIGITS = 20
_DEPTH = 16
_TOO_DEEP = "{} is nested too deeply to be one"


def parse_json(text: str | bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object; refuse what Python's parser lets pass: keys given twice, numbers that are none.

    Args:
        text: of bounded length: the objects may take thirty times as much memory.
        what: name of the text in messages.

    Raises:
        ProfileError: for everything that is not a plain JSON object, too deep nesting included.
    """
    try:
        found = json.loads(
            text.decode("utf-8") if isinstance(text, bytes) else text,
            object_pairs_hook=_without_twins,
            parse_constant=_refuse_number,
            parse_float=_finite,
            parse_int=_short,
        )
    except ProfileError as error:
        raise ProfileError(f"{what} is corrupt: {error}") from None
    except RecursionError:
        raise ProfileError(_TOO_DEEP.format(what)) from None
    except ValueError as error:  # not JSON, not UTF-8
        raise ProfileError(f"{what} is not JSON: {quoted(str(error))}") from None
    if not isinstance(found, dict):
        raise ProfileError(f"{what} must be a JSON object, got {type(found).__name__}")
    _check_depth(found, _DEPTH, what)
    return found


def canonical_json(value: Any) -> str:
    """The one text of a value: sorted keys, no spaces, ASCII.

    Raises:
        ProfileError: where it holds infinity, NaN or what JSON has no word for.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ProfileError(
            f"the header cannot be written as JSON ({error}): give plain texts and finite numbers"
        ) from error


def _check_depth(value: Any, left: int, what: str) -> None:
    if left == 0:
        raise ProfileError(_TOO_DEEP.format(what))
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, (dict, list)):
            _check_depth(item, left - 1, what)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twin = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ProfileError(f"the key {quoted(twin)} is given twice")
    return found


def _short(text: str) -> int:
    # Python's own conversion takes quadratic time in the number of digits.
    return int(text) if len(text) <= _DIGITS else _refuse_number(text)


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse_number(text)


def _refuse_number(text: str) -> NoReturn:
    raise ProfileError(f"{quoted(text)} is not a number that a profile can hold")
