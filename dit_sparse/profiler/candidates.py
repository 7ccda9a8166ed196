"""What every head could do, with pairs computed and error: the templates of a recording and densities between
them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dit_sparse.patterns import DENSE, KINDS, SKIP
from dit_sparse.profiler.curves import between, not_rising
from dit_sparse.profiler.problem import Problem

Floats = NDArray[np.float64]
FINER = 3
"""Densities put between two measured ones."""
ALONE = -1
"""Family of what has no density of its own to vary."""


@dataclass(frozen=True)
class Candidates:
    """n = G * L * H heads, step groups slowest, with M candidates each.

    Args:
        kind: int ``[M]``, index into :data:`~dit_sparse.patterns.KINDS`.
        rule: int ``[M]``, how a mask is drawn, index into :data:`~dit_sparse.profiler.masks.RULES`.
        family: int ``[M]``: candidates that differ in density only; :data:`ALONE` for dense and skip.
        shape: ``[M, 3]``, proportions of windows.
        pairs: int64 ``[n, M]``, pairs computed.
        error: ``[n, M]``, squared, relative to the layer; infinite where a head has no such candidate.
        total: pairs of a head.
        continuous: families whose heads can have any density between two candidates, and up to dense.
    """

    kind: NDArray[np.int64]
    rule: NDArray[np.int64]
    family: NDArray[np.int64]
    shape: Floats
    pairs: NDArray[np.int64]
    error: Floats
    total: int
    continuous: frozenset[int] = frozenset()

    def joined(self, a: int, b: int) -> bool:
        """Whether a head can stand anywhere between candidates a and b."""
        kinds = {int(self.family[i]) for i in (a, b) if self.kind[i] != DENSE}
        return len(kinds) == 1 and kinds <= self.continuous

    def error_at(self, heads: NDArray[np.intp], family: int, pairs: NDArray[np.int64]) -> Floats:
        """Error of heads ``[m]`` with as many pairs ``[m]`` in one family."""
        members = np.flatnonzero(self.family == family)
        at = np.concatenate([self.pairs[heads][:, members], np.full((len(heads), 1), self.total)], axis=1)
        error = np.concatenate([self.error[heads][:, members], np.zeros((len(heads), 1))], axis=1)
        order = np.argsort(at, axis=-1, kind="stable")
        at, error = (np.take_along_axis(x, order, axis=-1) for x in (at.astype(np.float64), error))
        return between(at, not_rising(error), pairs[:, None].astype(np.float64))[:, 0]


def candidates(
    problem: Problem, kinds: Collection[str] = KINDS, continuous: Collection[str] = ("mask",)
) -> Candidates:
    """Candidates of the recorded kinds.

    Errors come from the templates. Kinds in ``continuous`` also get densities between the measured ones,
    with errors interpolated (log-linear in the density), up to density 1 and error 0.

    Args:
        problem: what to choose for.
        kinds: of :data:`~dit_sparse.patterns.KINDS`, those that may be chosen. "dense" needs no template.
        continuous: those whose density may lie between the measured ones.

    Raises:
        ValueError: for an unknown kind, or where none of them was recorded.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown or not kinds:
        raise ValueError(f"kinds must be some of {', '.join(KINDS)}, got {unknown or 'none'}")
    columns: list[tuple[int, int, tuple[float, float, float], NDArray, NDArray]] = []
    n, total = int(np.prod(problem.sizes)), problem.total
    smooth: set[int] = set()
    family = 0
    for kind in kinds:
        index = KINDS.index(kind)
        if index == DENSE:
            columns.append((DENSE, ALONE, (0.0, 0.0, 0.0), np.full((n, 1), total), np.zeros((n, 1))))
            continue
        for shape, members in _families(problem, kind).items():
            pairs = problem.pairs[..., members].reshape(n, -1)
            error = problem.error[..., members].reshape(n, -1)
            if index == SKIP:
                columns.append((SKIP, ALONE, shape, pairs, error))
                continue
            error = not_rising(error)
            pairs = np.maximum.accumulate(pairs, axis=-1)
            if kind in continuous:
                smooth.add(family)
                pairs, error = _finer(pairs, error, total, int(problem.forced.sum()))
            columns.append((index, family, shape, pairs, error))
            family += 1
    if all(column[0] == DENSE for column in columns) and tuple(kinds) != ("dense",):
        known = sorted({template.kind for template in problem.recording.templates})
        raise ValueError(f"none of the kinds {', '.join(kinds)} was recorded: there are {', '.join(known)}")
    widths = [column[3].shape[1] for column in columns]
    return Candidates(
        kind=np.repeat([column[0] for column in columns], widths),
        rule=np.zeros(sum(widths), dtype=np.int64),
        family=np.repeat([column[1] for column in columns], widths),
        shape=np.repeat(np.array([column[2] for column in columns], dtype=np.float64), widths, axis=0),
        pairs=np.concatenate([column[3] for column in columns], axis=1).astype(np.int64),
        error=np.concatenate([column[4] for column in columns], axis=1),
        total=total,
        continuous=frozenset(smooth),
    )


def _families(problem: Problem, kind: str) -> dict[tuple[float, float, float], list[int]]:
    """Templates of a kind by shape, densities rising."""
    found: dict[tuple[float, float, float], list[int]] = {}
    for i in problem.templates(kind):
        found.setdefault(problem.recording.templates[i].shape, []).append(i)
    return found


def _finer(pairs: NDArray, error: Floats, total: int, least: int) -> tuple[NDArray, Floats]:
    """Densities between the measured ones, evenly in logarithms, and towards density 1."""
    at = np.concatenate([pairs, np.full((len(pairs), 1), total)], axis=1)
    known = np.concatenate([error, np.zeros((len(error), 1))], axis=1)
    part = np.arange(FINER + 1) / (FINER + 1)
    log = np.log(np.maximum(at, 1))
    spread = np.exp(log[:, :-1, None] * (1 - part) + log[:, 1:, None] * part).reshape(len(pairs), -1)
    # Whole pairs, the measured ones as they are, and none below those that are kept whatever is chosen.
    wanted = np.floor(spread + 1e-6).astype(np.int64).clip(min=min(least, total), max=total)
    return wanted, between(at.astype(np.float64), known, wanted.astype(np.float64))
