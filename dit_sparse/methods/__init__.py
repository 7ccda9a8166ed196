"""Methods: one paper, one file. Importing this room registers them all.

To add one, write a file with a frozen dataclass that derives from
:class:`~dit_sparse.methods.base.MethodConfig`, decorate it with ``register_method``, and import it here;
tests, CLI and documentation read the registry.
"""

from dit_sparse.methods.adaspa import AdaSpa
from dit_sparse.methods.base import (
    ComposedConfig,
    MethodConfig,
    ModelInfo,
    describe,
    list_methods,
    make_method,
    method_class,
    register_method,
)
from dit_sparse.methods.clear import CLEAR
from dit_sparse.methods.draft import Draft
from dit_sparse.methods.gna import GNA
from dit_sparse.methods.minference import MInference
from dit_sparse.methods.mosaic import Mosaic
from dit_sparse.methods.oracle import OracleMethod
from dit_sparse.methods.paro import PARO
from dit_sparse.methods.radial import Radial
from dit_sparse.methods.rettention import Rettention
from dit_sparse.methods.sale import SALE
from dit_sparse.methods.sparge import Sparge
from dit_sparse.methods.sparse_vdit import SparseVDiT
from dit_sparse.methods.sta import STA
from dit_sparse.methods.svg1 import SVG1
from dit_sparse.methods.svg2 import SVG2
from dit_sparse.methods.svg_ear import SVGEAR
from dit_sparse.methods.vmoba import VMoBA

__all__ = [
    "CLEAR",
    "GNA",
    "PARO",
    "SALE",
    "STA",
    "SVG1",
    "SVG2",
    "SVGEAR",
    "ComposedConfig",
    "AdaSpa",
    "Draft",
    "MInference",
    "MethodConfig",
    "ModelInfo",
    "Mosaic",
    "OracleMethod",
    "Radial",
    "Rettention",
    "Sparge",
    "SparseVDiT",
    "VMoBA",
    "describe",
    "list_methods",
    "make_method",
    "method_class",
    "register_method",
]
