"""What ``profile`` does, without printing: what to record, recording it or finding it recorded, costs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_sparse.cli.options import GenerateOptions, parse_scalar, resolve_options
from dit_sparse.embedded import CALIBRATION_PROMPTS, DEFAULTS, NAME

if TYPE_CHECKING:
    from dit_sparse.profiler.cost_table import CostTable
    from dit_sparse.profiler.record_prompt import Progress
    from dit_sparse.profiler.record_settings import StepGroup
    from dit_sparse.profiler.recording import Recording

ASKED, RECORDING, COST = "asked.json", "recording.safetensors", "cost-table.json"
"""Files of the work folder, beside the unfinished recording: the options, what was recorded, times."""
DEFAULT = {"groups": "4", "observe": 2, "component": "transformer"}
DENSE_STEPS = "0.2"
GENERATION = (
    "negative_prompt",
    "model",
    "height",
    "width",
    "num_frames",
    "steps",
    "guidance",
    "dtype",
    "device",
)
OPTIONS = {"prompts": "prompts", "seeds": "--seed"}


@dataclass(frozen=True)
class Plan:
    """The dense runs to record.

    Args:
        options: of the pipeline and its calls, one per prompt.
        seeds: of the start noise, one per prompt.
        groups: [first, last) of every step group.
        observe: steps observed per group.
        component: which transformer.
    """

    options: tuple[GenerateOptions, ...]
    seeds: tuple[int, ...]
    groups: tuple[StepGroup, ...]
    observe: int
    component: str

    @classmethod
    def of(cls, asked: Mapping[str, Any]) -> Plan:
        """From options by name; what is missing is as documented.

        Raises:
            ValueError: naming the first option that is wrong.
        """
        given = {**DEFAULT, **asked}
        prompts = given.get("prompts")
        if not prompts and given.get("model", NAME) != NAME:
            raise ValueError(
                "calibration prompts are missing: give some as arguments or by --prompt-file; only tiny-wan "
                "has some of its own"
            )
        shared = {name: given[name] for name in GENERATION if name in given}
        options = tuple(
            resolve_options({**shared, "prompt": text}) for text in prompts or CALIBRATION_PROMPTS
        )
        steps = options[0].steps or (DEFAULTS["steps"] if options[0].model == NAME else None)
        if steps is None:
            raise ValueError(f"{options[0].model} has no default number of steps here: give --steps")
        groups = step_groups(given["groups"], int(steps), given.get("dense_steps"))
        return cls(
            options, _seeds(given.get("seeds"), len(options)), groups, given["observe"], given["component"]
        )


def step_groups(groups: str, steps: int, dense_steps: str | None) -> tuple[StepGroup, ...]:
    """A number of even groups after the dense guard, or their first steps: "5,9,15".

    Raises:
        ValueError: for what is neither, or does not fit the steps.
    """
    from dit_sparse.profiler.record_settings import even_groups

    starts = parse_scalar(groups)
    if isinstance(starts, list):
        if dense_steps is not None:
            raise ValueError(f"--groups {groups} says where the dense steps end: leave --dense-steps out")
        edges = [*starts, steps]
        if not all(isinstance(edge, int) for edge in edges) or edges[0] < 0 or sorted(set(edges)) != edges:
            raise ValueError(f"--groups: first steps must ascend from 0 to at most {steps - 1}, got {groups}")
        return tuple(pairwise(edges))
    guard = parse_scalar(DENSE_STEPS if dense_steps is None else dense_steps)
    if isinstance(guard, float) and 0 <= guard < 1:
        guard = round(guard * steps)
    for name, value in (("--groups", starts), ("--dense-steps", guard)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(
                f"{name} is {value!r}, must be a count{'' if name == '--groups' else ' or a fraction'}"
            )
    try:
        return even_groups(steps, starts, guard)
    except ValueError as error:
        raise ValueError(f"--groups: {error}") from error


def _seeds(given: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """One per prompt: as given, or counted up from the only one."""
    if given is None or len(given) == 1:
        first = 0 if given is None else given[0]
        return tuple(range(first, first + count))
    if len(given) != count:
        raise ValueError(
            f"--seed is given {len(given)} times for {count} prompts: give it once, or once per prompt"
        )
    return tuple(given)


def agreed(work: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the recording in ``work``, or those given where there is none yet.

    Raises:
        ValueError: where an option was given that the recording was not made with.
    """
    path = work / ASKED
    if not path.is_file():
        return dict(given)
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}): give another --work, or delete it") from error
    both = {**before, **given}
    if Plan.of(both) != Plan.of(before):
        other = [
            OPTIONS.get(name, "--" + name.replace("_", "-"))
            for name in given
            if _changes(before, given, name)
        ]
        raise ValueError(
            f"{work} holds a recording with other {', '.join(other) or 'options'}: give another --work, or "
            "leave them out to choose from that recording"
        )
    return before


def _changes(before: Mapping[str, Any], given: Mapping[str, Any], name: str) -> bool:
    try:
        return Plan.of({**before, name: given[name]}) != Plan.of(before)
    except ValueError:
        return True


def recorded(work: Path, asked: Mapping[str, Any], progress: Progress) -> tuple[Recording, bool]:
    """The finished recording in ``work``, or a new one; and whether it was there already.

    Args:
        work: folder; made where it is missing.
        asked: options as :func:`agreed` returns them.
        progress: told how far it is.

    Raises:
        ValueError: for wrong options, or a folder of another recording.
    """
    from dit_sparse.profiler import load_recording, save_recording

    path, plan = work / RECORDING, Plan.of(asked)
    if path.is_file():
        return load_recording(path), True
    from dit_sparse.cli import session
    from dit_sparse.patterns.atomic import atomic_path
    from dit_sparse.profiler import RecordSettings, default_templates, record

    again = plan.observe > 1 and all(last - first > 1 for first, last in plan.groups)
    settings = RecordSettings(plan.groups, plan.observe, default_templates(observed=again))
    pipe = session.load(plan.options[0])
    calls = [session.pipeline_call(pipe, options) for options in plan.options]
    with atomic_path(work / ASKED) as temporary:
        temporary.write_text(json.dumps(dict(asked), indent=1) + "\n", encoding="utf-8")
    found = record(
        pipe,
        calls,
        seeds=plan.seeds,
        work_dir=work,
        settings=settings,
        name=plan.options[0].model,
        component=plan.component,
        progress=progress,
    )
    save_recording(path, found)
    return found, False


def device_of(asked: str) -> str:
    """What a profile says of the device that its recording was made on."""
    import torch

    from dit_sparse.report.environment import describe_device

    return describe_device(torch.device(_device(asked))).name


def _device(asked: str) -> str:
    import torch

    return asked if asked != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def cost_table(
    work: Path, recording: Recording, device: str, file: Path | None, measure: bool, command: str
) -> CostTable | None:
    """Times to choose by: of a file, or measured here and kept in ``work``; None where neither is asked for.

    Raises:
        ValueError: if both are asked for, or the file is no cost table.
    """
    if file is not None and measure:
        raise ValueError("--cost-table has the times already: leave --measure-cost out")
    if file is not None:
        from dit_sparse.profiler import CostTable

        try:
            return CostTable.load(file)
        except OSError as error:
            raise ValueError(f"--cost-table {file}: {error.strerror}") from error
    if not measure:
        return None
    import torch

    from dit_sparse.patterns.checks import layout_of
    from dit_sparse.profiler import measure_cost

    model, grid = recording.model, recording.grid
    at = torch.device(_device(device))
    cuda = at.type == "cuda"
    table = measure_cost(
        at,
        layout_of(grid),
        model.heads,
        model.head_dim,
        command=command,
        dtype=torch.bfloat16 if cuda else torch.float32,
        block_size=grid.block_size,
    )
    table.save(work / COST)
    return table
