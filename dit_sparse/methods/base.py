"""The contract of a method: a frozen configuration with the paper's defaults, and ``build`` that composes the
axes."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from dit_sparse.engine import SparseMethod


@dataclass(frozen=True)
class ModelInfo:
    """What a method may adapt its defaults to.

    Args:
        family: model family, e.g. "wan"; "" for a model described by its user.
        num_layers: self-attention layers of the transformer.
        head_dim: head size.
    """

    family: str
    num_layers: int
    head_dim: int


@dataclass(frozen=True)
class MethodConfig:
    """Base of all method configurations: fields are hyper-parameters, immutable, validated when built."""

    name: ClassVar[str]
    citation: ClassVar[str]

    def build(self, model: ModelInfo) -> SparseMethod:
        """Compose the axes for this model."""
        raise NotImplementedError


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
    lines += [f"  {field.name} = {field.default!r}" for field in dataclasses.fields(cls)]
    return "\n".join(lines)
