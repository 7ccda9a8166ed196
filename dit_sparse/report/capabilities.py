"""What a pipeline takes, read from the object without knowing its class."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any


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
