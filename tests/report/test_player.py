"""The player's file: every panel of every frame in its place, exact in a sheet, close in a video."""

from __future__ import annotations

import av
import numpy as np
import pytest
from PIL import Image
from report_samples import make_video

from dit_sparse.report import player
from dit_sparse.report.player import SHEET, STACK, geometry, write_player


def cut(
    picture: np.ndarray, name: str, shape: tuple[int, ...], panels: int, frame: int, panel: int
) -> np.ndarray:
    """One panel of one frame out of a sheet or a video's frame, by the geometry that the page gets."""
    count, height, width, _ = shape
    layout = geometry(name, count, height, width, panels)
    row, column = divmod(frame, layout.columns) if name == SHEET else (0, 0)
    x = column * layout.cell[0] + panel * layout.step[0]
    y = row * layout.cell[1] + panel * layout.step[1]
    return picture[y : y + height, x : x + width]


@pytest.mark.parametrize(("count", "height", "width"), [(1, 33, 47), (7, 33, 47), (5, 48, 32), (17, 20, 20)])
def test_a_sheet_holds_the_exact_pixels(tmp_path, count, height, width):
    panels = {name: make_video(count, height, width, seed) for seed, name in enumerate("abc")}
    assert write_player(tmp_path, panels, fps=8) == SHEET
    sheet = np.asarray(Image.open(tmp_path / SHEET).convert("RGB"))
    for i, video in enumerate(panels.values()):
        for frame in range(count):
            expected = (video[frame] * 255).round().astype(np.uint8)
            assert np.array_equal(cut(sheet, SHEET, video.shape, 3, frame, i), expected)


@pytest.mark.parametrize(("height", "width"), [(33, 47), (48, 33), (32, 64)])
def test_a_stack_holds_every_panel_at_even_places(tmp_path, monkeypatch, height, width):
    monkeypatch.setattr(player, "SHEET_LIMIT_PIXELS", 0)
    smooth = {name: make_video(6, height, width, seed) * 0.5 + 0.2 * seed for seed, name in enumerate("abc")}
    assert write_player(tmp_path, smooth, fps=8) == STACK
    with av.open(str(tmp_path / STACK)) as container:
        images = [f.to_ndarray(format="rgb24", src_colorspace="ITU709") for f in container.decode(video=0)]
    assert len(images) == 6
    for i, video in enumerate(smooth.values()):
        for frame, image in enumerate(images):
            seen = cut(image, STACK, video.shape, 3, frame, i)
            assert np.abs(seen / 255 - np.clip(video[frame], 0, 1)).mean() < 0.05  # panels lie 0.2 apart


def test_a_sheet_that_grows_too_large_becomes_a_stack(tmp_path, monkeypatch):
    monkeypatch.setattr(player, "EMBED_LIMIT_BYTES", 1000)
    assert write_player(tmp_path, {"a": make_video()}, fps=8) == STACK
    assert [path.name for path in tmp_path.iterdir()] == [STACK]


def test_sheets_stay_within_what_browsers_and_webp_take():
    for frames, height, width in (
        (129, 128, 128),
        (1, 2048, 2048),
        (400, 16, 512),
        (400, 512, 16),
        (5, 1, 9000),
    ):
        layout = geometry(SHEET, frames, height, width, 3)
        rows = -(-frames // layout.columns)
        assert max(rows * layout.cell[1], layout.columns * layout.cell[0]) <= 16383
