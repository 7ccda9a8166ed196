"""Metrics against formulae written out independently in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from report_samples import make_video
from skimage.metrics import peak_signal_noise_ratio

from dit_sparse.report.measure import compare_frames
from dit_sparse.report.metrics import amplified_difference, psnr_per_frame, ssim_per_frame
from dit_sparse.report.temporal import flicker_per_frame


def ssim_by_hand(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004 on one channel: 11 x 11 Gaussian window, interior windows only."""
    axis = np.arange(-5, 6)
    window = np.exp(-(axis**2) / (2 * 1.5**2))
    window = np.outer(window, window)
    window /= window.sum()

    def blur(image: np.ndarray) -> np.ndarray:
        return (np.lib.stride_tricks.sliding_window_view(image, (11, 11)) * window).sum(axis=(-1, -2))

    a, b = a.astype(np.float64), b.astype(np.float64)
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float((value / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


@pytest.fixture
def videos() -> tuple[np.ndarray, np.ndarray]:
    a = make_video()
    return a, np.clip(a + np.random.default_rng(1).normal(0, 0.05, a.shape), 0, 1).astype(np.float32)


def test_psnr_agrees_with_the_formula(videos):
    a, b = videos
    expected = [20 * math.log10(1 / math.sqrt(((x.astype("f8") - y) ** 2).mean())) for x, y in zip(a, b)]
    assert psnr_per_frame(a, b) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("height", "width"), [(33, 47), (32, 64), (11, 11), (128, 15)])
def test_psnr_agrees_with_scikit_image(height, width):
    a, b = make_video(3, height, width), make_video(3, height, width, seed=5)
    expected = [peak_signal_noise_ratio(x, y, data_range=1.0) for x, y in zip(a, b)]
    assert psnr_per_frame(a, b) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("height", "width"), [(33, 47), (11, 11), (12, 31)])
def test_ssim_agrees_with_the_formula(height, width):
    a, b = make_video(2, height, width), make_video(2, height, width, seed=5)
    expected = [np.mean([ssim_by_hand(x[..., c], y[..., c]) for c in range(3)]) for x, y in zip(a, b)]
    assert ssim_per_frame(a, b) == pytest.approx(expected, abs=1e-6)


def as_images(video: np.ndarray):
    """Frames as torchmetrics takes them: float64 [F, 3, H, W]."""
    import torch

    return torch.from_numpy(video.astype(np.float64)).permute(0, 3, 1, 2)


SHAPES = [(3, 33, 47), (1, 64, 48), (2, 12, 31), (4, 13, 128)]


@pytest.mark.parametrize(("frames", "height", "width"), SHAPES)
def test_psnr_agrees_with_torchmetrics(frames, height, width):
    """Same definition, peak 1, one value per frame; torchmetrics takes its logarithms in float32: 1e-6."""
    functional = pytest.importorskip("torchmetrics.functional.image")
    a, b = make_video(frames, height, width), make_video(frames, height, width, seed=5)
    expected = functional.peak_signal_noise_ratio(
        as_images(b), as_images(a), data_range=1.0, reduction="none", dim=(1, 2, 3)
    )
    assert psnr_per_frame(a, b) == pytest.approx(expected.tolist(), rel=1e-6)


@pytest.mark.parametrize(("frames", "height", "width"), SHAPES)
def test_ssim_agrees_with_torchmetrics(frames, height, width):
    """Window 11, sigma 1.5, population covariance, K1 = 0.01, K2 = 0.03.

    torchmetrics reflects the border and counts it; Wang et al. 2004 and scikit-image count the windows that
    lie inside. On these the two agree to 1e-6.
    """
    functional = pytest.importorskip("torchmetrics.functional.image")
    a, b = make_video(frames, height, width), make_video(frames, height, width, seed=5)
    _, everywhere = functional.structural_similarity_index_measure(
        as_images(b),
        as_images(a),
        gaussian_kernel=True,
        sigma=1.5,
        kernel_size=11,
        data_range=1.0,
        k1=0.01,
        k2=0.03,
        reduction="none",
        return_full_image=True,
    )
    expected = everywhere[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))
    assert ssim_per_frame(a, b) == pytest.approx(expected.tolist(), abs=1e-6)


def test_identical_and_single_frames_agree_with_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional.image")
    a = make_video(1, 33, 47)
    assert functional.peak_signal_noise_ratio(as_images(a), as_images(a), data_range=1.0) == math.inf
    assert psnr_per_frame(a, a) == [math.inf]
    same = functional.structural_similarity_index_measure(as_images(a), as_images(a), data_range=1.0)
    assert ssim_per_frame(a, a) == pytest.approx([float(same)], abs=1e-9)
    assert compare_frames(a, a).identical


def test_identical_videos_are_named_so():
    metrics = compare_frames(make_video(), make_video())
    assert metrics.identical
    assert metrics.psnr is None
    assert metrics.ssim == pytest.approx(1.0)
    assert metrics.per_frame is not None
    assert metrics.per_frame.psnr == [None] * 5


def test_identical_frames_do_not_enter_the_mean(videos):
    a, b = videos
    b = b.copy()
    b[0] = a[0]
    metrics = compare_frames(a, b)
    assert metrics.identical_frames == 1
    assert not metrics.identical
    assert metrics.psnr == pytest.approx(np.mean(psnr_per_frame(a, b)[1:]))


def test_single_frame():
    metrics = compare_frames(make_video(1), make_video(1, seed=2))
    assert metrics.per_frame is not None
    assert len(metrics.per_frame.ssim) == 1


@pytest.mark.parametrize("metric", [psnr_per_frame, ssim_per_frame, compare_frames])
def test_what_cannot_be_compared_is_refused(metric):
    a = make_video()
    with pytest.raises(ValueError, match=r"different shapes: \(5, 33, 47, 3\) and \(4, 33, 47, 3\)"):
        metric(a, a[:4])
    broken = a.copy()
    broken[3, 0, 0, 0] = np.nan
    with pytest.raises(
        ValueError, match="the candidate video holds NaN or infinite values, first in frame 3"
    ):
        metric(a, broken)
    broken[1] = np.inf
    with pytest.raises(
        ValueError, match="the reference video holds NaN or infinite values, first in frame 1"
    ):
        metric(broken, a)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        metric(a, a * 255)
    with pytest.raises(ValueError, match=r"\[F, H, W, 3\]"):
        metric(a[..., 0], a[..., 0])


def test_ssim_needs_its_window():
    with pytest.raises(ValueError, match="11 x 11"):
        ssim_per_frame(make_video(1, 8, 8), make_video(1, 8, 8))


def test_flicker_agrees_with_numpy():
    video = make_video(6)
    expected = 255 * np.abs(np.diff(video.astype(np.float64), n=2, axis=0)).mean(axis=(1, 2, 3))
    values = flicker_per_frame(video)
    assert values[0] is None
    assert values[-1] is None
    assert values[1:-1] == pytest.approx(expected, rel=1e-5)


def test_flicker_ignores_a_fade_and_doubles_what_alternates():
    fade = np.linspace(0, 1, 9, dtype=np.float64)[:, None, None, None] * np.ones((1, 12, 12, 3))
    assert flicker_per_frame(fade)[1:-1] == pytest.approx([0.0] * 7, abs=1e-9)
    blinking = np.zeros((5, 12, 12, 3))
    blinking[1::2] = 0.1
    assert flicker_per_frame(blinking)[1:-1] == pytest.approx([2 * 0.1 * 255] * 3)


@pytest.mark.parametrize("frames", [1, 2])
def test_flicker_needs_three_frames(frames):
    assert flicker_per_frame(make_video(frames)) == [None] * frames
    metrics = compare_frames(make_video(frames), make_video(frames, seed=1))
    assert metrics.flicker_dense is None
    assert metrics.flicker_sparse is None


def test_flicker_tells_the_two_videos_apart():
    dense = make_video(5)
    sparse = dense.copy()
    sparse[2] = np.clip(sparse[2] + 0.2, 0, 1)
    metrics = compare_frames(dense, sparse)
    assert metrics.flicker_sparse > metrics.flicker_dense
    assert metrics.flicker_dense == pytest.approx(np.mean(flicker_per_frame(dense)[1:-1]))


def test_difference_is_amplified_and_clipped():
    a = np.zeros((1, 2, 2, 3), np.float32)
    assert np.allclose(amplified_difference(a, a + 0.1, 4), 0.4)
    assert np.allclose(amplified_difference(a, a + 0.5, 4), 1.0)


def test_the_order_in_memory_does_not_show():
    """To the last bit: a resumed evaluation reads frames that a whole one has in memory."""
    rng = np.random.default_rng(3)
    reference, candidate = (rng.random((3, 37, 41, 3), dtype=np.float32) for _ in range(2))
    planes = [
        np.ascontiguousarray(x.transpose(3, 0, 1, 2)).transpose(1, 2, 3, 0) for x in (reference, candidate)
    ]
    for metric in (psnr_per_frame, ssim_per_frame):
        expected = metric(reference, candidate)
        assert metric(*planes) == expected
        assert metric(reference, planes[1]) == expected
    assert flicker_per_frame(planes[0]) == flicker_per_frame(reference)
