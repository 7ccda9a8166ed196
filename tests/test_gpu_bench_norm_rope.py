"""The norm and RoPE benchmark on a CPU at toy shapes: what it times computes the same."""

import pytest
import torch
from gpu_bench.models import Model
from gpu_bench.norm_rope import Chain, norm_rope_rows
from gpu_bench_cpu import CPU

MODELS = {
    "wan": Model("wan", (2, 3, 5), 3, 16, 40, 2, 0.2),
    "hunyuan_video": Model("hunyuan_video", (2, 3, 5), 3, 16, 60, 1, 0.1, 7, "last"),
}


@pytest.mark.parametrize("family", MODELS)
@torch.no_grad()
def test_every_way_gives_the_same_q_and_k(family):
    chain = Chain(MODELS[family], "cpu")
    stock = chain.processor(fused=False)()
    for run in (chain.processor(fused=True), chain.kernel()):
        for ours, theirs, raw in zip(run(), stock, (chain.q, chain.k), strict=True):
            ours, theirs = ours.reshape(raw.shape), theirs.reshape(raw.shape)
            assert (ours == theirs).double().mean() > 0.99
            assert (ours == raw).double().mean() < 0.5


@pytest.mark.parametrize("family", MODELS)
def test_rows(family, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda run, **options: run)  # a compiler is not what is tested
    rows = norm_rope_rows("toy", MODELS[family], CPU)
    assert not any(row.get("note") for row in rows)
    by_kernel = {row["kernel"]: row for row in rows}
    assert len(by_kernel) == len(rows) == 8
    assert by_kernel["copy"]["of_copy"] == 1.0
    assert by_kernel["stock processor, eager"]["speedup_vs_stock"] == 1.0
