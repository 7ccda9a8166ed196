"""The floor: a second dense run by another kernel, close to the first and never the same computation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch

from dit_sparse.report.compare import measure
from dit_sparse.report.floor import NOT_ASKED, WITHOUT_DENSE, second_kernel
from dit_sparse.report.pair import Pair, generate_pair

SPARSE = {"method": "svg2", "density": 0.3, "dense_steps": 1, "min_tokens": 0, "block_size": 8}


def pair(family: str = "wan", **options: Any) -> Pair:
    make, inputs = tiny.FAMILIES[family]
    call = {**inputs(), "height": 48, "width": 64, "num_frames": 5, "num_inference_steps": 3}
    del call["output_type"]
    with torch.no_grad():
        return generate_pair(make(), call, SPARSE, seed=0, **options)


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_the_floor_is_dense_by_another_kernel(family):
    made = pair(family, floor=True)
    assert made.floor is not None and made.dense is not None
    assert made.floor.stats.density_total == 1.0
    assert made.floor.stats.dense_sites == {}  # every call went through the block-sparse kernel
    assert made.floor.kernel == "reference" != made.sparse.kernel
    assert np.abs(made.floor.frames - made.dense.frames).max() < 1e-3
    assert np.abs(made.floor.frames - made.dense.frames).max() > 0  # not the same code twice
    assert np.abs(made.sparse.frames - made.dense.frames).max() > 1e-3


def test_the_floor_reaches_the_report_or_the_reason_why_not():
    with_floor = measure(pair(floor=True))
    assert with_floor.floor is not None
    assert with_floor.floor_unmeasured is None
    assert with_floor.floor.psnr > with_floor.psnr + 20
    assert with_floor.floor.kernel == "reference"
    assert with_floor.floor.denoise_s > 0
    assert measure(pair()).floor_unmeasured == NOT_ASKED
    assert measure(pair(compare=False)).floor_unmeasured == WITHOUT_DENSE


def test_a_floor_needs_the_dense_run():
    with pytest.raises(ValueError, match="--compare"):
        pair(compare=False, floor=True)


@pytest.mark.parametrize(
    ("used", "device", "backend"),
    [
        ("gathered", "cpu", "reference"),
        ("reference", "cpu", "reference"),
        ("triton", "cuda", "triton"),
        ("gathered", "cuda", "gathered"),
        ("flash4+triton", "cuda", "auto"),
        ("dense", "cpu", "auto"),
    ],
)
def test_the_second_kernel_is_the_sparse_run_s_own_where_that_differs_from_torch_s(used, device, backend):
    assert second_kernel(used, torch.device(device)) == backend
