"""``dit-sparse generate``: a video with sparse attention, beside the dense one, with a report."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

GENERATION = "Generation"
SPARSE = "Sparse attention"
MACHINE = "Machine"


def generate(
    context: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="What the video shows.")] = None,
    model: Annotated[
        str | None, Option(help="Local folder or hub id.  [default: tiny-wan]", rich_help_panel=GENERATION)
    ] = None,
    negative_prompt: Annotated[str | None, Option(rich_help_panel=GENERATION)] = None,
    image: Annotated[
        Path | None, Option(help="First frame, for image-to-video.", rich_help_panel=GENERATION)
    ] = None,
    height: Annotated[int | None, Option(help="Pixels.", rich_help_panel=GENERATION)] = None,
    width: Annotated[int | None, Option(help="Pixels.", rich_help_panel=GENERATION)] = None,
    num_frames: Annotated[int | None, Option(rich_help_panel=GENERATION)] = None,
    steps: Annotated[int | None, Option(help="Denoising steps.", rich_help_panel=GENERATION)] = None,
    guidance: Annotated[float | None, Option(help="Guidance scale.", rich_help_panel=GENERATION)] = None,
    seed: Annotated[
        int | None, Option(help="Of the start noise.  [default: 0]", rich_help_panel=GENERATION)
    ] = None,
    fps: Annotated[float | None, Option(help="Of the video files.", rich_help_panel=GENERATION)] = None,
    method: Annotated[
        str | None, Option(help="See dit-sparse list.  [default: svg2]", rich_help_panel=SPARSE)
    ] = None,
    density: Annotated[
        float | None, Option(help="Fraction of attention blocks computed, in (0, 1].", rich_help_panel=SPARSE)
    ] = None,
    dense_steps: Annotated[
        str | None, Option(help="First steps left dense: count, fraction or list.", rich_help_panel=SPARSE)
    ] = None,
    dense_layers: Annotated[
        str | None, Option(help='Layers left dense, e.g. "0-1,47".', rich_help_panel=SPARSE)
    ] = None,
    min_tokens: Annotated[
        int | None, Option(help="Shorter sequences stay dense.", rich_help_panel=SPARSE)
    ] = None,
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
    backend: Annotated[
        str | None, Option(help="Attention kernel.  [default: auto]", rich_help_panel=SPARSE)
    ] = None,
    strict: Annotated[
        bool | None, Option("--strict", help="Fail instead of falling back to dense.", rich_help_panel=SPARSE)
    ] = None,
    compare: Annotated[
        bool | None,
        Option("--compare/--no-compare", help="Also generate dense, from the same noise, and measure."),
    ] = None,
    floor: Annotated[
        bool | None,
        Option(
            "--floor/--no-floor",
            help="With --compare: a second dense run by another kernel.  [default: for tiny-wan]",
        ),
    ] = None,
    recall: Annotated[
        bool | None,
        Option(
            "--recall/--no-recall",
            help="A second, untimed sparse run: how much of the softmax is kept.  [default: for tiny-wan]",
        ),
    ] = None,
    output: Annotated[
        Path | None, Option(help="Folder for videos and report.  [default: dit-sparse-out]")
    ] = None,
    config: Annotated[Path | None, Option(help="YAML file with any of these options.")] = None,
    lpips_weights: Annotated[Path | None, Option(help="AlexNet weights for LPIPS.")] = None,
    dtype: Annotated[
        str | None, Option(help="float32, bfloat16, float16.  [default: by device]", rich_help_panel=MACHINE)
    ] = None,
    device: Annotated[
        str | None, Option(help="cpu, cuda, cuda:1.  [default: auto]", rich_help_panel=MACHINE)
    ] = None,
    offload: Annotated[
        str | None, Option(help="none, model, sequential.  [default: none]", rich_help_panel=MACHINE)
    ] = None,
    compile_: Annotated[
        bool | None,
        Option("--compile", help="torch.compile the transformer blocks.", rich_help_panel=MACHINE),
    ] = None,
    warmup: Annotated[
        bool | None,
        Option(
            "--warmup/--no-warmup", help="Untimed steps first.  [default: on GPUs]", rich_help_panel=MACHINE
        ),
    ] = None,
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
