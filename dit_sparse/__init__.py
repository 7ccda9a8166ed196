"""dit_sparse: training-free sparse attention for the diffusion transformers of diffusers.

>>> import dit_sparse
>>> "svg2" in dit_sparse.list_methods()
True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dit_sparse import _install

if TYPE_CHECKING:
    from dit_sparse.adapters import Adapter, register_adapter, supported_models
    from dit_sparse.api import disable_sparse_attention, enable_sparse_attention, sparse_attention
    from dit_sparse.forecasting import forecast
    from dit_sparse.handle import Handle
    from dit_sparse.methods import SVG2, Draft, describe, list_methods
    from dit_sparse.stats import Stats
    from dit_sparse.work import Rates

__version__ = "0.1.0"

# Resolved on first use, so that `import dit_sparse` and `dit-sparse --help` do not wait for torch.
_HOMES = {
    "Adapter": "adapters",
    "Draft": "methods",
    "Handle": "handle",
    "Rates": "work",
    "SVG2": "methods",
    "Stats": "stats",
    "describe": "methods",
    "disable_sparse_attention": "api",
    "enable_sparse_attention": "api",
    "forecast": "forecasting",
    "list_methods": "methods",
    "register_adapter": "adapters",
    "sparse_attention": "api",
    "supported_models": "adapters",
}
_ROOMS = ("adapters", "api", "embedded", "kernels", "methods", "orderings", "selectors")

__all__ = [
    "SVG2",
    "Adapter",
    "Draft",
    "Handle",
    "Rates",
    "Stats",
    "describe",
    "disable_sparse_attention",
    "enable_sparse_attention",
    "forecast",
    "list_methods",
    "register_adapter",
    "sparse_attention",
    "supported_models",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"dit_sparse.{_HOMES[name]}"), name)
    if name in _ROOMS:
        return importlib.import_module(f"dit_sparse.{name}")
    raise AttributeError(f"module 'dit_sparse' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})


_install.install()
