"""Which steps, layers and heads to look at: texts of the command line turned into indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dit_sparse.adapters.attach import transformers_of
from dit_sparse.adapters.base import find_adapter
from dit_sparse.api import DEFAULT_METHOD
from dit_sparse.layout import step_at
from dit_sparse.methods import MethodConfig, make_method
from dit_sparse.report.attention_points import Point
from dit_sparse.schedule import parse_ranges

DEFAULT_STEPS = "20%,50%,90%"
DEFAULT_LAYERS, DEFAULT_HEADS, DEFAULT_POINTS = 4, 8, 4
"""Without a choice of the user: at most so many, evenly spread."""
ALL = "all"


def resolve_steps(text: str, num_steps: int) -> tuple[int, ...]:
    """Steps from a list of indices, fractions and percentages.

    Args:
        text: "20%,50%,90%", "0.5", "0,4,9" or a mixture; a fraction is the first step at or after it.
        num_steps: of the generation.

    Raises:
        ValueError: for anything else, or a step beyond the last.
    """
    hint = "give steps from 0, fractions (0.2) or percentages (20%), with commas between"
    found = set()
    for part in (piece.strip() for piece in text.split(",")):
        number = part.removesuffix("%")
        if not number.replace(".", "", 1).isdigit() or not number.isascii():
            raise ValueError(f"--steps-at={text!r} holds {part!r}: {hint}")
        if part.endswith("%") or "." in number:
            fraction = float(number) / (100 if part.endswith("%") else 1)
            if fraction > 1:
                raise ValueError(f"--steps-at={text!r} holds {part!r}, which is beyond the end: {hint}")
            found.add(min(step_at(fraction, num_steps), num_steps - 1))
        elif int(number) < num_steps:
            found.add(int(number))
        else:
            raise ValueError(
                f"--steps-at={text!r} holds step {part}, but {num_steps} steps are numbered 0 to "
                f"{num_steps - 1}: {hint}"
            )
    return tuple(sorted(found))


def resolve_indices(text: str | None, option: str, count: int, default: int) -> tuple[int, ...]:
    """Layers or heads from a text.

    Args:
        text: "all", "0-3,7", or None for ``default`` of them, evenly spread.
        option: its name, for messages.
        count: how many there are.
        default: see there.

    Raises:
        ValueError: for anything else, or an index beyond the last.
    """
    if text is None:
        return spread(count, default)
    if text.strip() == ALL:
        return tuple(range(count))
    hint = f"use {ALL!r} or a list such as 0-3,7"
    found = tuple(sorted(set(parse_ranges(text, option, hint))))
    if not found:
        raise ValueError(f"{option}={text!r} names nothing: {hint}")
    if found[-1] >= count:
        raise ValueError(f"{option}={text!r} holds {found[-1]}, but the model has 0 to {count - 1}: {hint}")
    return found


def spread(count: int, most: int) -> tuple[int, ...]:
    """Up to ``most`` of 0 .. count - 1, evenly spread, the ends among them.

    >>> spread(8, 4), spread(3, 4)
    ((0, 2, 5, 7), (0, 1, 2))
    """
    if count <= most:
        return tuple(range(count))
    return tuple(round(i * (count - 1) / (most - 1)) for i in range(most))


def parse_points(texts: Sequence[str] | None) -> int | tuple[Point, ...]:
    """Query points: how many to spread over the grid, or tokens "t,h,w".

    Raises:
        ValueError: for anything else, or a number beside tokens.
    """
    if not texts:
        return DEFAULT_POINTS
    if len(texts) == 1 and texts[0].strip().isdigit():
        if int(texts[0]) < 1:
            raise ValueError(f"--points: give at least 1 point, got {texts[0]}")
        return int(texts[0])
    found: list[Point] = []
    for text in texts:
        parts = [part.strip() for part in text.split(",")]
        if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
            raise ValueError(
                f'--points takes "t,h,w" in tokens, repeatable, or one number of points, got {text!r}'
            )
        t, h, w = (int(part) for part in parts)
        found.append((t, h, w))
    return tuple(dict.fromkeys(found))


def model_size(pipe: Any) -> tuple[int, int]:
    """Self-attention layers of the pipeline's transformer, and heads of each."""
    transformer: Any = next(iter(transformers_of(pipe).values()))
    layers = find_adapter(transformer).attention_layers(transformer)
    heads = getattr(transformer.config, "num_attention_heads", None) or layers[0][1].heads
    return len(layers), int(heads)


def method_config(sparse: Mapping[str, Any]) -> MethodConfig:
    """The configuration that keyword arguments of ``enable_sparse_attention`` name.

    Raises:
        ValueError: for an unknown method or field, or a value that the method refuses for this model.
    """
    fields = {key: value for key, value in sparse.items() if key not in ("method", "backend", "strict")}
    return make_method(sparse.get("method", DEFAULT_METHOD), **fields)
