"""A recording in a file: safetensors, with the facts as JSON in the metadata."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from safetensors import SafetensorError
from torch import Tensor

from dit_sparse.patterns import Calibration, GridFacts, ModelFacts, ScheduleFacts
from dit_sparse.profiler.recording import Recording, Template
from dit_sparse.profiler.tensor_file import read_tensors, write_tensors

FACTS: dict[str, type[BaseModel]] = {
    "model": ModelFacts,
    "grid": GridFacts,
    "schedule": ScheduleFacts,
    "calibration": Calibration,
}
FORMAT = 1


def save_recording(path: Path, recording: Recording) -> None:
    """Write a recording, atomically."""
    facts = {
        "format": FORMAT,
        **{name: getattr(recording, name).model_dump(mode="json") for name in FACTS},
        "templates": [asdict(template) for template in recording.templates],
        "seconds": recording.seconds,
        "peak_bytes": recording.peak_bytes,
    }
    tensors = {name: getattr(recording, name) for name in _tensor_names()}
    tensors |= {f"mass.{group}.{layer}": mass for (group, layer), mass in recording.mass.items()}
    write_tensors(path, tensors, json.dumps(facts))


def load_recording(path: Path) -> Recording:
    """Read what :func:`save_recording` wrote.

    Raises:
        ValueError: for a file that is missing, damaged, or of another format.
    """
    try:
        tensors, text = read_tensors(path)
        facts = json.loads(text)
        if facts["format"] != FORMAT:
            raise ValueError(f"format {facts['format']!r}, this version reads {FORMAT}")
        mass: dict[tuple[int, int], Tensor] = {}
        for name in [name for name in tensors if name.startswith("mass.")]:
            _, group, layer = name.split(".")
            mass[int(group), int(layer)] = tensors.pop(name)
        values: dict[str, Any] = {name: part.model_validate(facts[name]) for name, part in FACTS.items()}
        values |= {name: tensors[name] for name in _tensor_names()}
        values |= {name: facts[name] for name in ("seconds", "peak_bytes")}
        templates = tuple(Template(x["kind"], x["density"], tuple(x["shape"])) for x in facts["templates"])
        return Recording(templates=templates, mass=mass, **values)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a recording: {error}") from error


def _tensor_names() -> list[str]:
    """Fields of a recording that are one tensor."""
    return [field.name for field in fields(Recording) if field.type == "Tensor"]
