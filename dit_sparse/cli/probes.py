"""Look at this machine: what is installed, what will run, what is missing and the command that gets it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from dit_sparse.presets import shipped_profiles
from dit_sparse.report.extras import INSTALL_COMMAND

State = Literal["ok", "missing", "broken"]
REPORT_PACKAGES = ("av", "scikit-image", "jinja2")
BACKEND_PACKAGES = {
    "triton": ("triton", "pip install triton"),
    "flash-attn-4": ("flash-attn-4", "pip install 'dit-sparse[gpu]'"),
}


@dataclass(frozen=True)
class Finding:
    """One line of ``doctor``.

    Args:
        needed: whether the main job (generate, compare, report) cannot run without it.
        remedy: the command that helps, "" if none is needed.
    """

    name: str
    state: State
    detail: str
    remedy: str = ""
    needed: bool = False


def examine() -> Iterator[Finding]:
    """All findings, cheap ones first."""
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in ("torch", "diffusers", "transformers", "accelerate"):
        yield _package(name, f"pip install {name}", needed=True)
    yield _memory()
    yield _gpu()
    for name, remedy in BACKEND_PACKAGES.values():
        yield _package(name, remedy, needed=False)
    yield from _backends()
    yield _embedded_model()
    for name in REPORT_PACKAGES:
        yield _package(name, INSTALL_COMMAND, needed=True)
    yield _encoder()
    yield _lpips()
    profiles = shipped_profiles()
    yield Finding("profiles", "ok", ", ".join(profiles) if profiles else "none shipped with this version")


def _package(name: str, remedy: str, *, needed: bool) -> Finding:
    try:
        return Finding(name, "ok", version(name), needed=needed)
    except PackageNotFoundError:
        return Finding(name, "missing", "not installed", remedy, needed)


def _memory() -> Finding:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return Finding("memory", "ok", "unknown")
    return Finding("memory", "ok", f"{total / 2**30:.1f} GiB, {os.cpu_count()} processors")


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("GPU", "missing", "torch sees no CUDA GPU: everything runs on the CPU")
    names = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
    listed = ", ".join(f"{p.name} ({p.total_memory / 2**30:.0f} GiB, sm_{p.major}{p.minor})" for p in names)
    return Finding("GPU", "ok", listed)


def _backends() -> Iterator[Finding]:
    from dit_sparse import kernels

    found = kernels.available_backends()
    for name, state in found.items():
        available = state == "available"
        yield Finding(f"backend {name}", "ok" if available else "missing", state)
    if "available" not in found.values():
        yield Finding(
            "backends",
            "broken",
            "no attention kernel can run",
            "pip install --force-reinstall dit-sparse",
            True,
        )


def _embedded_model() -> Finding:
    from dit_sparse.embedded import tiny_wan_path

    try:
        path = tiny_wan_path()
    except OSError as error:
        return Finding("tiny-wan", "broken", str(error), "pip install --force-reinstall dit-sparse", True)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return Finding("tiny-wan", "ok", f"embedded model, {size / 2**20:.1f} MiB", needed=True)


def _encoder() -> Finding:
    try:
        import av

        av.codec.Codec("libx264", "w")
    except ImportError:
        return Finding("H.264 encoder", "missing", "PyAV is not installed", INSTALL_COMMAND, True)
    except ValueError:
        detail = "this build of PyAV has no libx264"
        return Finding(
            "H.264 encoder", "broken", detail, "pip install --force-reinstall --only-binary av av", True
        )
    return Finding("H.264 encoder", "ok", f"libx264 of FFmpeg in PyAV {av.__version__}", needed=True)


def _lpips() -> Finding:
    from dit_sparse.report.lpips_weights import LpipsUnavailableError, find_weights

    try:
        return Finding("LPIPS", "ok", f"AlexNet weights from {find_weights().source}")
    except LpipsUnavailableError as error:
        return Finding("LPIPS", "missing", str(error))
