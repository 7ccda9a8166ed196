"""``dit-sparse inspect-attention``: attention maps, kept blocks and query points of one generation."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from dit_sparse.cli.shared_options import (
    Device,
    Dtype,
    Guidance,
    Image,
    Model,
    NegativePrompt,
    NumFrames,
    Offload,
    Pixels,
    Seed,
    Steps,
)

LOOK = "What to look at"


def inspect_attention(
    context: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="What the video shows.")] = None,
    steps_at: Annotated[
        str,
        Option(help="Denoising steps: indices from 0, fractions, percentages.", rich_help_panel=LOOK),
    ] = "20%,50%,90%",
    layers: Annotated[
        str | None, Option(help='"all" or a list: 0-3,7.  \\[default: 4, spread]', rich_help_panel=LOOK)
    ] = None,
    heads: Annotated[
        str | None, Option(help='"all" or a list: 0-3,7.  \\[default: up to 8, spread]', rich_help_panel=LOOK)
    ] = None,
    points: Annotated[
        list[str] | None,
        Option(
            help='Query tokens "t,h,w", repeatable, or how many to sample.  \\[default: 4]',
            rich_help_panel=LOOK,
        ),
    ] = None,
    method: Annotated[
        str | None, Option(help="Whose blocks to show.  \\[default: mosaic]", rich_help_panel=LOOK)
    ] = None,
    density: Annotated[
        float | None, Option(help="Fraction of attention blocks computed, in (0, 1].", rich_help_panel=LOOK)
    ] = None,
    settings: Annotated[
        list[str] | None,
        Option("--set", help="key=value for a field of the method; repeatable.", rich_help_panel=LOOK),
    ] = None,
    model: Model = None,
    negative_prompt: NegativePrompt = None,
    image: Image = None,
    height: Pixels = None,
    width: Pixels = None,
    num_frames: NumFrames = None,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = None,
    output: Annotated[Path, Option(help="Folder for page, pictures and figures.")] = Path(
        "dit-sparse-attention"
    ),
    dtype: Dtype = None,
    device: Device = None,
    offload: Offload = None,
) -> None:
    """Show where heads look: maps, what a method keeps of them, recall, query points on the video."""
    from rich.console import Console

    from dit_sparse.adapters.loading import quiet
    from dit_sparse.cli import session
    from dit_sparse.cli.options import parse_settings, resolve_options
    from dit_sparse.cli.progress import RunProgress
    from dit_sparse.report.attention_inspection import Wanted
    from dit_sparse.report.attention_inspection import inspect_attention as inspect
    from dit_sparse.report.attention_report import JSON, PAGE, write_inspection
    from dit_sparse.report.attention_selection import (
        DEFAULT_HEADS,
        DEFAULT_LAYERS,
        method_config,
        model_size,
        parse_points,
        resolve_indices,
        resolve_steps,
    )
    from dit_sparse.report.environment import describe_model
    from dit_sparse.report.pair import execution_device, method_fields

    quiet()
    own = ("context", "steps_at", "layers", "heads", "points", "settings")
    options = resolve_options(
        {
            **{key: value for key, value in context.params.items() if key not in own},
            "set": parse_settings(settings or ()) or None,
        }
    )
    queries = parse_points(points)
    config = method_config(options.sparse_call())
    console = Console()
    with RunProgress(console) as progress:
        pipe = session.load(options)
        call = session.pipeline_call(pipe, options)
        if "num_inference_steps" not in call:
            raise ValueError(f"{options.model} has no default number of steps here: give --steps")
        layer_count, head_count = model_size(pipe)
        wanted = Wanted(
            resolve_steps(steps_at, call["num_inference_steps"]),
            resolve_indices(layers, "--layers", layer_count, DEFAULT_LAYERS),
            resolve_indices(heads, "--heads", head_count, DEFAULT_HEADS),
            queries,
            config,
        )
        seen = inspect(pipe, call, wanted, seed=options.seed, observer=progress, warn=console.print)
        about = session.describe(
            options,
            call,
            describe_model(pipe, options.model),
            method_fields(config),
            shlex.join(["dit-sparse", *context.obj]),
        )
        written = write_inspection(options.output, seen, about, execution_device(pipe), observer=progress)
    for name in (PAGE, JSON, *written.files):
        print(options.output / name)
