"""Measured times of attention on one device, and what they say of other densities and lengths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dit_sparse.kernels import PRECISIONS

Planning = Literal["unpack", "score", "map", "reorder", "correct"]
EXPONENTS: Mapping[str, float] = {
    "attention": 2.0,
    "unpack": 2.0,
    "score": 2.0,
    "map": 2.0,
    "reorder": 1.0,
    "correct": 2.0,
}
"""How times grow with the number of tokens where one length only was measured."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class AttentionTime(_Part):
    """Block-sparse attention of all heads."""

    tokens: int = Field(ge=1)
    density: float = Field(gt=0, le=1)
    precision: str = "native"
    ms: float = Field(gt=0)


class DenseTime(_Part):
    """The fastest dense attention of all heads."""

    tokens: int = Field(ge=1)
    kernel: str
    ms: float = Field(gt=0)


class PlanningTime(_Part):
    """What a call does besides, for all heads. unpack: bits become a mask. score: mean keys are scored and
    pairs chosen. map: a mask becomes a block map. reorder: q, k and v are gathered, the output is
    scattered. correct: skipped blocks enter through their means, and a carried residual is added."""

    what: Planning
    tokens: int = Field(ge=1)
    ms: float = Field(ge=0)


class CostTable(_Part):
    """Times of one device, in ms, for one sample of ``heads`` heads of ``head_dim``.

    Between measured densities times are interpolated linearly, and made not to fall; between lengths in
    logarithms of both, and beyond the last ones by the measured exponent.

    Args:
        device, date, torch_version, triton_version, command: where the times come from.
        dtype: of q, k and v.
        block_size: (query, key) block in tokens.
        attention, dense, planning: the times.
    """

    format_version: Literal[1] = 1
    device: str
    date: str
    torch_version: str
    triton_version: str | None
    command: str
    dtype: str
    heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    block_size: tuple[int, int]
    attention: tuple[AttentionTime, ...]
    dense: tuple[DenseTime, ...] = Field(min_length=1)
    planning: tuple[PlanningTime, ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> CostTable:
        for time in self.attention:
            if time.precision not in PRECISIONS:
                raise ValueError(f"precision {time.precision!r} is none of {', '.join(PRECISIONS)}")
        counts = {n: len(at) for n, at in self._curves("native").items()}
        if not counts or min(counts.values()) < 2:
            raise ValueError(f"two densities of precision 'native' are needed at every length, got {counts}")
        return self

    @property
    def label(self) -> str:
        """Device and date."""
        return f"{self.device}, {self.date}"

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those that were measured, in the order of PRECISIONS."""
        found = {time.precision for time in self.attention}
        return tuple(name for name in PRECISIONS if name in found)

    def sparse_ms(
        self, tokens: int, density: ArrayLike, precision: str = "native", heads: int | None = None
    ) -> NDArray[np.float64]:
        """Block-sparse attention of a layer.

        Args:
            tokens: N, >= 1.
            density: fractions of pairs, any shape, in [0, 1].
            precision: one of :attr:`precisions`.
            heads: of the layer; those of the table when None. Times are in proportion.

        Returns:
            ms, shaped like ``density``; does not fall with it.

        Raises:
            ValueError: for a precision that was not measured.
        """
        curves = self._curves(precision)
        if not curves:
            raise ValueError(
                f"precision {precision!r} was not measured on {self.device}: there are {self.precisions}"
            )
        wanted = np.asarray(density, dtype=np.float64)
        times = {n: _along(curve, wanted) for n, curve in curves.items()}
        return _at_length(times, tokens, EXPONENTS["attention"]) * (heads or self.heads) / self.heads

    def dense_ms(self, tokens: int, heads: int | None = None) -> float:
        """The fastest dense attention of a layer; arguments as for :meth:`sparse_ms`."""
        best: dict[int, float] = {}
        for time in self.dense:
            best[time.tokens] = min(time.ms, best.get(time.tokens, np.inf))
        times = {n: np.array(ms) for n, ms in best.items()}
        return float(_at_length(times, tokens, EXPONENTS["attention"])) * (heads or self.heads) / self.heads

    def planning_ms(self, what: Planning, tokens: int, heads: int | None = None) -> float:
        """What else a call costs; 0 where it was not measured."""
        times = {time.tokens: np.array(time.ms) for time in self.planning if time.what == what}
        if not times:
            return 0.0
        return float(_at_length(times, tokens, EXPONENTS[what])) * (heads or self.heads) / self.heads

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        Path(path).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> CostTable:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: if the file is no such table; the message says why.
        """
        try:
            return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except (ValidationError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no cost table of version 1: {error}") from error

    def _curves(self, precision: str) -> dict[int, dict[float, float]]:
        """length -> density -> ms."""
        found: dict[int, dict[float, float]] = {}
        for time in self.attention:
            if time.precision == precision:
                found.setdefault(time.tokens, {})[time.density] = time.ms
        return found


def _along(curve: Mapping[float, float], density: NDArray[np.float64]) -> NDArray[np.float64]:
    """ms at these densities; below the lowest measured one along its line, at least 0."""
    at = np.array(sorted(curve))
    ms = np.maximum.accumulate(np.array([curve[d] for d in at]))
    if len(at) > 1:
        start = max(0.0, ms[0] - at[0] * (ms[1] - ms[0]) / (at[1] - at[0]))
        at, ms = np.concatenate([[0.0], at]), np.concatenate([[start], ms])
    return np.interp(density, at, ms)


def _at_length(times: Mapping[int, NDArray[np.float64]], tokens: int, exponent: float) -> NDArray[np.float64]:
    """Times at another length, from those measured at some."""
    if tokens in times:
        return times[tokens]
    measured = sorted(times)
    if len(measured) == 1:
        return times[measured[0]] * (tokens / measured[0]) ** exponent
    place = int(np.clip(np.searchsorted(measured, tokens), 1, len(measured) - 1))
    short, long = measured[place - 1], measured[place]
    low, high = (np.maximum(times[n], 1e-9) for n in (short, long))
    return low * (high / low) ** (np.log(tokens / short) / np.log(long / short))
