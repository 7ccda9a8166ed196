"""What a profile may cost, or how far off it may be."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Budget:
    """One limit, given in exactly one of these ways.

    Args:
        density: mean fraction of block pairs computed in the sparse steps, in (0, 1].
        ms: predicted time of the attention of all layers in a sparse step, in milliseconds, > 0; the mean
            over the sparse steps.
        speedup: the same as a factor on dense attention, > 0.
        output_error: predicted relative error of the transformer's output, root mean square over the sparse
            steps, >= 0. The cheapest profile within it is chosen.

    Raises:
        ValueError: unless exactly one is given and in range.

    >>> Budget(density=0.25).name
    'density'
    """

    density: float | None = None
    ms: float | None = None
    speedup: float | None = None
    output_error: float | None = None

    def __post_init__(self) -> None:
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        if len(given) != 1:
            raise ValueError(
                f"a budget is exactly one of density, ms, speedup and output_error, got {given or 'none'}"
            )
        ((name, value),) = given.items()
        if not math.isfinite(value) or value < 0 or (value == 0 and name != "output_error"):
            raise ValueError(f"{name} must be a finite number greater than 0, got {value}")
        if name == "density" and value > 1:
            raise ValueError(f"density must be in (0, 1], got {value}: it is the fraction of blocks computed")

    @property
    def name(self) -> str:
        """Which of the four it is."""
        return next(f.name for f in fields(self) if getattr(self, f.name) is not None)

    @property
    def value(self) -> float:
        """Its number."""
        return float(getattr(self, self.name))

    @property
    def timed(self) -> bool:
        """Whether it needs measured times."""
        return self.name in ("ms", "speedup")


def as_budget(budget: Budget | float) -> Budget:
    """A budget as it is; a number is a density."""
    return budget if isinstance(budget, Budget) else Budget(density=float(budget))
