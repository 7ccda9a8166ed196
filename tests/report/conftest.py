"""A written comparison, shared by the tests of the folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_samples import make_context, make_pair

from dit_sparse.report.compare import write_comparison
from dit_sparse.report.schema import Report


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A folder as ``write_comparison`` leaves it."""
    folder = tmp_path_factory.mktemp("comparison")
    return folder, write_comparison(folder, make_pair(), make_context(), fps=8)
