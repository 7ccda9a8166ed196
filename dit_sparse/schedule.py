"""Schedule axis: at which steps and layers attention stays dense, and how often a plan is made anew."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dit_sparse.layout import Site, TokenLayout, step_at

DenseSteps = int | float | Iterable[int]
DenseLayers = str | Iterable[int]


@dataclass(frozen=True)
class Schedule:
    """When the sparse path runs.

    Args:
        dense_steps: first steps left dense, as a count (int >= 0), a fraction of the steps (float in [0, 1),
            rounded up) or an explicit collection of step indices.
        dense_layers: layers left dense: indices, or a string such as ``"0-1,47"``; a float in [0, 1) is the
            first fraction of the layers, rounded down.
        refresh_interval: a plan is reused for this many steps, >= 1.
        min_tokens: sequences with fewer tokens stay dense; planning would cost more than it saves.

    Raises:
        ValueError: on anything out of range, quoting it.

    >>> site = Site(layer=0, step=1, num_steps=10)
    >>> Schedule(dense_steps=0.2).dense_reason(site, TokenLayout(8, 32, 32), num_layers=12)
    'dense_step'
    """

    dense_steps: DenseSteps = 0
    dense_layers: DenseLayers | float = ()
    refresh_interval: int = 1
    min_tokens: int = 1024

    def __post_init__(self) -> None:
        # Normalised once, so that a schedule is hashable, comparable and cheap to ask.
        object.__setattr__(self, "dense_steps", _checked_steps(self.dense_steps))
        object.__setattr__(self, "dense_layers", _checked_layers(self.dense_layers))
        if not isinstance(self.refresh_interval, int) or self.refresh_interval < 1:
            raise ValueError(f"refresh_interval must be a whole number >= 1, got {self.refresh_interval!r}")
        if not isinstance(self.min_tokens, int) or self.min_tokens < 0:
            raise ValueError(f"min_tokens must be a whole number >= 0, got {self.min_tokens!r}")

    def dense_reason(self, site: Site, layout: TokenLayout, num_layers: int) -> str | None:
        """Why this site is to stay dense by plan, or None if it is to run sparse.

        A fractional ``dense_steps`` needs the number of steps; where the loop does not tell, the steps count
        as sparse after the first, and ``"dense_step"`` covers the first only.
        """
        if self._step_is_dense(site.step, site.num_steps):
            return "dense_step"
        if self._layer_is_dense(site.layer, num_layers):
            return "dense_layer"
        if layout.num_tokens < self.min_tokens:
            return "min_tokens"
        return None

    def never_sparse(self, layer: int, layout: TokenLayout, num_layers: int) -> bool:
        """Whether a layer stays dense at every step."""
        return self._layer_is_dense(layer, num_layers) or layout.num_tokens < self.min_tokens

    def first_sparse_step(self, num_steps: int | None) -> int:
        """First step that is not left dense, taking ``num_steps`` None as in :meth:`dense_reason`."""
        step = 0
        while self._step_is_dense(step, num_steps):
            step += 1
        return step

    def _step_is_dense(self, step: int, num_steps: int | None) -> bool:
        if isinstance(self.dense_steps, frozenset):
            return step in self.dense_steps
        if isinstance(self.dense_steps, float):
            if num_steps is None:
                return self.dense_steps > 0 and step == 0
            return step < step_at(self.dense_steps, num_steps)
        return step < self.dense_steps  # type: ignore[operator]

    def _layer_is_dense(self, layer: int, num_layers: int) -> bool:
        if isinstance(self.dense_layers, float):
            return layer < int(self.dense_layers * num_layers)
        return layer in self.dense_layers  # type: ignore[operator]


def _checked_steps(value: object) -> int | float | frozenset[int]:
    hint = "use a count (5), a fraction (0.2) or a list of step indices ([0, 1, 2])"
    if isinstance(value, (bool, str)):
        raise ValueError(f"dense_steps={value!r} is not understood: {hint}")
    if isinstance(value, int):
        if value < 0:
            raise ValueError(f"dense_steps must not be negative, got {value}: {hint}")
        return value
    if isinstance(value, float):
        if not 0.0 <= value < 1.0:
            raise ValueError(f"a fractional dense_steps must be in [0, 1), got {value}: {hint}")
        return value
    return _indices("dense_steps", value, hint)


def _checked_layers(value: object) -> float | frozenset[int]:
    hint = (
        'use a list of layer indices ([0, 1]), a string ("0-1,47") or a fraction of the first layers (0.03)'
    )
    if isinstance(value, float):
        if not 0.0 <= value < 1.0:
            raise ValueError(f"a fractional dense_layers must be in [0, 1), got {value}: {hint}")
        return value
    if isinstance(value, str):
        return frozenset(parse_ranges(value, "dense_layers", hint))
    return _indices("dense_layers", value, hint)


def _indices(name: str, value: object, hint: str) -> frozenset[int]:
    if not isinstance(value, Iterable):
        raise ValueError(f"{name}={value!r} is not understood: {hint}")
    items = list(value)
    if any(isinstance(item, bool) or not isinstance(item, int) or item < 0 for item in items):
        raise ValueError(f"{name}={value!r} holds something else than indices >= 0: {hint}")
    return frozenset(items)


def parse_ranges(text: str, name: str, hint: str) -> Iterable[int]:
    """The indices of a text such as "0-1,47".

    Args:
        text: whole numbers and ranges that include both ends, with commas between.
        name: of the option, for the message.
        hint: what would work, for the message.

    Raises:
        ValueError: on anything else.
    """
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or (dash and int(last) < int(first)):
            raise ValueError(f"{name}={text!r} holds {part!r}: {hint}")
        yield from range(int(first), int(last or first) + 1)
