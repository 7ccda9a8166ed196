"""``dit-sparse compare``: methods by densities against dense attention, with a table and plots."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from dit_sparse.cli.errors import EXIT_FAILURES
from dit_sparse.cli.shared_options import (
    Device,
    Dtype,
    Guidance,
    LpipsWeights,
    Model,
    NumFrames,
    Pixels,
    PromptFile,
    Prompts,
    Steps,
)
from dit_sparse.cli.workload import PROMPTS, parse_specs, read_prompts, shared_setup

if TYPE_CHECKING:
    from dit_sparse.cli.options import GenerateOptions
    from dit_sparse.report.comparison_rows import Candidate
    from dit_sparse.report.comparison_schema import Setup

DENSITIES = (0.5, 0.25, 0.1)


def compare(
    context: typer.Context,
    methods: Annotated[
        list[str] | None,
        Option("--method", help="Name, or name:field=value,...; repeatable.  \\[default: all methods]"),
    ] = None,
    profiles: Annotated[
        list[str] | None,
        Option("--profile", help="Shipped preset or file, also with fields, beside the methods; repeatable."),
    ] = None,
    densities: Annotated[
        list[float] | None,
        Option("--density", help="Repeatable.  \\[default: 0.5, 0.25 and 0.1]"),
    ] = None,
    baseline: Annotated[
        str | None, Option(help="One of the methods: the others are compared with it prompt by prompt.")
    ] = None,
    dense_steps: Annotated[str, Option(help="Guard of all methods: count, fraction or list.")] = "0.2",
    floor: Annotated[bool, Option("--floor/--no-floor", help="Also dense against dense.")] = True,
    layers: Annotated[
        bool, Option("--layers/--no-layers", help="Also output error and mass recall by layer.")
    ] = False,
    batch: Annotated[
        int, Option(min=1, help="Prompts in one call of the pipeline; times are shares of a call then.")
    ] = 1,
    times: Annotated[
        bool, Option("--times/--no-times", help="Leave times out where other work shares the device.")
    ] = True,
    prompts: Prompts = PROMPTS,
    prompt_file: PromptFile = None,
    model: Model = None,
    height: Pixels = None,
    width: Pixels = None,
    num_frames: NumFrames = None,
    steps: Steps = None,
    guidance: Guidance = None,
    output: Annotated[Path, Option(help="Folder; rows that it holds already are not measured again.")] = Path(
        "dit-sparse-compare"
    ),
    lpips_weights: LpipsWeights = None,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Compare methods by densities on the same prompts, seeds and guard; interrupt and resume at will."""
    from rich.console import Console

    from dit_sparse.adapters.loading import quiet
    from dit_sparse.cli.options import parse_scalar, resolve_options
    from dit_sparse.cli.progress import RunProgress
    from dit_sparse.report.comparison import Bench
    from dit_sparse.report.comparison_table import check_baseline, write_pages
    from dit_sparse.report.evaluation_folder import writing_in

    quiet()
    texts = read_prompts(prompt_file, prompts)
    candidates = parse_candidates(methods, profiles)
    check_baseline(baseline, [candidate.label for candidate in candidates])
    options = resolve_options(
        {
            "prompt": texts[0],
            "model": model,
            "height": height,
            "width": width,
            "num_frames": num_frames,
            "steps": steps,
            "guidance": guidance,
            "dtype": dtype,
            "device": device,
        }
    )
    console = Console()
    with RunProgress(console) as progress:
        pipe, setup = load(options, texts, parse_scalar(dense_steps), batch, times)
        bench = Bench(
            pipe,
            setup,
            output / "comparison.json",
            lpips_weights=lpips_weights,
            observer=progress,
            command=shlex.join(["dit-sparse", *context.obj]),
        )
        with writing_in(output):
            comparison = bench.run(candidates, densities or DENSITIES, floor=floor, layers=layers)
            pages = write_pages(output, comparison, baseline)
    for path in pages:
        print(path)
    for row, reason in bench.failures.items():
        typer.echo(f"{row} failed: {reason}", err=True)
    if bench.failures:
        raise typer.Exit(EXIT_FAILURES)


def parse_candidates(specs: Sequence[str] | None, profiles: Sequence[str] | None = None) -> list[Candidate]:
    """Methods as given, ``name`` or ``name:field=value,...``, then profiles; all methods for neither.

    Raises:
        ValueError: on a field without value, or what is given twice.
    """
    import dit_sparse
    from dit_sparse.report.comparison_rows import Candidate

    methods = specs or ([] if profiles else dit_sparse.list_methods())
    return [
        Candidate(spec, name, fields, density=fields.get("density"))
        for spec, name, fields in parse_specs(methods, "--method")
    ] + [
        Candidate(spec, None, fields, profile=name, density=fields.get("density", _own_density(name)))
        for spec, name, fields in parse_specs(profiles or (), "--profile")
    ]


def _own_density(profile: str) -> float | None:
    """What a pattern file was made for; None for a preset, which takes any."""
    from dit_sparse.patterns import load_profile
    from dit_sparse.presets import PATTERN_SUFFIX, find_profile

    path = find_profile(profile)
    return round(load_profile(path).header.figures.density, 4) if path.suffix == PATTERN_SUFFIX else None


def load(
    options: GenerateOptions, prompts: Sequence[str], dense_steps: Any, batch: int = 1, timed: bool = True
) -> tuple[Any, Setup]:
    """The pipeline, and what all rows share.

    Raises:
        ValueError: as :func:`dit_sparse.cli.session.load`, or where the model's steps are not known.
    """
    from dit_sparse.cli import session
    from dit_sparse.report.comparison_schema import Setup

    pipe = session.load(options)
    call: Mapping[str, Any] = session.pipeline_call(pipe, options)
    if "num_inference_steps" not in call:
        raise ValueError(f"{options.model} has no default number of steps here: give --steps")
    return pipe, Setup(
        **shared_setup(pipe, options.model, prompts, call), dense_steps=dense_steps, batch=batch, timed=timed
    )
