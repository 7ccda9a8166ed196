"""One prompt of a recording: a dense run, observed, and after the first one the perturbed forwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from dit_sparse.api import sparse_attention as attached
from dit_sparse.engine import SparseMethod
from dit_sparse.layout import Site
from dit_sparse.patterns import ModelFacts
from dit_sparse.profiler.record_observer import Recorder
from dit_sparse.profiler.record_sensitivity import InputKeeper, Inputs, layer_sensitivity
from dit_sparse.profiler.record_settings import RecordSettings
from dit_sparse.profiler.record_sums import Sums
from dit_sparse.schedule import Schedule


class Progress(Protocol):
    """Told how far a recording is. A unit is a layer of an observed step, or a perturbed forward."""

    def start(self, total: int, done: int = 0) -> None:
        """A recording of ``total`` units begins, of which an earlier run finished ``done``."""
        ...

    def advance(self) -> None:
        """One more unit is done."""
        ...


def record_prompt(
    pipe: Any,
    transformer: nn.Module,
    call: Mapping[str, Any],
    seed: int,
    model: ModelFacts,
    settings: RecordSettings,
    several: bool,
    sums: Sums | None,
    progress: Progress,
) -> Sums:
    """Run a pipeline densely once and add what was observed to the sums.

    Args:
        pipe: the pipeline, with nothing attached.
        transformer: of it, the one to record.
        call: keyword arguments of the pipeline.
        seed: of the start noise.
        model: facts about the transformer.
        settings: what to look at.
        several: whether there are several prompts, see :class:`~.record_observer.Recorder`.
        sums: of the prompts before, written to; None for the first.
        progress: told of every layer.

    Returns:
        The sums with this prompt's.

    Raises:
        ValueError: if a call that should have been observed was not.
    """
    keeper = InputKeeper()
    kept: dict[int, Inputs] = {}  # of one forward per step group
    middle = {steps[len(steps) // 2]: group for group, steps in enumerate(settings.observed_steps)}

    def on_layer(site: Site) -> None:
        if settings.sensitivity and sums is None and site.layer == 0 and site.step in middle:
            kept[middle[site.step]] = keeper.copy()
        progress.advance()

    recorder = Recorder(settings, model.component, several, sums, on_layer)
    dense = Schedule(call["num_inference_steps"], min_tokens=0)
    method = SparseMethod("record", recorder, schedule=dense, block_size=settings.block_size)
    pipe.set_progress_bar_config(disable=True)
    with attached(pipe, method) as handle, keeper.watching(transformer), torch.no_grad():
        generator = torch.Generator("cpu").manual_seed(seed)
        pipe(**{**call, "output_type": "latent"}, generator=generator)
        _check_seen(recorder, model, handle.stats().fallbacks)
    sensitivity = recorder.sums.tensors["sensitivity"]
    if sums is None and not settings.sensitivity:
        sensitivity.fill_(1.0)
    for group, inputs in sorted(kept.items()):
        sensitivity[group] = layer_sensitivity(
            transformer, inputs, model.layers, settings.density, progress.advance
        )
    recorder.end_prompt()
    return recorder.sums


def _check_seen(recorder: Recorder, model: ModelFacts, fallbacks: Sequence[str]) -> None:
    """Every layer must have been observed at every step asked for.

    Raises:
        ValueError: if not, with the reasons.
    """
    for step in (step for steps in recorder.settings.observed_steps for step in steps):
        missing = [layer for layer in range(model.layers) if (step, layer) not in recorder.seen]
        if missing:
            raise ValueError(
                f"{len(missing)} of {model.layers} layers of {model.component!r} could not be observed at "
                f"step {step}: {'; '.join(fallbacks) or 'that step does not run it, or not all of them'}"
            )
