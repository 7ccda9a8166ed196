"""Tensors and one JSON text in a safetensors file that is either whole or absent."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dit_sparse.patterns.atomic import atomic_path

TEXT = "dit_sparse"


def write_tensors(path: Path, tensors: dict[str, Tensor], text: str) -> None:
    """Write, replacing an earlier file: whatever interrupts the writing, that one stays whole."""
    with atomic_path(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, {TEXT: text})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors, on the CPU, and the text.

    Raises:
        OSError, safetensors.SafetensorError: for a file that cannot be read.
        KeyError: for one without text.
    """
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {})[TEXT]
        return {name: file.get_tensor(name) for name in file.keys()}, text  # noqa: SIM118 (no mapping)
