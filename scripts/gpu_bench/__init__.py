"""The benchmarks behind ``scripts/gpu_check.py``: one idea per file, found by their place in this folder.

A new benchmark is a new file with a function ``(settings) -> rows`` under
:func:`gpu_bench.harness.benchmark`; nothing else has to name it.
"""

from __future__ import annotations

import importlib
import pkgutil


def discover() -> list[str]:
    """Import every module of this package, so that its benchmarks register; their names, sorted."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    for name in names:
        importlib.import_module(f"{__name__}.{name}")
    return names
