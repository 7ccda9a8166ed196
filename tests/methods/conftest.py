"""Profiles are made by the helpers of the tests of pattern files."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "patterns"))
