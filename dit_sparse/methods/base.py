"""The contract of a method: a frozen configuration with the paper's defaults, and ``build`` that composes the
axes."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from dit_sparse.corrections import Correction, correction_named
from dit_sparse.engine import SparseMethod
from dit_sparse.orderings import Ordering, Raster
from dit_sparse.schedule import DenseLayers, DenseSteps, Schedule
from dit_sparse.selectors import Selector


@dataclass(frozen=True)
class ModelInfo:
    """What a method may adapt its defaults to.

    Args:
        family: model family, e.g. "wan"; "" for a model described by its user.
        num_layers: self-attention layers of the transformer.
        head_dim: head size.
        component: name of the transformer in its pipeline.
    """

    family: str
    num_layers: int
    head_dim: int
    component: str = "transformer"


@dataclass(frozen=True)
class MethodConfig:
    """Base of all method configurations: fields are hyper-parameters, immutable, validated when built."""

    name: ClassVar[str]
    citation: ClassVar[str]

    def build(self, model: ModelInfo) -> SparseMethod:
        """Compose the axes for this model."""
        raise NotImplementedError


@dataclass(frozen=True)
class ComposedConfig(MethodConfig):
    """Base of the methods that compose axes: the fields that all of them share.

    A method overrides a default by declaring the field again.
    """

    density: float | None = 0.25
    correction: str = "none"
    dense_steps: DenseSteps | None = 0.2
    dense_layers: DenseLayers | float | None = ()
    refresh_interval: int = 1
    min_tokens: int = 1024
    block_size: int | str = "auto"
    precision: str = "native"

    @property
    def target_density(self) -> float:
        """``density`` for the methods that have no rule of their own.

        Raises:
            ValueError: if it is None.
        """
        if self.density is None:
            raise ValueError(f"method {self.name!r} needs a density in (0, 1], got None")
        return self.density

    def compose(
        self,
        selector: Selector,
        ordering: Ordering | None = None,
        *,
        correction: Correction | None = None,
        dense_steps: DenseSteps | None = None,
        dense_layers: DenseLayers | float = (),
    ) -> SparseMethod:
        """The shared fields as a composition.

        Args:
            selector, ordering: the method's own axes; raster order when None.
            correction: the method's own; the one named by the ``correction`` field when None. At density 1
                nothing is skipped, and none is needed.
            dense_steps: resolved guard where the ``dense_steps`` field is None.
            dense_layers: the same for the ``dense_layers`` field.
        """
        guard = self.dense_steps if self.dense_steps is not None else dense_steps
        layers = self.dense_layers if self.dense_layers is not None else dense_layers
        chosen = correction or correction_named(self.correction)
        return SparseMethod(
            name=self.name,
            selector=selector,
            ordering=ordering or Raster(),
            correction=None if self.density == 1.0 else chosen,
            schedule=Schedule(0 if guard is None else guard, layers, self.refresh_interval, self.min_tokens),
            block_size=self.block_size,
            precision=self.precision,
        )


SHARED_FIELDS = {
    "density": "fraction of blocks to compute, in (0, 1]; None: by the method's own rule, if it has one",
    "correction": 'how skipped blocks are made good: "none"; "pooled": they enter through their means; '
    '"residual": so too, and what was still lacking when dense attention was last observed is added, as 8 '
    'directions per head; "reshape": rows are scaled by their share of the softmax when it was last '
    'known; "reshape_residual": and what they lacked then is added, up to 512 MiB per layer and branch',
    "dense_steps": "first steps left dense: a count, a fraction, or a list; None takes the paper's guard",
    "dense_layers": 'layers left dense: indices, "0-1,47", or a fraction of the first layers; None takes the '
    "paper's",
    "refresh_interval": "steps that share a plan",
    "min_tokens": "shorter sequences stay dense",
    "block_size": 'tokens per block, or "auto" by sequence length',
    "precision": 'arithmetic: "native" (that of the inputs), "int8", "int4", "int8_fp8" or "fp8"',
}
"""What :func:`describe` says of them."""


Config = TypeVar("Config", bound=type[MethodConfig])
_METHODS: dict[str, type[MethodConfig]] = {}


def register_method(config: Config) -> Config:
    """Class decorator: make a method known under its ``name``.

    Raises:
        ValueError: if the name is taken.
    """
    if config.name in _METHODS:
        raise ValueError(f"method {config.name!r} is registered already")
    _METHODS[config.name] = config
    return config


def list_methods() -> list[str]:
    """Names of all methods, sorted.

    >>> "svg2" in list_methods()
    True
    """
    return sorted(_METHODS)


def method_class(name: str) -> type[MethodConfig]:
    """The configuration class of a method.

    Raises:
        ValueError: if no method has this name; the message lists those that exist.
    """
    try:
        return _METHODS[name]
    except (KeyError, TypeError):
        raise ValueError(f"unknown method {name!r}: use one of {', '.join(list_methods())}") from None


def make_method(method: str | MethodConfig, **fields: Any) -> MethodConfig:
    """A method configuration from a name and its fields, or a given one with some fields replaced.

    Raises:
        ValueError: on an unknown method or field; the message lists the fields.
    """
    cls = method_class(method) if isinstance(method, str) else type(method)
    if not issubclass(cls, MethodConfig):
        raise ValueError(f"method must be a name or a method configuration, got {method!r}")
    known = [field.name for field in dataclasses.fields(cls)]
    for field in fields:
        if field not in known:
            raise ValueError(f"method {cls.name!r} has no field {field!r}: its fields are {', '.join(known)}")
    return cls(**fields) if isinstance(method, str) else dataclasses.replace(method, **fields)


def describe(name: str) -> str:
    """What a method does, its source, and its fields with their defaults.

    >>> print(describe("draft").splitlines()[0])
    draft: Draft-Attention, low-resolution guidance.
    """
    cls = method_class(name)
    lines = [f"{name}: {inspect.getdoc(cls) or ''}", "", f"Source: {cls.citation}", "Fields:"]
    for field in dataclasses.fields(cls):
        meaning = SHARED_FIELDS.get(field.name)
        lines.append(f"  {field.name} = {field.default!r}" + (f": {meaning}" if meaning else ""))
    return "\n".join(lines)
