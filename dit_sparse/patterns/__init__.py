"""Pattern files: what every head of a model does, chosen offline, loaded by the hooks."""

from dit_sparse.patterns.compatible import check_model, check_run
from dit_sparse.patterns.errors import ProfileError
from dit_sparse.patterns.file import load_profile, read_header, save_profile
from dit_sparse.patterns.fingerprint import config_sha256, model_facts
from dit_sparse.patterns.header import (
    FORMAT_VERSION,
    Calibration,
    Figures,
    GridFacts,
    ModelFacts,
    ProfileHeader,
    ScheduleFacts,
)
from dit_sparse.patterns.profile import Profile
from dit_sparse.patterns.resample import resample
from dit_sparse.patterns.table import (
    DENSE,
    DYNAMIC,
    KINDS,
    MASK,
    OBSERVED,
    RADIAL,
    SKIP,
    WINDOW,
    PatternTable,
)

__all__ = [
    "DENSE",
    "DYNAMIC",
    "FORMAT_VERSION",
    "KINDS",
    "MASK",
    "OBSERVED",
    "RADIAL",
    "SKIP",
    "WINDOW",
    "Calibration",
    "Figures",
    "GridFacts",
    "ModelFacts",
    "PatternTable",
    "Profile",
    "ProfileError",
    "ProfileHeader",
    "ScheduleFacts",
    "check_model",
    "check_run",
    "config_sha256",
    "load_profile",
    "model_facts",
    "read_header",
    "resample",
    "save_profile",
]
