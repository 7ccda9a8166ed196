"""Adds ``enable_sparse_attention`` and ``disable_sparse_attention`` to diffusers' pipelines, whenever
diffusers loads.

Importing diffusers takes seconds; importing dit_sparse must not. If diffusers is there already its base class
gets the methods now, otherwise right after its module has been executed. Light on imports on purpose.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import Any

_MODULE = "diffusers.pipelines.pipeline_utils"


def _enable(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Run this pipeline's self-attention sparsely; see :func:`dit_sparse.enable_sparse_attention`."""
    from dit_sparse.api import enable_sparse_attention

    return enable_sparse_attention(self, *args, **kwargs)


def _disable(self: Any) -> None:
    """Undo ``enable_sparse_attention``; see :func:`dit_sparse.disable_sparse_attention`."""
    from dit_sparse.api import disable_sparse_attention

    disable_sparse_attention(self)


def _add_methods(module: ModuleType) -> None:
    module.DiffusionPipeline.enable_sparse_attention = _enable  # type: ignore[attr-defined]
    module.DiffusionPipeline.disable_sparse_attention = _disable  # type: ignore[attr-defined]


class _AfterImport(importlib.abc.MetaPathFinder):
    """Lets one module load as usual and calls back once it has been executed."""

    def find_spec(
        self, fullname: str, path: Any, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _add_methods(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Add the methods now, or as soon as diffusers is imported."""
    if _MODULE in sys.modules:
        _add_methods(sys.modules[_MODULE])
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())
