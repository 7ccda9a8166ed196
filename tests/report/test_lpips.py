"""LPIPS against the code of the ``lpips`` package, weight files of every kind, and missing weights."""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from report_samples import make_video
from torch import nn

from dit_sparse.report import lpips_download, lpips_weights
from dit_sparse.report.lpips import LpipsAlex, lpips_per_frame
from dit_sparse.report.lpips_weights import (
    CONVOLUTION_SHAPES,
    TORCHVISION_LAYERS,
    LpipsUnavailableError,
    read_weights,
)
from dit_sparse.report.measure import compare_frames


def alexnet_features() -> nn.Sequential:
    """The layer stack of torchvision's ``alexnet().features``."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip


@pytest.fixture(scope="module")
def features() -> nn.Sequential:
    torch.manual_seed(0)
    return alexnet_features()


@pytest.fixture
def torchvision_file(tmp_path, features) -> Path:
    path = tmp_path / "alexnet.pth"
    torch.save({f"features.{name}": value for name, value in features.state_dict().items()}, path)
    return path


def flax_tree(features: nn.Sequential) -> dict:
    convolutions = {
        f"Conv_{i}": {
            "kernel": features[layer].weight.detach().permute(2, 3, 1, 0).numpy().copy(),
            "bias": features[layer].bias.detach().numpy().copy(),
        }
        for i, layer in enumerate(TORCHVISION_LAYERS)
    }
    rng = np.random.default_rng(0)
    linear = {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": rng.random((1, 1, shape[0], 1)).astype("f4")}}
        for i, shape in enumerate(CONVOLUTION_SHAPES)
    }
    return {"AlexNet_0": convolutions, **linear}


def test_agrees_with_the_lpips_package(torchvision_file, features, monkeypatch):
    pytest.importorskip("torch")
    if lpips_weights._package_folder("lpips") is None:
        pytest.skip("the lpips package is not installed")
    # The package needs torchvision only for the trunk: hand it ours.
    models = types.SimpleNamespace(alexnet=lambda pretrained=False: types.SimpleNamespace(features=features))
    for name in [name for name in sys.modules if name.partition(".")[0] in ("lpips", "torchvision")]:
        monkeypatch.delitem(sys.modules, name)
    torchvision = types.ModuleType("torchvision")
    torchvision.models = models  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    lpips = pytest.importorskip("lpips")
    reference = lpips.LPIPS(net="alex", verbose=False)
    a, b = make_video(3, 64, 49), make_video(3, 64, 49, seed=3)
    tensors = [torch.from_numpy(x).permute(0, 3, 1, 2) for x in (a, b)]
    with torch.no_grad():
        expected = reference(*tensors, normalize=True).flatten().tolist()
    assert lpips_per_frame(a, b, torchvision_file) == pytest.approx(expected, rel=1e-4)


def test_flax_checkpoint_holds_the_same_network(tmp_path, features, torchvision_file):
    path = tmp_path / "alexnet.ckpt"
    path.write_bytes(pickle.dumps(flax_tree(features)))
    weights = read_weights(path)
    for (kernel, bias), layer in zip(weights.convolutions, TORCHVISION_LAYERS):
        assert torch.equal(kernel, features[layer].weight)
        assert torch.equal(bias, features[layer].bias)
    image = torch.rand(2, 3, 40, 40)
    assert torch.all(LpipsAlex(weights)(image, image) == 0)
    assert torch.all(LpipsAlex(weights)(image, image.flip(-1)) > 0)


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "alexnet.ckpt"
    path.write_bytes(pickle.dumps({"AlexNet_0": Evil()}))
    with pytest.raises(LpipsUnavailableError, match="refusing to load"):
        read_weights(path)
    assert not (tmp_path / "ran").exists()


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(LpipsUnavailableError, match="no such file"):
        lpips_per_frame(make_video(), make_video(), tmp_path / "none.pth")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(LpipsUnavailableError, match=r"other\.pth does not hold AlexNet"):
        read_weights(tmp_path / "other.pth")


def test_without_weights_the_report_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(lpips_weights, "_package_folder", lambda name: None)
    metrics = compare_frames(make_video(), make_video(seed=1))
    assert metrics.lpips is None
    assert "--lpips-weights" in str(metrics.lpips_unavailable)
    assert metrics.psnr is not None


class Server:
    """In place of PyTorch's: sends ``content``, in pieces."""

    def __init__(self, content: bytes) -> None:
        self.stream = io.BytesIO(content)
        self.asked: list[str] = []

    def __call__(self, url, timeout):
        self.asked.append(url)
        return contextlib.nullcontext(self.stream)


@pytest.fixture
def server(tmp_path, torchvision_file, monkeypatch) -> Server:
    """A network that holds AlexNet, and an empty torch cache."""
    content = torchvision_file.read_bytes()
    found = Server(content)
    monkeypatch.setattr(lpips_download, "urlopen", found)
    monkeypatch.setattr(lpips_download, "SHA256_START", hashlib.sha256(content).hexdigest()[:8])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(lpips_weights, "_package_folder", lambda name: tmp_path if name == "lpips" else None)
    linear = tuple(torch.ones(shape[0]) for shape in CONVOLUTION_SHAPES)
    monkeypatch.setattr(lpips_weights, "_linear_of_lpips_package", lambda: linear)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return found


def test_weights_are_downloaded_once_into_the_cache(server, tmp_path):
    assert compare_frames(make_video(), make_video(seed=1)).lpips is not None
    assert compare_frames(make_video(), make_video(seed=2)).lpips is not None
    assert server.asked == [lpips_download.URL]
    assert [p.name for p in (tmp_path / "hub" / "checkpoints").iterdir()] == [lpips_weights.HUB_FILE]


def test_offline_means_no_request(server, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in str(compare_frames(make_video(), make_video(seed=1)).lpips_unavailable)
    assert server.asked == []


def test_a_wrong_or_broken_download_leaves_nothing(server, tmp_path, monkeypatch):
    monkeypatch.setattr(lpips_download, "SHA256_START", "00000000")
    assert "sent something else" in str(compare_frames(make_video(), make_video(seed=1)).lpips_unavailable)

    def unreachable(url, timeout):
        raise OSError("no route to host")

    monkeypatch.setattr(lpips_download, "urlopen", unreachable)
    assert "sent something else" in str(compare_frames(make_video(), make_video(seed=1)).lpips_unavailable)
    lpips_weights._fetched.cache_clear()  # one try per process
    assert "no route to host" in str(compare_frames(make_video(), make_video(seed=1)).lpips_unavailable)
    assert list((tmp_path / "hub").rglob("*.pth")) == []


def test_looking_around_downloads_nothing(server):
    with pytest.raises(LpipsUnavailableError, match="no AlexNet weights found"):
        lpips_weights.find_weights()
    assert server.asked == []


def test_torch_cache_is_found(tmp_path, features, monkeypatch):
    if lpips_weights._package_folder("lpips") is None:
        pytest.skip("the lpips package is not installed")
    cache = tmp_path / "checkpoints"
    cache.mkdir()
    state = {f"features.{name}": value for name, value in features.state_dict().items()}
    torch.save(state, cache / lpips_weights.HUB_FILE)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert compare_frames(make_video(), make_video(seed=1)).lpips is not None
