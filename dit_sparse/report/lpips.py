"""LPIPS with the AlexNet network (Zhang et al. 2018, arXiv 1801.03924, version 0.1) in plain torch.

Written out here because the ``lpips`` package imports torchvision, which not every build of torch can.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from dit_sparse.report.lpips_weights import LpipsUnavailableError, LpipsWeights, find_weights
from dit_sparse.report.metrics import Frames, check_frames

NETWORK = "AlexNet, LPIPS 0.1"
MIN_SIDE = 32  # below, the last feature maps vanish
STRIDES = (4, 1, 1, 1, 1)
PADDINGS = (2, 2, 1, 1, 1)
POOL_BEFORE = (1, 2)  # 3 x 3 max pooling of stride 2 stands before these convolutions
EPSILON = 1e-10
FRAMES_PER_BATCH = 8


class LpipsAlex(nn.Module):
    """Distance between images as AlexNet sees them; 0 for identical ones.

    Mechanism: features after each of the five ReLUs are scaled to unit length over channels; their squared
    differences are weighted by learned linear layers, averaged over space and summed over layers.
    """

    def __init__(self, weights: LpipsWeights) -> None:
        super().__init__()
        for i, (kernel, bias) in enumerate(weights.convolutions):
            self.register_buffer(f"kernel{i}", kernel)
            self.register_buffer(f"bias{i}", bias)
            self.register_buffer(f"linear{i}", weights.linear[i])
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    def features(self, images: Tensor) -> list[Tensor]:
        """The five ReLU outputs for images ``[N, 3, H, W]`` in [0, 1]."""
        x = (images * 2 - 1 - self.get_buffer("shift")) / self.get_buffer("scale")
        outputs = []
        for i, (stride, padding) in enumerate(zip(STRIDES, PADDINGS)):
            if i in POOL_BEFORE:
                x = functional.max_pool2d(x, kernel_size=3, stride=2)
            x = functional.conv2d(
                x, self.get_buffer(f"kernel{i}"), self.get_buffer(f"bias{i}"), stride, padding
            ).relu()
            outputs.append(x)
        return outputs

    def forward(self, reference: Tensor, candidate: Tensor) -> Tensor:
        """Distances ``[N]`` between images ``[N, 3, H, W]`` in [0, 1]."""
        total = reference.new_zeros(len(reference))
        for i, (a, b) in enumerate(zip(self.features(reference), self.features(candidate))):
            difference = (_unit(a) - _unit(b)).square()
            total = total + torch.einsum("nchw,c->nhw", difference, self.get_buffer(f"linear{i}")).mean(
                dim=(1, 2)
            )
        return total


def _unit(features: Tensor) -> Tensor:
    return features / (features.norm(dim=1, keepdim=True) + EPSILON)


@torch.no_grad()
def lpips_per_frame(reference: Frames, candidate: Frames, weights: Path | None = None) -> list[float]:
    """LPIPS-Alex of every frame; lower is better.

    Args:
        reference, candidate: float ``[F, H, W, 3]`` in [0, 1].
        weights: AlexNet weight file; None looks where ``lpips_weights.find_weights`` says.

    Raises:
        LpipsUnavailableError: when no weights can be had or the frames are too small.
        ValueError: as :func:`~dit_sparse.report.metrics.check_frames`.
    """
    check_frames(reference, candidate)
    if min(reference.shape[1:3]) < MIN_SIDE:
        raise LpipsUnavailableError(f"LPIPS needs frames of at least {MIN_SIDE} x {MIN_SIDE} pixels")
    network = LpipsAlex(find_weights(weights, fetch=True))
    distances: list[float] = []
    for start in range(0, len(reference), FRAMES_PER_BATCH):
        batch = slice(start, start + FRAMES_PER_BATCH)
        a, b = (torch.from_numpy(x[batch]).float().permute(0, 3, 1, 2) for x in (reference, candidate))
        distances += network(a, b).tolist()
    return distances
