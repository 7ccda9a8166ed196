"""What ``compare`` and ``eval`` run on: prompts, methods with their fields, the facts that all runs share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

PROMPTS = 16
"""How many held-out prompts of the embedded model are taken unasked."""


def read_prompts(path: Path | None, count: int) -> list[str]:
    """The prompts of a file, or the first held-out ones of the embedded model.

    Raises:
        ValueError: if there are none, or fewer than ``count`` held-out ones.
    """
    if path is not None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ValueError(f"--prompt-file {path}: {error.strerror}") from error
        if not (texts := [line.strip() for line in lines if line.strip()]):
            raise ValueError(f"--prompt-file {path} holds no prompts")
        return texts
    from dit_sparse.embedded import heldout_prompts

    texts = heldout_prompts()
    if count > len(texts):
        raise ValueError(
            f"--prompts: the embedded model has {len(texts)} held-out prompts, got {count}: use --prompt-file"
        )
    return texts[:count]


def parse_method(spec: str) -> tuple[str, dict[str, Any]]:
    """``name`` or ``name:field=value,...`` as name and typed fields.

    Raises:
        ValueError: on a field without value or given twice.
    """
    from dit_sparse.cli.options import parse_settings

    name, _, settings = spec.partition(":")
    # A comma parts fields only where a field follows: dense_layers=0-1,47 is one.
    return name, parse_settings(re.split(r",(?=[\w-]+=)", settings) if settings else ())


def parse_specs(given: Iterable[str], option: str) -> list[tuple[str, str, dict[str, Any]]]:
    """What ``--method`` or ``--profile`` was given, as (spec, name, fields).

    Raises:
        ValueError: as :func:`parse_method` and :func:`distinct`, and for a method's field that is none.
    """
    from dit_sparse.cli.options import check_fields

    found = [(spec, *parse_method(spec)) for spec in distinct(given, option)]
    if option == "--method":
        for spec, _, fields in found:
            check_fields(fields, f"{option} {spec}")
    return found


def distinct(given: Iterable[str], option: str) -> list[str]:
    """``given`` as it is.

    Raises:
        ValueError: if a value is there twice; the message names the option.
    """
    found: list[str] = []
    for value in given:
        if value in found:
            raise ValueError(f"{option} gives {value} twice")
        found.append(value)
    return found


def shared_setup(pipe: Any, model: str, prompts: Sequence[str], call: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of :class:`dit_sparse.report.comparison_schema.RunSetup`."""
    from dit_sparse.report.environment import describe_device, describe_model

    return {
        "model": model,
        "config_sha256": describe_model(pipe, model).config_sha256,
        "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
        "device": describe_device(pipe.device),
        "prompts": list(prompts),
        "call": {key: value for key, value in call.items() if key != "prompt"},
    }
