"""``dit-sparse eval``: many prompts by several configurations, a report for each clip, one page over all."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from dit_sparse.cli.errors import EXIT_FAILURES
from dit_sparse.cli.shared_options import (
    GENERATION,
    SPARSE,
    Backend,
    Compile,
    DenseLayers,
    DenseSteps,
    Device,
    Dtype,
    Fps,
    Guidance,
    LpipsWeights,
    MinTokens,
    Model,
    NegativePrompt,
    NumFrames,
    Offload,
    Pixels,
    PromptFile,
    Prompts,
    Steps,
    Strict,
    Warmup,
)
from dit_sparse.cli.workload import PROMPTS, distinct, parse_specs, read_prompts, shared_setup

if TYPE_CHECKING:
    from dit_sparse.cli.options import GenerateOptions
    from dit_sparse.report.evaluation import Describe
    from dit_sparse.report.evaluation_folder import Configuration


def evaluate(
    context: typer.Context,
    methods: Annotated[
        list[str] | None,
        Option(
            "--method",
            help="Name, or name:field=value,...; repeatable.  \\[default: mosaic]",
            rich_help_panel=SPARSE,
        ),
    ] = None,
    profiles: Annotated[
        list[str] | None,
        Option("--profile", help="Shipped preset or file; repeatable.", rich_help_panel=SPARSE),
    ] = None,
    densities: Annotated[
        list[float] | None,
        Option(
            "--density",
            help="Every method and profile at each; repeatable.  \\[default: their own]",
            rich_help_panel=SPARSE,
        ),
    ] = None,
    dense_steps: DenseSteps = None,
    dense_layers: DenseLayers = None,
    min_tokens: MinTokens = None,
    backend: Backend = None,
    strict: Strict = None,
    baseline: Annotated[
        str | None,
        Option(help="Label of the configuration that the others are compared with.  \\[default: the first]"),
    ] = None,
    floor: Annotated[
        bool, Option("--floor/--no-floor", help="Also dense against dense, one more run a prompt.")
    ] = True,
    scores: Annotated[
        list[str] | None,
        Option("--score", help="Beside PSNR, SSIM, LPIPS and flicker: clip, vbench; repeatable."),
    ] = None,
    prompts: Prompts = PROMPTS,
    prompt_file: PromptFile = None,
    seed: Annotated[
        int, Option(min=0, help="Prompt i starts from the noise of SEED + i.", rich_help_panel=GENERATION)
    ] = 0,
    model: Model = None,
    negative_prompt: NegativePrompt = None,
    height: Pixels = None,
    width: Pixels = None,
    num_frames: NumFrames = None,
    steps: Steps = None,
    guidance: Guidance = None,
    fps: Fps = None,
    output: Annotated[Path, Option(help="Folder; clips that it holds already are not made again.")] = Path(
        "dit-sparse-eval"
    ),
    lpips_weights: LpipsWeights = None,
    dtype: Dtype = None,
    device: Device = None,
    offload: Offload = None,
    compile_: Compile = None,
    warmup: Warmup = None,
) -> None:
    """Many prompts by several configurations: clip reports, a page that compares; resumes after a crash."""
    from rich.console import Console

    from dit_sparse.adapters.loading import quiet
    from dit_sparse.cli.options import parse_layers, parse_scalar, resolve_options
    from dit_sparse.cli.progress import ClipsProgress
    from dit_sparse.report.comparison_table import check_baseline
    from dit_sparse.report.evaluation_workers import launched

    quiet()
    texts = read_prompts(prompt_file, prompts)
    workers = launched()
    options = resolve_options(
        {
            "prompt": texts[0],
            "negative_prompt": negative_prompt,
            "seed": seed,
            "model": model,
            "height": height,
            "width": width,
            "num_frames": num_frames,
            "steps": steps,
            "guidance": guidance,
            "fps": fps,
            "dense_steps": None if dense_steps is None else parse_scalar(dense_steps),
            "dense_layers": None if dense_layers is None else parse_layers(dense_layers),
            "min_tokens": min_tokens,
            "backend": backend,
            "strict": strict,
            "dtype": dtype,
            "device": workers.device(device or "auto"),
            "offload": offload,
            "compile": compile_,
            "warmup": warmup,
            "lpips_weights": lpips_weights,
        }
    )
    configurations = parse_configurations(options, methods, profiles, densities)
    check_baseline(baseline, [configuration.label for configuration in configurations])
    console = Console()
    with ClipsProgress(console, shown=workers.main) as progress:
        failures = run(
            options,
            texts,
            configurations,
            output,
            floor=floor,
            scores=scores or (),
            baseline=baseline or configurations[0].label,
            command=shlex.join(["dit-sparse", *context.obj]),
            workers=workers,
            follower=progress,
        )
    if not workers.main:
        return
    for name in ("index.html", "evaluation.json", "times.json"):
        print(output / name)
    if failures:
        typer.echo(
            f"{failures} of the clips failed: see index.html; the same command tries them again", err=True
        )
        raise typer.Exit(EXIT_FAILURES)


def parse_configurations(
    options: GenerateOptions,
    methods: Sequence[str] | None,
    profiles: Sequence[str] | None,
    densities: Sequence[float] | None,
) -> list[Configuration]:
    """Every method and every profile at every density; a method's own fields win over the shared ones.

    Raises:
        ValueError: on a field without value, or on what is given twice.
    """
    from dit_sparse.api import DEFAULT_METHOD
    from dit_sparse.report.evaluation_folder import Configuration

    shared = options.sparse_call()
    given = {"method": methods or ([] if profiles else [DEFAULT_METHOD]), "profile": profiles or ()}
    kinds: list[tuple[str, dict[str, Any]]] = [
        (spec, {kind: name, **fields})
        for kind, specs in given.items()
        for spec, name, fields in parse_specs(specs, f"--{kind}")
    ]
    if densities and (twice := [spec for spec, asked in kinds if "density" in asked]):
        raise ValueError(f"density is given twice: by --density and by {twice[0]}")
    asked_for = [float(density) for density in distinct(map(str, densities or ()), "--density")]
    return [
        Configuration(
            label if density is None else f"{label} at {density:g}",
            {**shared, **({} if density is None else {"density": density}), **asked},
        )
        for label, asked in kinds
        for density in (asked_for or (None,))
    ]


def run(
    options: GenerateOptions,
    prompts: Sequence[str],
    configurations: Sequence[Configuration],
    output: Path,
    *,
    floor: bool,
    scores: Sequence[str],
    baseline: str,
    command: str | None,
    workers: Any,
    follower: Any = None,
) -> int:
    """Make what is missing; the main process writes the page. Return how many clips failed."""
    from contextlib import nullcontext

    from dit_sparse.cli import session
    from dit_sparse.report.environment import describe_device
    from dit_sparse.report.evaluation import Evaluator
    from dit_sparse.report.evaluation_collect import collect
    from dit_sparse.report.evaluation_folder import EvaluationFolder, writing_in
    from dit_sparse.report.evaluation_page import write_pages
    from dit_sparse.report.evaluation_schema import EvaluationSetup
    from dit_sparse.report.scores import select_scores

    names = [score.name for score in select_scores(scores)]
    pipe = session.load(options)
    call = session.pipeline_call(pipe, options)
    shared = shared_setup(pipe, options.model, prompts, call)
    device = describe_device(pipe.device)
    # The number of threads differs between processes; it stands in times.json.
    shared["device"] = device.model_copy(update={"threads": None})
    setup = EvaluationSetup(
        **shared,
        seed=options.seed,
        fps=session.frames_per_second(pipe, options),
        floor=floor,
        scores=names,
    )
    folder = EvaluationFolder(output, setup, configurations)
    evaluator = Evaluator(
        pipe,
        folder,
        _describer(pipe, options, call, command),
        warmup=session.wants_warmup(pipe, options),
        lpips_weights=options.lpips_weights,
        follower=follower,
        workers=workers,
    )
    with writing_in(output) if workers.main else nullcontext():
        evaluator.run()
        if not workers.main:
            return 0
        evaluation, times = collect(folder, device=device, processes=workers.count, command=command)
        write_pages(folder, evaluation, times, baseline)
    return len(evaluation.failures)


def _describer(pipe: Any, options: GenerateOptions, call: Mapping[str, Any], command: str | None) -> Describe:
    from dit_sparse.cli import session
    from dit_sparse.report.environment import describe_model

    model = describe_model(pipe, options.model)

    def describe(prompt: str, seed: int, made_with: Mapping[str, Any]) -> Any:
        of_clip = options.model_copy(update={"prompt": prompt, "seed": seed})
        return session.describe(of_clip, call, model, made_with, command)

    return describe
