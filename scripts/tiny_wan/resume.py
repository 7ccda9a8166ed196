"""A compact bundle of all weights, with which another machine can go on: bf16, safetensors, two small files.

It lacks optimizer states, so the stage it goes on with starts with a warm-up.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .config import Plan
from .models import Models, build_models
from .runtime import Average, Workspace

PART_BYTES = 15 * 2**20
LATENTS_FILE = "latents.json"
_START_FILE = "start.json"
_ROOM = 2**18  # for a part's header


@dataclass
class Progress:
    """Finished stages, where the denoiser's weights come from, and the statistics of the latents."""

    finished: list[str] = field(default_factory=list)
    origin: str = "untrained"
    latents: dict[str, list[float]] = field(default_factory=dict)

    def mark(self, stage: str, done: bool) -> None:
        if done and stage not in self.finished:
            self.finished.append(stage)


def save_bundle(models: Models, progress: Progress, target: Path) -> list[Path]:
    """Write resume-0.safetensors, resume-1.safetensors, ... of at most 15 MiB each."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, p in _parameters(models):
        tensor = p.detach().to("cpu", torch.bfloat16).contiguous()
        if size + tensor.nbytes > PART_BYTES - _ROOM:
            parts.append({})
            size = 0
        parts[-1][name] = tensor
        size += tensor.nbytes
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("resume-*.safetensors"):
        old.unlink()
    paths = [target / f"resume-{number}.safetensors" for number in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        save_file(part, path, metadata={"progress": json.dumps(vars(progress))})
    return paths


@torch.no_grad()
def load_bundle(folder: Path, models: Models) -> Progress:
    """Read the bundle in `folder` into `models`."""
    missing = dict(_parameters(models))
    progress = Progress()
    for path in sorted(folder.glob("resume-*.safetensors")):
        with safe_open(path, "pt") as file:
            progress = Progress(**json.loads(file.metadata()["progress"]))
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                missing.pop(name).copy_(file.get_tensor(name))
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} tensors, the first {next(iter(missing))}")
    if progress.latents:
        models.vae.register_to_config(**progress.latents)
    return progress


def _parameters(models: Models) -> Iterator[tuple[str, Tensor]]:
    for part in ("text_encoder", "heads", "vae", "transformer"):
        for name, p in getattr(models, part).named_parameters():
            yield f"{part}.{name}", p


def start_from(work: Workspace, plan: Plan, bundle: Path | None, first: str | None) -> None:
    """Put `bundle` into the work folder; training goes on at stage `first`, else the first unfinished."""
    place = work.folder / "init"
    if bundle is None or place.exists():
        return
    if any(work.checkpoint(name).exists() for name in plan.stage_names()):
        raise ValueError(f"{work.folder} holds checkpoints already: choose another folder, or --no-resume")
    progress = load_bundle(bundle, build_models(plan, torch.device("cpu")))
    names = plan.stage_names()
    first = first or next((name for name in names if name not in progress.finished), names[-1])
    if first not in names:
        raise ValueError(f"no stage is called {first!r}")
    skipped = names[: names.index(first)]
    if "vae" in skipped and not progress.latents:
        raise ValueError("the bundle's autoencoder is not finished: start from vae")
    place.mkdir(parents=True)
    for path in bundle.glob("resume-*.safetensors"):
        shutil.copy(path, place)
    (place / _START_FILE).write_text(json.dumps(skipped))
    work.log(started_from=progress.origin, stages_done=progress.finished, first=first)


def initial(work: Workspace, models: Models) -> list[str]:
    """Load the bundle that the work folder began with, if any; returns the stages to skip."""
    place = work.folder / "init"
    if not place.exists():
        return []
    load_bundle(place, models)
    skipped: list[str] = json.loads((place / _START_FILE).read_text())
    return skipped


def newest(work: Workspace, plan: Plan) -> tuple[Models, Progress]:
    """The newest weights of every part, averaged where an average exists, and how far training has come."""
    models = build_models(plan, work.device)
    progress = Progress()
    if (work.folder / "init").exists():
        progress = load_bundle(work.folder / "init", models)
        progress.finished = initial(work, models)
    saved = work.load("text")
    if saved is not None:
        models.text_encoder.load_state_dict(saved["parts"]["encoder"])
        models.heads.load_state_dict(saved["parts"]["heads"])
        progress.mark("text", saved["done"])
    saved = work.load("vae")
    if saved is not None:
        _load_average(models.vae, saved)
        progress.latents = {}
        latents = work.folder / LATENTS_FILE
        if saved["done"] and latents.exists():
            progress.latents = json.loads(latents.read_text())
            models.vae.register_to_config(**progress.latents)
            progress.mark("vae", True)
    for stage in plan.stages:
        saved = work.load(stage.name)
        if saved is not None:
            _load_average(models.trained(), saved)
            progress.mark(stage.name, saved["done"])
            progress.origin = f"{stage.name}, step {saved['steps']}"
    return models, progress


def _load_average(module: Any, saved: dict[str, Any]) -> None:
    average = Average(module.parameters(), 0.0)
    average.load_state_dict(saved["parts"]["average"])
    average.copy_to_params()
