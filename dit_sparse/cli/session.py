"""What ``generate`` does, without any printing: load, generate dense and sparse, write the folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_sparse.adapters.loading import compile_blocks, load_pipeline
from dit_sparse.cli.options import GenerateOptions
from dit_sparse.embedded import DEFAULTS, tiny_wan_path
from dit_sparse.embedded import NAME as EMBEDDED_MODEL
from dit_sparse.report.capabilities import capabilities
from dit_sparse.report.compare import Context, Observer, generate_pair, write_comparison
from dit_sparse.report.environment import describe_model
from dit_sparse.report.schema import ModelInfo, Report

# The rates at which the models were trained, by the start of the pipeline's class name.
FRAMES_PER_SECOND = {"CogVideoX": 8.0, "HunyuanVideo": 24.0, "Wan": 16.0, "LTX": 24.0, "Mochi": 30.0}
EMBEDDED_FPS = 8.0
DEFAULT_FPS = 16.0
# Parameter of the pipeline -> the option a user knows it by.
OPTION_NAMES = {"num_inference_steps": "--steps", "guidance_scale": "--guidance"}


def load(options: GenerateOptions) -> Any:
    """The pipeline that the options name, compiled if they say so.

    Raises:
        ValueError: if it cannot be loaded, or not with this device, dtype or offload.
    """
    model = options.model
    if model == EMBEDDED_MODEL:
        model = str(tiny_wan_path())
    pipe = load_pipeline(model, options.dtype, options.device, options.offload)
    if options.compile:
        compile_blocks(pipe)
    return pipe


def pipeline_call(pipe: Any, options: GenerateOptions) -> dict[str, Any]:
    """Keyword arguments for ``pipe``, checked against what its ``__call__`` takes.

    Raises:
        ValueError: for an option this pipeline does not know, or an image that is missing or unreadable.
    """
    call = options.pipeline_call(_defaults(options))
    abilities = capabilities(pipe)
    name = type(pipe).__name__
    if options.image is not None:
        call["image"] = _read_image(options)
    elif "image" in abilities.required:
        raise ValueError(f"{name} starts from an image: give --image")
    for key in call:
        if key not in abilities.accepts:
            raise ValueError(f"{name} takes no {OPTION_NAMES.get(key, '--' + key.replace('_', '-'))}")
    return call


def run(options: GenerateOptions, *, command: str | None = None, observer: Observer | None = None) -> Report:
    """Do the whole job of ``generate`` and return the report that was written into ``options.output``."""
    floor = _wants_floor(options)
    pipe = load(options)
    call = pipeline_call(pipe, options)
    pair = generate_pair(
        pipe,
        call,
        options.sparse_call(),
        seed=options.seed,
        compare=options.compare,
        floor=floor,
        recall=_unless_told(options.recall, options),
        warmup=wants_warmup(pipe, options),
        observer=observer,
    )
    made_with = {**pair.method, "backend": options.backend, "strict": options.strict}
    context = describe(options, call, describe_model(pipe, options.model), made_with, command)
    if observer is not None:
        observer("measure, write", 0, None)
    fps = frames_per_second(pipe, options)
    return write_comparison(options.output, pair, context, fps=fps, lpips_weights=options.lpips_weights)


def describe(
    options: GenerateOptions,
    call: Mapping[str, Any],
    model: ModelInfo,
    made_with: Mapping[str, Any],
    command: str | None,
) -> Context:
    """What a report says beside the measurements; ``made_with`` is the method and how it was enabled."""
    return Context(
        prompt=options.prompt,
        negative_prompt=options.negative_prompt,
        seed=options.seed,
        model=model,
        command=command,
        config={**made_with, "generation": _generation(options, call)},
    )


def wants_warmup(pipe: Any, options: GenerateOptions) -> bool:
    """As asked; unasked where the first run also compiles or tunes kernels."""
    return options.warmup if options.warmup is not None else pipe.device.type == "cuda" or options.compile


def _wants_floor(options: GenerateOptions) -> bool:
    """As asked; unasked only where one more dense run is cheap, which is the embedded model.

    Raises:
        ValueError: if it was asked for without the dense run to compare with.
    """
    if options.floor and not options.compare:
        raise ValueError("--floor compares two dense runs: give --compare too")
    return _unless_told(options.floor, options)


def _unless_told(asked: bool | None, options: GenerateOptions) -> bool:
    """As asked; unasked where one more run is cheap, which is the embedded model."""
    return options.compare and options.model == EMBEDDED_MODEL if asked is None else asked


def _defaults(options: GenerateOptions) -> Mapping[str, Any]:
    if options.model != EMBEDDED_MODEL:
        return {}
    return DEFAULTS


def _read_image(options: GenerateOptions) -> Any:
    from PIL import Image, UnidentifiedImageError

    assert options.image is not None
    try:
        return Image.open(options.image).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"--image {options.image}: cannot be read as an image") from error


def frames_per_second(pipe: Any, options: GenerateOptions) -> float:
    """As asked, or the rate at which the model was trained."""
    if options.fps is not None:
        return options.fps
    if options.model == EMBEDDED_MODEL:
        return EMBEDDED_FPS
    name = type(pipe).__name__
    return next((fps for start, fps in FRAMES_PER_SECOND.items() if name.startswith(start)), DEFAULT_FPS)


def _generation(options: GenerateOptions, call: Mapping[str, Any]) -> dict[str, Any]:
    """Generation options as used, JSON values only; prompt and seed have their own places in the report."""
    used = {key: value for key, value in call.items() if key not in ("prompt", "negative_prompt", "image")}
    run_options = options.model_dump(
        mode="json", include={"image", "dtype", "device", "offload", "compile", "profile"}
    )
    return {**used, **run_options}
