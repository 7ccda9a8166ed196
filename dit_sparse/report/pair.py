"""Generate dense and sparse from one seed, timed, and the second dense run of the floor."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from typing import Any

import torch

from dit_sparse.report.floor import dense_method, second_kernel
from dit_sparse.report.generation import Run, timed_run

Observer = Callable[[str, int, int | None], None]
"""Told (run, finished steps, all steps or None if unknown); step 0 announces a run."""

WARMUP_STEPS = 2


@dataclass(frozen=True)
class Pair:
    """A sparse run and, unless it was not wanted, the dense one from the same seed.

    Args:
        method: the sparse method's name under "method" and all its fields, JSON values.
        warmup: whether untimed steps came first.
        floor: the same dense video made by another attention kernel, if it was asked for.
    """

    sparse: Run
    dense: Run | None
    method: Mapping[str, Any]
    device: torch.device
    warmup: bool
    floor: Run | None = None


def generate_pair(
    pipe: Any,
    call: Mapping[str, Any],
    sparse: Mapping[str, Any],
    *,
    seed: int,
    compare: bool = True,
    floor: bool = False,
    warmup: bool = False,
    observer: Observer | None = None,
) -> Pair:
    """Generate dense (if ``compare``) and sparse from one seed, timed; the pipeline is left as it came.

    Sparse attention is enabled once before the dense run already, so that bad options fail at once.

    Args:
        call: keyword arguments of the pipeline, without generator and output type.
        sparse: keyword arguments of ``enable_sparse_attention``.
        floor: also generate dense by a second kernel, see :mod:`dit_sparse.report.floor`.
        warmup: run a few untimed steps first (compilation, kernel tuning).
        observer: follows the runs, for progress bars.

    Raises:
        ValueError: as ``enable_sparse_attention`` and the pipeline; for a floor without ``compare``.
    """
    import dit_sparse  # noqa: F401  adds enable_sparse_attention to pipelines

    if floor and not compare:
        raise ValueError("the floor compares two dense runs: ask for the comparison too (--compare)")

    def run(name: str, kwargs: Mapping[str, Any], handle: Any = None, parts: bool = True) -> Run:
        tell = observer or (lambda *_: None)
        tell(name, 0, kwargs.get("num_inference_steps"))
        return timed_run(
            pipe,
            kwargs,
            seed=seed,
            handle=handle,
            measure_parts=parts,
            on_step=lambda step, total: tell(name, step, total),
        )

    def measured(name: str, handle: Any = None) -> Run:
        if warmup:
            run(f"{name} warm-up", {**call, "num_inference_steps": WARMUP_STEPS}, handle)
        return run(name, call, handle)

    pipe.enable_sparse_attention(**sparse)
    pipe.disable_sparse_attention()
    dense_run = measured("dense") if compare else None
    handle = pipe.enable_sparse_attention(**sparse)
    try:
        sparse_run = measured("sparse", handle)
    finally:
        pipe.disable_sparse_attention()
    floor_run = None
    device = torch.device(getattr(pipe, "_execution_device", "cpu"))
    if floor:
        backend = second_kernel(sparse_run.kernel, device)
        second = pipe.enable_sparse_attention(dense_method(), backend=backend)
        try:
            floor_run = run("dense, floor", call, second, parts=False)
        finally:
            pipe.disable_sparse_attention()
    return Pair(sparse_run, dense_run, _method_fields(handle.config), device, warmup, floor_run)


def _method_fields(config: Any) -> dict[str, Any]:
    """Name and fields of a method's configuration; what JSON cannot hold becomes its text."""
    fields = {entry.name: getattr(config, entry.name) for entry in dataclass_fields(config)}
    return {"method": config.name, **json.loads(json.dumps(fields, default=str))}
