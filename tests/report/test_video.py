"""Encoded files, read back."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from report_samples import make_video

from dit_sparse.report import video
from dit_sparse.report.atomic import atomic_path, write_text
from dit_sparse.report.video import write_side_by_side, write_video


def read(path: Path) -> tuple[av.VideoStream, np.ndarray]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        facts = (stream.codec_context.name, stream.codec_context.pix_fmt, float(stream.average_rate))
        images = [
            frame.to_ndarray(format="rgb24", src_colorspace="ITU709") for frame in container.decode(stream)
        ]
    return facts, np.stack(images)


@pytest.mark.parametrize(("height", "width"), [(32, 48), (33, 47), (32, 47), (35, 48)])
def test_plays_in_browsers_at_any_size(tmp_path, height, width):
    frames = make_video(7, height, width)
    write_video(tmp_path / "a.mp4", frames, fps=8)
    facts, images = read(tmp_path / "a.mp4")
    assert facts == ("h264", "yuv420p", 8.0)
    assert images.shape == (7, height + height % 2, width + width % 2, 3)


def test_colours_and_frame_order_survive(tmp_path):
    colours = np.array([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9], [0.8, 0.8, 0.2]], np.float32)
    write_video(tmp_path / "a.mp4", np.broadcast_to(colours[:, None, None], (4, 32, 32, 3)), fps=8)
    _, images = read(tmp_path / "a.mp4")
    assert np.abs(images.mean(axis=(1, 2)) / 255 - colours).max() < 0.02


def test_index_stands_before_the_data(tmp_path):
    write_video(tmp_path / "a.mp4", make_video(), fps=8)
    content = (tmp_path / "a.mp4").read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")


def test_side_by_side_is_enlarged_and_labelled(tmp_path):
    frames = make_video(3, 64, 64)
    write_side_by_side(tmp_path / "a.mp4", {"dense": frames, "sparse": frames}, fps=8)
    _, images = read(tmp_path / "a.mp4")
    strip = images.shape[1] - 256
    assert images.shape[2] == 512
    assert strip > 0
    assert images[0, :strip].max() > 200
    assert images[0, :strip].min() < 40
    assert np.abs(images[0, strip:, :256].astype(int) - images[0, strip:, 256:]).mean() < 3


def test_side_by_side_refuses_different_shapes(tmp_path):
    with pytest.raises(ValueError, match="one shape"):
        write_side_by_side(tmp_path / "a.mp4", {"a": make_video(3), "b": make_video(4)}, fps=8)


@pytest.mark.parametrize(
    "frames", [np.zeros((0, 4, 4, 3)), np.zeros((2, 4, 4)), np.full((1, 4, 4, 3), np.nan)]
)
def test_not_a_video(tmp_path, frames):
    with pytest.raises(ValueError, match=r"frames must be|NaN"):
        write_video(tmp_path / "a.mp4", frames, fps=8)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_encoding_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def interrupt_at_the_third(image):
        calls.append(image)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return (image * 255).astype(np.uint8)

    monkeypatch.setattr(video, "to_uint8", interrupt_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "a.mp4", make_video(4, 32, 32), fps=8)
    assert list(tmp_path.iterdir()) == []


def test_atomic_path_keeps_the_old_file_until_the_new_one_is_whole(tmp_path):
    target = tmp_path / "deep" / "report.json"
    write_text(target, "old")

    def fail_half_way() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert target.read_text() == "old"
    assert [p.name for p in target.parent.iterdir()] == ["report.json"]
