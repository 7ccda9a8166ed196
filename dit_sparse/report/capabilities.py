"""What a pipeline takes and which networks denoise in it, read from the object without knowing its class."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Capabilities:
    """What a pipeline's ``__call__`` takes.

    Args:
        accepts: names of all its parameters.
        required: names of those without a default.
    """

    accepts: frozenset[str]
    required: frozenset[str]

    @property
    def step_callback(self) -> bool:
        """Whether the pipeline calls back after every denoising step."""
        return "callback_on_step_end" in self.accepts


def capabilities(pipe: Any) -> Capabilities:
    """Read the parameters of ``pipe.__call__``."""
    parameters = inspect.signature(pipe.__call__).parameters
    required = frozenset(
        name for name, p in parameters.items() if p.default is p.empty and p.kind != p.VAR_KEYWORD
    )
    return Capabilities(frozenset(parameters), required)


def denoisers(pipe: Any) -> dict[str, torch.nn.Module]:
    """The denoising networks by component name: "transformer", and "transformer_2" of two-expert models."""
    found = {name: getattr(pipe, name, None) for name in ("transformer", "transformer_2")}
    return {name: module for name, module in found.items() if isinstance(module, torch.nn.Module)}
