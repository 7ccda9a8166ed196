"""``dit-sparse generate``: a video with sparse attention, beside the dense one, with a report."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from dit_sparse.cli.shared_options import (
    SPARSE,
    Backend,
    Compile,
    DenseLayers,
    DenseSteps,
    Device,
    Dtype,
    Fps,
    Guidance,
    Image,
    LpipsWeights,
    MinTokens,
    Model,
    NegativePrompt,
    NumFrames,
    Offload,
    Pixels,
    Seed,
    Steps,
    Strict,
    Warmup,
)


def generate(
    context: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="What the video shows.")] = None,
    model: Model = None,
    negative_prompt: NegativePrompt = None,
    image: Image = None,
    height: Pixels = None,
    width: Pixels = None,
    num_frames: NumFrames = None,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = None,
    fps: Fps = None,
    method: Annotated[
        str | None, Option(help="See dit-sparse list.  \\[default: mosaic]", rich_help_panel=SPARSE)
    ] = None,
    density: Annotated[
        float | None, Option(help="Fraction of attention blocks computed, in (0, 1].", rich_help_panel=SPARSE)
    ] = None,
    dense_steps: DenseSteps = None,
    dense_layers: DenseLayers = None,
    min_tokens: MinTokens = None,
    settings: Annotated[
        list[str] | None,
        Option("--set", help="key=value for a field of the method; repeatable.", rich_help_panel=SPARSE),
    ] = None,
    profile: Annotated[
        list[str] | None,
        Option(
            help="Instead of --method: shipped profile, pattern file (.safetensors) or preset (.yaml). With "
            "two transformers: transformer=FILE and transformer_2=FILE.",
            rich_help_panel=SPARSE,
        ),
    ] = None,
    allow_resample: Annotated[
        bool | None,
        Option(
            "--allow-resample",
            help="Carry the pattern file over to another grid, scheduler or number of steps.",
            rich_help_panel=SPARSE,
        ),
    ] = None,
    backend: Backend = None,
    strict: Strict = None,
    compare: Annotated[
        bool | None,
        Option("--compare/--no-compare", help="Also generate dense, from the same noise, and measure."),
    ] = None,
    floor: Annotated[
        bool | None,
        Option(
            "--floor/--no-floor",
            help="With --compare: a second dense run by another kernel.  \\[default: for tiny-wan]",
        ),
    ] = None,
    recall: Annotated[
        bool | None,
        Option(
            "--recall/--no-recall",
            help="A second, untimed sparse run: how much of the softmax is kept.  \\[default: for tiny-wan]",
        ),
    ] = None,
    output: Annotated[
        Path | None, Option(help="Folder for videos and report.  \\[default: dit-sparse-out]")
    ] = None,
    config: Annotated[Path | None, Option(help="YAML file with any of these options.")] = None,
    lpips_weights: LpipsWeights = None,
    dtype: Dtype = None,
    device: Device = None,
    offload: Offload = None,
    compile_: Compile = None,
    warmup: Warmup = None,
) -> None:
    """Generate a video with sparse attention; with --compare also the dense one, metrics and a report."""
    from dit_sparse.cli.options import from_command_line

    # The parameters above declare the options; what was given of them arrives as one mapping.
    options = from_command_line(context.params)

    from rich.console import Console

    from dit_sparse.adapters.loading import quiet
    from dit_sparse.cli import session
    from dit_sparse.cli.progress import RunProgress
    from dit_sparse.cli.tables import result_table

    quiet()
    console = Console()
    with RunProgress(console) as progress:
        report = session.run(options, command=shlex.join(["dit-sparse", *context.obj]), observer=progress)
    console.print(result_table(report))
    for name in (
        report.files.sparse,
        report.files.dense,
        report.files.side_by_side,
        "report.json",
        "report.html",
    ):
        if name:
            print(options.output / name)
