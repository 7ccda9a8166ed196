"""Facts about the machine and the model that a report needs in order to be repeated."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from dit_sparse.adapters.attach import denoisers_of
from dit_sparse.patterns.fingerprint import config_sha256
from dit_sparse.report.schema import Device, ModelInfo

PACKAGES = (
    "dit-sparse",
    "torch",
    "diffusers",
    "transformers",
    "triton",
    "flash-attn-4",
    "numpy",
    "scikit-image",
    "av",
    "lpips",
)
FINGERPRINTED = ("transformer", "transformer_2", "vae", "scheduler")


def package_versions(names: tuple[str, ...] = PACKAGES) -> dict[str, str | None]:
    """Installed version of every package, None where it is missing; Python and CUDA first."""
    found: dict[str, str | None] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def describe_device(device: torch.device) -> Device:
    """Name and memory of a torch device."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return Device(type="cuda", name=properties.name, memory_bytes=properties.total_memory)
    return Device(type=device.type, name=_processor_name(), threads=torch.get_num_threads())


def describe_model(pipe: Any, name: str) -> ModelInfo:
    """Classes and config hash of a pipeline; ``name`` is what the user called it."""
    configs = {part: getattr(getattr(pipe, part, None), "config", None) for part in FINGERPRINTED}
    hashes = {part: config_sha256(c) for part, c in configs.items() if isinstance(c, Mapping)}
    classes = {part: type(module).__name__ for part, module in denoisers_of(pipe).items()}
    digest = config_sha256(hashes)
    return ModelInfo(name=name, pipeline=type(pipe).__name__, denoisers=classes, config_sha256=digest)


def _processor_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            for line in info:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
