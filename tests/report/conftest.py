"""A written comparison and a browser, shared by the tests of the folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Page, chromium, find_chromium
from report_samples import make_context, make_pair

from dit_sparse.report.compare import write_comparison
from dit_sparse.report.schema import Report


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A folder as ``write_comparison`` leaves it."""
    folder = tmp_path_factory.mktemp("comparison")
    return folder, write_comparison(folder, make_pair(), make_context(), fps=8)


@pytest.fixture(scope="module")
def connection() -> Iterator[Any]:
    """The system's Chromium, started once for every file: its event loop must not outlive these tests."""
    pytest.importorskip("playwright.sync_api", reason="playwright is missing: the page is tested with it")
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium or Chrome found: the page is tested where one is installed")
    with chromium(path) as started:
        yield started


@pytest.fixture
def page(connection: Any) -> Iterator[Page]:
    """A fresh tab, 1280 x 900, light, without motion."""
    opened = Page(connection)
    opened.media()
    yield opened
    opened.close()
