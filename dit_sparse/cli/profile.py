"""``dit-sparse profile``: record what a model's heads do, choose what they will do, write a pattern file."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from dit_sparse.cli.shared_options import (
    Device,
    Dtype,
)

if TYPE_CHECKING:
    from dit_sparse.profiler.budget import Budget

RECORD = "What to record"
CHOOSE = "What to choose"
WORK = Path("dit-sparse-profile")


def profile(
    context: typer.Context,
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Calibration prompts.  \\[default: two of tiny-wan's own]")
    ] = None,
    prompt_file: Annotated[
        Path | None, Option(help="Prompts, one a line, instead.", rich_help_panel=RECORD)
    ] = None,
    model: Annotated[
        str | None, Option(help="Local folder or hub id.  \\[default: tiny-wan]", rich_help_panel=RECORD)
    ] = None,
    component: Annotated[
        str | None,
        Option(help="transformer or transformer_2.  \\[default: transformer]", rich_help_panel=RECORD),
    ] = None,
    negative_prompt: Annotated[str | None, Option(rich_help_panel=RECORD)] = None,
    height: Annotated[int | None, Option(help="Pixels.", rich_help_panel=RECORD)] = None,
    width: Annotated[int | None, Option(help="Pixels.", rich_help_panel=RECORD)] = None,
    num_frames: Annotated[int | None, Option(rich_help_panel=RECORD)] = None,
    steps: Annotated[int | None, Option(help="Denoising steps.", rich_help_panel=RECORD)] = None,
    guidance: Annotated[float | None, Option(help="Guidance scale.", rich_help_panel=RECORD)] = None,
    seeds: Annotated[
        list[int] | None,
        Option(
            "--seed",
            min=0,
            help="Of the start noise; once (prompt i has SEED + i) or once per prompt.  \\[default: 0]",
            rich_help_panel=RECORD,
        ),
    ] = None,
    groups: Annotated[
        str | None,
        Option(
            help='Step groups: a number, or first steps "5,9,15".  \\[default: 4]', rich_help_panel=RECORD
        ),
    ] = None,
    dense_steps: Annotated[
        str | None,
        Option(help="First steps left dense: count or fraction.  \\[default: 0.2]", rich_help_panel=RECORD),
    ] = None,
    observe: Annotated[
        int | None, Option(min=1, help="Steps observed per group.  \\[default: 2]", rich_help_panel=RECORD)
    ] = None,
    recipe: Annotated[
        str, Option(help='How to choose; "list" shows them all.', rich_help_panel=CHOOSE)
    ] = "balanced",
    density: Annotated[
        float | None, Option(help="Budget: fraction of block pairs computed.", rich_help_panel=CHOOSE)
    ] = None,
    speedup: Annotated[
        float | None, Option(help="Budget: factor on dense attention.", rich_help_panel=CHOOSE)
    ] = None,
    ms: Annotated[
        float | None, Option(help="Budget: attention of a sparse step, ms.", rich_help_panel=CHOOSE)
    ] = None,
    output_error: Annotated[
        float | None,
        Option(help="Budget: relative error of the transformer's output.", rich_help_panel=CHOOSE),
    ] = None,
    kinds: Annotated[
        list[str] | None,
        Option("--kind", help="Only these kinds of heads; repeatable.", rich_help_panel=CHOOSE),
    ] = None,
    low_bit: Annotated[
        bool, Option("--low-bit", help="Layers may take lower precisions.", rich_help_panel=CHOOSE)
    ] = False,
    cost_table: Annotated[
        Path | None, Option(help="Measured times, for speed-ups and budgets of time.", rich_help_panel=CHOOSE)
    ] = None,
    measure_cost: Annotated[
        bool, Option("--measure-cost", help="Time the kernels on this device first.", rich_help_panel=CHOOSE)
    ] = False,
    work: Annotated[Path, Option(help="Folder of the recording; a second run goes on or reuses it.")] = WORK,
    output: Annotated[
        Path | None, Option(help="Pattern file.  \\[default: profile.safetensors in --work]")
    ] = None,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Record dense runs, choose what every head does within a budget, and write a pattern file."""
    from rich.console import Console

    from dit_sparse.adapters.loading import quiet
    from dit_sparse.cli import profile_run
    from dit_sparse.cli.profile_tables import print_profile, recipes_table
    from dit_sparse.cli.progress import RecordProgress
    from dit_sparse.cli.workload import read_prompts
    from dit_sparse.patterns import Profile, save_profile
    from dit_sparse.presets import PATTERN_SUFFIX
    from dit_sparse.profiler import make_profile, recipe_named

    quiet()
    console = Console()
    if recipe == "list":
        console.print(recipes_table())
        return
    if prompts and prompt_file is not None:
        raise ValueError("give prompts as arguments or by --prompt-file, not both")
    asked: dict[str, Any] = {
        "prompts": read_prompts(prompt_file, 0) if prompt_file is not None else prompts,
        **{name: context.params[name] for name in profile_run.GENERATION},
        "seeds": list(seeds or ()),
        **{name: context.params[name] for name in ("groups", "dense_steps", "observe", "component")},
    }
    asked = {name: value for name, value in asked.items() if value not in (None, [], ())}
    # What can be wrong is found out before minutes are spent.
    budget = parse_budget(density=density, speedup=speedup, ms=ms, output_error=output_error)
    limit = recipe_named(recipe).budget if budget is None else budget
    if limit is not None and limit.timed and cost_table is None and not measure_cost:
        raise ValueError(f"--{limit.name} needs measured times: give --cost-table FILE or --measure-cost")
    path = output or work / "profile.safetensors"
    if path.suffix != PATTERN_SUFFIX:
        raise ValueError(f"--output {path} must end in {PATTERN_SUFFIX}")
    asked = profile_run.agreed(work, asked)
    command = shlex.join(["dit-sparse", *context.obj])
    try:
        with RecordProgress(console) as progress:
            recording, reused = profile_run.recorded(work, asked, progress)
    except KeyboardInterrupt:
        typer.echo(f"finished prompts are kept in {work}: the same command goes on", err=True)
        raise
    plan = profile_run.Plan.of(asked)
    used = plan.options[0].device
    cost = profile_run.cost_table(work, recording, used, cost_table, measure_cost, command)
    header, table = make_profile(
        recording,
        budget,
        recipe,
        command,
        device=profile_run.device_of(used),
        kinds=kinds or None,
        cost=cost,
        low_bit=low_bit,
    )
    save_profile(path, header, table)
    where = "found in" if reused else "kept in"
    console.print(f"recording of {recording.seconds:.0f} s {where} {work}", highlight=False, soft_wrap=True)
    console.print()
    print_profile(console, Profile(header, table, path))
    console.print()
    print(path)
    print(next_command(path, plan.options[0].model, asked))


def parse_budget(**given: float | None) -> Budget | None:
    """The one budget that was given; None where none was: the recipe has its own.

    Raises:
        ValueError: for more than one, or a value out of range.
    """
    from dit_sparse.profiler.budget import Budget

    named = {name: value for name, value in given.items() if value is not None}
    if len(named) > 1:
        options = ", ".join("--" + name.replace("_", "-") for name in named)
        raise ValueError(f"give one budget, got {options}")
    return Budget(**named) if named else None


def next_command(path: Path, model: str, asked: dict[str, Any]) -> str:
    """What to run with the pattern file."""
    words = ["dit-sparse", "generate", "PROMPT", "--profile", str(path), "--compare"]
    for name in ("model", "height", "width", "num_frames", "steps", "guidance", "dtype", "device"):
        if name in asked:
            words += ["--" + name.replace("_", "-"), str(asked[name])]
    return shlex.join(words)
