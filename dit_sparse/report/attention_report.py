"""From an inspection to a folder: pictures, one page, and last of all ``attention.json``."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import torch

from dit_sparse.report.atomic import atomic_path, write_text
from dit_sparse.report.attention_figures import figures, picture_count
from dit_sparse.report.attention_inspection import Inspection
from dit_sparse.report.attention_page import render
from dit_sparse.report.attention_points import uniform_pattern
from dit_sparse.report.attention_schema import Attention
from dit_sparse.report.compare import Context
from dit_sparse.report.environment import describe_device, package_versions
from dit_sparse.report.pair import Observer

JSON, PAGE, PICTURES = "attention.json", "attention.html", "pictures"


def write_inspection(
    output: Path,
    seen: Inspection,
    context: Context,
    device: torch.device,
    *,
    observer: Observer | None = None,
) -> Attention:
    """Write ``pictures/*.png``, ``attention.html`` and, last, ``attention.json`` into ``output``.

    Files of an earlier inspection are removed first: an ``attention.json`` belongs to its neighbours.

    Args:
        output: folder, made where it is missing.
        seen: from :func:`~dit_sparse.report.attention_inspection.inspect_attention`.
        context: as for ``write_comparison``; its ``config`` holds the method's fields, and the arguments of
            the pipeline under "generation".
        device: on which it ran.
        observer: told (name, picture, pictures) for a progress bar.

    Raises:
        MissingExtraError: when a package of the ``report`` extra is missing.
    """
    tell = observer or (lambda *_: None)
    _clear(output)
    names, count = [], picture_count(seen)
    tell("draw", 0, count)
    for number, (name, figure) in enumerate(figures(seen), start=1):
        with atomic_path(output / PICTURES / name) as path:
            figure.savefig(path, metadata={"Software": None})
        names.append(f"{PICTURES}/{name}")
        tell("draw", number, count)
    attention = build_attention(seen, context, device, names)
    write_text(output / PAGE, render(attention, seen))
    write_text(output / JSON, attention.model_dump_json(indent=1) + "\n")
    return attention


def build_attention(seen: Inspection, context: Context, device: torch.device, files: list[str]) -> Attention:
    """Assemble ``attention.json``; writes nothing."""
    layout, wanted = seen.layout, seen.wanted
    return Attention(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=context.command,
        prompt=context.prompt,
        negative_prompt=context.negative_prompt,
        seed=context.seed,
        model=context.model,
        method={key: value for key, value in context.config.items() if key != "generation"},
        generation=dict(context.config.get("generation", {})),
        grid=layout.grid,
        text_tokens=layout.text_tokens,
        text_position=layout.text_position,
        block_size=seen.block_size,
        reordered=any(maps.ordered is not None for maps in seen.heads),
        num_steps=seen.num_steps,
        steps=list(wanted.steps),
        layers=list(wanted.layers),
        heads=list(wanted.heads),
        points=seen.points,
        uniform=uniform_pattern(layout),
        figures=[maps.figures for maps in seen.heads],
        files=files,
        device=describe_device(device),
        versions=package_versions(),
    )


def _clear(output: Path) -> None:
    """Remove what an earlier inspection wrote, and nothing else."""
    for name in (JSON, PAGE):
        (output / name).unlink(missing_ok=True)
    for kind in ("maps", "point"):
        for path in (output / PICTURES).glob(f"{kind}*_step*_layer*.png"):
            path.unlink()
