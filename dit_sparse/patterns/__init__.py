"""Pattern files: what every head of a model does, chosen offline, loaded by the hooks."""

from dit_sparse.patterns.header import (
    FORMAT_VERSION,
    Calibration,
    Figures,
    GridFacts,
    ModelFacts,
    ProfileHeader,
    ScheduleFacts,
)
from dit_sparse.patterns.table import DENSE, DYNAMIC, KINDS, MASK, RADIAL, SKIP, WINDOW, PatternTable

__all__ = [
    "DENSE",
    "DYNAMIC",
    "FORMAT_VERSION",
    "KINDS",
    "MASK",
    "RADIAL",
    "SKIP",
    "WINDOW",
    "Calibration",
    "Figures",
    "GridFacts",
    "ModelFacts",
    "PatternTable",
    "ProfileHeader",
    "ScheduleFacts",
]
