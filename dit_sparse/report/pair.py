"""Generate dense and sparse from one seed, timed, and the second dense run of the floor."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from typing import Any

import torch

from dit_sparse.api import sparse_attention
from dit_sparse.methods.profiled_schedule import relaxed
from dit_sparse.report.floor import dense_method, second_kernel
from dit_sparse.report.generation import Run, timed_run
from dit_sparse.report.recall import NOT_ASKED, NOTHING_SPARSE, RecallProbe, recall_section
from dit_sparse.report.schema import Recall

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
        recall: of the sparse calls, if it was asked for.
        recall_unmeasured: why it is None.
    """

    sparse: Run
    dense: Run | None
    method: Mapping[str, Any]
    device: torch.device
    warmup: bool
    floor: Run | None = None
    recall: Recall | None = None
    recall_unmeasured: str | None = NOT_ASKED


def generate_pair(
    pipe: Any,
    call: Mapping[str, Any],
    sparse: Mapping[str, Any],
    *,
    seed: int,
    compare: bool = True,
    floor: bool = False,
    recall: bool = False,
    warmup: bool = False,
    observer: Observer | None = None,
) -> Pair:
    """Generate dense (if ``compare``) and sparse from one seed, timed; the pipeline is left as it came.

    Sparse attention is enabled once before the dense run already, so that bad options fail at once.

    Args:
        call: keyword arguments of the pipeline, without generator and output type.
        sparse: keyword arguments of ``enable_sparse_attention``.
        floor: also generate dense by a second kernel, see :mod:`dit_sparse.report.floor`.
        recall: also estimate how much of the softmax the kept blocks hold, see
            :mod:`dit_sparse.report.recall`.
        warmup: run a few untimed steps first (compilation, kernel tuning).
        observer: follows the runs, for progress bars.

    Raises:
        ValueError: as ``enable_sparse_attention`` and the pipeline; for a floor without ``compare``.
    """
    if floor and not compare:
        raise ValueError("the floor compares two dense runs: ask for the comparison too (--compare)")
    check_sparse(pipe, sparse)
    dense = dense_run(pipe, call, seed=seed, warmup=warmup, observer=observer) if compare else None
    made, method = sparse_run(pipe, call, sparse, seed=seed, warmup=warmup, observer=observer)
    device = execution_device(pipe)
    second = None
    if floor:
        backend = second_kernel(made.kernel, device)
        second = floor_run(pipe, call, backend=backend, seed=seed, observer=observer)
    found, why = None, NOT_ASKED
    if recall:
        found, why = recall_run(pipe, call, sparse, seed=seed, observer=observer), NOTHING_SPARSE
    return Pair(made, dense, method, device, warmup, second, found, None if found else why)


def check_sparse(pipe: Any, sparse: Mapping[str, Any]) -> None:
    """Enable and disable once, so that bad options fail before anything is generated.

    Raises:
        ValueError: as ``enable_sparse_attention``.
    """
    with sparse_attention(pipe, **sparse):
        pass


def dense_run(
    pipe: Any, call: Mapping[str, Any], *, seed: int, warmup: bool = False, observer: Observer | None = None
) -> Run:
    """One dense generation, timed; arguments as :func:`generate_pair`."""
    return _measured("dense", pipe, call, seed, warmup, observer)


def sparse_run(
    pipe: Any,
    call: Mapping[str, Any],
    sparse: Mapping[str, Any],
    *,
    seed: int,
    warmup: bool = False,
    observer: Observer | None = None,
) -> tuple[Run, dict[str, Any]]:
    """One sparse generation, timed, and what it was made with: :attr:`Pair.method`."""
    with sparse_attention(pipe, **sparse) as handle:
        return _measured("sparse", pipe, call, seed, warmup, observer, handle), method_fields(handle.config)


def floor_run(
    pipe: Any, call: Mapping[str, Any], *, backend: str, seed: int, observer: Observer | None = None
) -> Run:
    """Dense once more, through kernel ``backend`` with every block kept."""
    with sparse_attention(pipe, dense_method(), backend=backend) as handle:
        return _run("dense, floor", pipe, call, seed, observer, handle, parts=False)


def recall_run(
    pipe: Any,
    call: Mapping[str, Any],
    sparse: Mapping[str, Any],
    *,
    seed: int,
    observer: Observer | None = None,
) -> Recall | None:
    """The sparse generation once more, its calls watched and nothing timed; None if no call ran sparse."""
    probe = RecallProbe()
    with sparse_attention(pipe, **sparse) as handle, probe.attached(handle):
        _run("sparse, recall", pipe, call, seed, observer, handle, parts=False)
    return recall_section(probe.calls(), probe.rows)


def execution_device(pipe: Any) -> torch.device:
    """Where a pipeline computes, wherever its weights lie."""
    return torch.device(getattr(pipe, "_execution_device", "cpu"))


def _measured(
    name: str,
    pipe: Any,
    call: Mapping[str, Any],
    seed: int,
    warmup: bool,
    observer: Observer | None,
    handle: Any = None,
) -> Run:
    if warmup:
        untimed = {**call, "num_inference_steps": WARMUP_STEPS}
        with _any_length(handle):
            _run(f"{name} warm-up", pipe, untimed, seed, observer, handle)
    return _run(name, pipe, call, seed, observer, handle)


@contextmanager
def _any_length(handle: Any) -> Iterator[None]:
    """Profiles take other numbers of steps than their own meanwhile."""
    methods = [(runtime, runtime.method) for runtime in handle.runtimes] if handle is not None else []
    for runtime, method in methods:
        runtime.method = relaxed(method)
    try:
        yield
    finally:
        for runtime, method in methods:
            runtime.method = method


def _run(
    name: str,
    pipe: Any,
    call: Mapping[str, Any],
    seed: int,
    observer: Observer | None,
    handle: Any = None,
    parts: bool = True,
) -> Run:
    tell = observer or (lambda *_: None)
    tell(name, 0, call.get("num_inference_steps"))
    return timed_run(
        pipe,
        call,
        seed=seed,
        handle=handle,
        measure_parts=parts,
        on_step=lambda step, total: tell(name, step, total),
    )


def method_fields(config: Any) -> dict[str, Any]:
    """Name and fields of a method's configuration; what JSON cannot hold becomes its text."""
    fields = {entry.name: getattr(config, entry.name) for entry in dataclass_fields(config) if entry.repr}
    return {"method": config.name, **json.loads(json.dumps(fields, default=str))}
