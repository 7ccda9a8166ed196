"""Error between the densities at which it was measured."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def not_rising(error: Floats) -> Floats:
    """Errors at rising densities ``[..., K]`` without the rises that noise makes: the least so far."""
    return np.minimum.accumulate(error, axis=-1)


def between(at: Floats, error: Floats, wanted: Floats) -> Floats:
    """Error at other densities, log-linear between neighbours; linear where one of them has none.

    Args:
        at: ``[n, K]`` densities (or counts), not falling along the last axis.
        error: ``[n, K]``, not rising along it.
        wanted: ``[n, M]``; outside of ``at`` the nearest end's error is returned.

    Returns:
        ``[n, M]``.
    """
    last = at.shape[-1] - 1
    if last == 0:
        return np.broadcast_to(error, wanted.shape).copy()
    low = np.clip((at[:, None, :] <= wanted[:, :, None]).sum(axis=-1) - 1, 0, last - 1)
    a, b = (np.take_along_axis(at, i, axis=-1) for i in (low, low + 1))
    ea, eb = (np.take_along_axis(error, i, axis=-1) for i in (low, low + 1))
    part = np.clip((wanted - a) / np.where(b > a, b - a, 1.0), 0.0, 1.0)
    part = np.where(b > a, part, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        curved = np.exp((1 - part) * np.log(ea) + part * np.log(eb))
    straight = (1 - part) * ea + part * eb
    return np.where((ea > 0) & (eb > 0), curved, straight)


def by_missed_mass(missed: Floats, error: Floats, wanted: Floats) -> Floats:
    """Error of a mask by the softmax mass that it misses, from masks of which both are known.

    Log-linear in both; below the least mass known in proportion, above the largest its error.

    Args:
        missed, error: ``[n, K]``.
        wanted: ``[n, M]``.

    Returns:
        ``[n, M]``.
    """
    order = np.argsort(missed, axis=-1, kind="stable")
    missed, error = (np.take_along_axis(x, order, axis=-1) for x in (missed, error))
    error = np.maximum.accumulate(error, axis=-1)
    found = np.zeros_like(wanted)
    for row, (x, y, w) in enumerate(zip(missed, error, wanted, strict=True)):
        known = (x > 0) & (y > 0)
        if not known.any():
            continue
        x, y = x[known], y[known]
        inside = np.exp(np.interp(np.log(np.maximum(w, 1e-300)), np.log(x), np.log(y)))
        found[row] = np.where(w < x[0], y[0] * np.maximum(w, 0.0) / x[0], inside)
    return found
