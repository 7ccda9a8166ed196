"""Whether a profile serves a model and a run: all differences in one message, with what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dit_sparse.layout import TokenLayout
from dit_sparse.patterns.checks import layout_of
from dit_sparse.patterns.errors import ProfileError, quoted
from dit_sparse.patterns.header import ProfileHeader

_ANOTHER_MODEL = "make a profile of this model with `dit-sparse profile`"
_RESAMPLE = "pass allow_resample=True (--allow-resample) to carry the profile over, or make one for this run"


@dataclass(frozen=True)
class _Difference:
    name: str
    expected: Any
    received: Any
    note: str = ""

    def __str__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        return f"{self.name}: received {quoted(self.received)}, expected {quoted(self.expected)}{note}"


def check_model(
    header: ProfileHeader,
    *,
    transformer: str,
    config_sha256: str,
    layers: int,
    heads: int,
    head_dim: int,
    component: str | None = None,
) -> None:
    """Refuse a profile that was made from another model. Nothing can carry it over.

    Args:
        header: of the profile.
        transformer: class name of the transformer at hand.
        config_sha256: of its public config, as the profiler takes it.
        layers, heads, head_dim: its sizes.
        component: its name in the pipeline; None where there is no pipeline, it is not compared then.

    Raises:
        ProfileError: that lists all differences.
    """
    model = header.model
    found = _differences(
        ("transformer", model.transformer, transformer),
        ("component", model.component, model.component if component is None else component),
        ("layers", model.layers, layers),
        ("heads", model.heads, heads),
        ("head_dim", model.head_dim, head_dim),
    )
    if model.config_sha256 != config_sha256:
        note = "" if found else "the sizes agree: it is the config of another checkpoint"
        found.append(_Difference("config_sha256", model.config_sha256, config_sha256, note))
    if found:
        _refuse(
            f"the profile {header.recipe!r} of {model.name!r} is for another model", found, _ANOTHER_MODEL
        )


def check_run(
    header: ProfileHeader,
    *,
    layout: TokenLayout,
    block_size: tuple[int, int],
    scheduler: str | None,
    num_steps: int | None,
    allow_resample: bool = False,
) -> None:
    """Refuse a profile that was made for another grid, block size, scheduler or number of steps.

    Args:
        header: of the profile.
        layout, block_size: of the attention calls at hand.
        scheduler: class name; None where there is none to ask (a bare transformer), it is not compared then.
        num_steps: of this generation; None where the loop does not tell, it is not compared then.
        allow_resample: let all of these differ, for :func:`~dit_sparse.patterns.resample` to carry over.

    Raises:
        ProfileError: that lists all differences.
    """
    if allow_resample:
        return
    made, schedule = layout_of(header.grid), header.schedule
    found = _differences(
        ("grid (T, H, W)", made.grid, layout.grid),
        ("text_tokens", made.text_tokens, layout.text_tokens),
        ("text_position", made.text_position, layout.text_position),
        ("block_size", header.grid.block_size, tuple(block_size)),
        ("scheduler", schedule.scheduler, schedule.scheduler if scheduler is None else scheduler),
        ("num_steps", schedule.num_steps, schedule.num_steps if num_steps is None else num_steps),
    )
    if found:
        _refuse(
            f"the profile {header.recipe!r} of {header.model.name!r} is for another run", found, _RESAMPLE
        )


def _differences(*compared: tuple[str, Any, Any]) -> list[_Difference]:
    return [_Difference(*entry) for entry in compared if entry[1] != entry[2]]


def _refuse(what: str, found: list[_Difference], remedy: str) -> None:
    raise ProfileError(f"{what}: {'; '.join(map(str, found))}. {remedy[0].upper()}{remedy[1:]}")
