"""Methods: one paper, one file. Importing this room registers them all.

To add one, write a file with a frozen dataclass that derives from
:class:`~dit_sparse.methods.base.MethodConfig`, decorate it with ``register_method``, and import it here;
tests, CLI and documentation read the registry.
"""

from dit_sparse.methods.base import (
    MethodConfig,
    ModelInfo,
    describe,
    list_methods,
    make_method,
    method_class,
    register_method,
)
from dit_sparse.methods.draft import Draft
from dit_sparse.methods.svg2 import SVG2

__all__ = [
    "SVG2",
    "Draft",
    "MethodConfig",
    "ModelInfo",
    "describe",
    "list_methods",
    "make_method",
    "method_class",
    "register_method",
]
