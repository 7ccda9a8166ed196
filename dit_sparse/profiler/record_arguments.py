"""What a recording is made from, checked, and as JSON: two runs that agree in it record the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from dit_sparse import __version__
from dit_sparse.patterns import Calibration, ModelFacts
from dit_sparse.profiler.record_settings import RecordSettings

UNIMPORTANT = ("head_chunk", "memory_bytes")
"""Settings that change how a recording is made, not what it holds."""
SAMPLED = 16
"""Values of every parameter that stand for the weights."""


def record_arguments(
    transformer: nn.Module,
    scheduler: Any,
    model: ModelFacts,
    calls: Sequence[Mapping[str, Any]],
    seeds: Sequence[int],
    settings: RecordSettings,
) -> dict[str, Any]:
    """JSON values only; tensors and images by their hash.

    Raises:
        ValueError: for an argument of the pipeline that cannot be told from another one in a later process.
    """
    kept = {name: value for name, value in asdict(settings).items() if name not in UNIMPORTANT}
    parameter = next(transformer.parameters())
    return {
        "version": __version__,
        "model": model.model_dump(mode="json"),
        "weights": _weights_sha256(transformer),
        "dtype": str(parameter.dtype),
        "device": torch.device(parameter.device).type,
        "scheduler": [
            type(scheduler).__name__,
            _plain("scheduler", dict(getattr(scheduler, "config", {})), str),
        ],
        "calls": [_plain(f"calls[{i}]", dict(call)) for i, call in enumerate(calls)],
        "seeds": list(seeds),
        **kept,
    }


def checked_steps(calls: Sequence[Mapping[str, Any]], seeds: Sequence[int], settings: RecordSettings) -> int:
    """``num_inference_steps`` of all calls.

    Raises:
        ValueError: for calls, seeds and step groups that do not fit together.
    """
    if not calls or len(calls) != len(seeds):
        raise ValueError(
            f"give one seed per call and at least one, got {len(calls)} calls, {len(seeds)} seeds"
        )
    for call in calls:
        if "num_inference_steps" not in call:
            raise ValueError("every call needs num_inference_steps: the step groups refer to it")
        if "generator" in call:
            raise ValueError("calls must not hold a generator: give seeds")
    counts = sorted({int(call["num_inference_steps"]) for call in calls})
    last = settings.groups[-1][1]
    if len(counts) > 1 or counts[0] != last:
        raise ValueError(
            f"the step groups end at step {last}, so every call must have num_inference_steps={last}, got "
            f"{counts}"
        )
    alone = len(calls) == 1 and any(template.kind == "mask" for template in settings.templates)
    if alone and (
        short := [g for g, steps in zip(settings.groups, settings.observed_steps) if len(steps) < 2]
    ):
        raise ValueError(
            "masks are tried on calls that they were not drawn from, and with one prompt the step groups "
            f"{short} have one observed step only: give two prompts, longer groups, or observed=2"
        )
    return last


def calibration_of(calls: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> Calibration:
    """Prompts, seeds and size of the runs; an empty text for a prompt that was given as tensors."""
    prompts = tuple(str(call.get("prompt") or "") for call in calls)
    frames, height, width = (calls[0].get(name) for name in ("num_frames", "height", "width"))
    return Calibration(
        prompts=prompts,
        seeds=tuple(seeds),
        guidance=calls[0].get("guidance_scale"),
        pixels=(frames, height, width) if frames and height and width else None,
    )


def _weights_sha256(transformer: nn.Module) -> str:
    """Of a few values of every parameter: tells checkpoints of one architecture apart, not each bit."""
    digest = hashlib.sha256()
    for name, parameter in transformer.named_parameters():
        digest.update(name.encode())
        if parameter.device.type != "meta":  # offloaded to disk or a store of its own
            digest.update(_bytes(parameter.detach().flatten()[:SAMPLED]))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _plain(name: str, value: Any, other: Any = None) -> Any:
    """``value`` as JSON. ``other`` turns what is no JSON into text; None refuses it."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(f"{name}.{key}", item, other) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(f"{name}[{i}]", item, other) for i, item in enumerate(value)]
    if isinstance(value, Tensor):
        data = _bytes(value.detach().reshape(-1)) if value.numel() else b""
        return f"tensor {value.dtype} {tuple(value.shape)} {hashlib.sha256(data).hexdigest()}"
    if callable(getattr(value, "tobytes", None)):  # numpy arrays and images
        return f"{type(value).__name__} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if other is not None:
        return other(value)
    raise ValueError(
        f"{name} is a {type(value).__name__}, which a later process cannot recognise: give numbers, texts, "
        "images or tensors"
    )
