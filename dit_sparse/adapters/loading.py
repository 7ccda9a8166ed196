"""Load any diffusers pipeline for a run: precision, device, offload."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from dit_sparse.adapters.attach import transformers_of
from dit_sparse.adapters.base import find_adapter

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Offload = Literal["none", "model", "sequential"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Autoencoders whose authors publish results in float32 only; bfloat16 shows as flicker and blocking.
FLOAT32_AUTOENCODERS = frozenset({"AutoencoderKLWan"})


def resolve_device(device: str = "auto") -> torch.device:
    """The torch device for ``device``; "auto" is the first CUDA GPU, else the CPU.

    Raises:
        ValueError: for a name torch does not know or a GPU that is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}: use auto, cpu, cuda or cuda:0") from error
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device!r} is not there: torch sees {torch.cuda.device_count()} CUDA GPUs")
    return resolved


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The torch dtype for ``dtype``; "auto" is bfloat16 on CUDA and float32 elsewhere.

    Raises:
        ValueError: for any other name than those of ``DTYPES``.
    """
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}: use auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def load_pipeline(
    model: str | Path, dtype: str = "auto", device: str = "auto", offload: Offload = "none"
) -> DiffusionPipeline:
    """Load a pipeline from a local folder or a hub id, placed and ready to call.

    Args:
        model: folder with a ``model_index.json``, or a hub id such as ``Wan-AI/Wan2.1-T2V-1.3B-Diffusers``.
        dtype: "auto", "float32", "bfloat16" or "float16"; some autoencoders stay in float32.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        offload: "none" keeps everything on the device, "model" and "sequential" are diffusers' CPU offloads.

    Raises:
        ValueError: if nothing loadable is found there, or device, dtype or offload make no sense together.
    """
    from diffusers import DiffusionPipeline

    place = resolve_device(device)
    weights = resolve_dtype(dtype, place)
    if offload not in ("none", "model", "sequential"):
        raise ValueError(f"unknown offload {offload!r}: use none, model or sequential")
    if offload != "none" and place.type == "cpu":
        raise ValueError(f"offload={offload!r} needs a GPU to offload from, but the device is the CPU")
    per_component: dict[str, torch.dtype] = {"default": weights}
    if _autoencoder_class(model) in FLOAT32_AUTOENCODERS:
        per_component["vae"] = torch.float32
    try:
        pipe = DiffusionPipeline.from_pretrained(model, dtype=per_component)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load {str(model)!r}: {_first_line(error)}") from error
    if offload == "model":
        pipe.enable_model_cpu_offload(device=place)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=place)
    else:
        pipe.to(place)
    return pipe


def quiet() -> None:
    """Silence the loading bars and advisory warnings of diffusers and transformers; errors still show."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()
        library.set_verbosity_error()


def _autoencoder_class(model: str | Path) -> str | None:
    """Class name of the ``vae`` component according to ``model_index.json``."""
    from diffusers import DiffusionPipeline

    try:
        index = DiffusionPipeline.load_config(str(model))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot load {str(model)!r}: neither a folder with a model_index.json nor a hub id "
            f"that can be reached ({_first_line(error)})"
        ) from error
    entry = index.get("vae")
    return entry[1] if isinstance(entry, (list, tuple)) and len(entry) == 2 else None


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def compile_blocks(pipe: Any) -> None:
    """Compile the blocks that hold self-attention, in place and one graph for all: diffusers' regional
    compilation, also for models that do not name their repeated blocks.

    Raises:
        ValueError: for a transformer without adapter.
    """
    for transformer in transformers_of(pipe).values():
        for path, _ in find_adapter(transformer).attention_layers(transformer):
            transformer.get_submodule(path.rpartition(".")[0]).compile()
