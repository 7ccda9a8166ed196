"""What a timed run tells apart, counted on real tiny pipelines of every kind of attention."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch.nn import functional

import dit_sparse
from dit_sparse.kernels import peak_memory as memory
from dit_sparse.report import generation
from dit_sparse.report.clock import Stopwatch
from dit_sparse.report.generation import timed_run
from dit_sparse.report.parts import COMPILED, NOT_ASKED, NOT_SEEN

STEPS = 2
SMALL = {"height": 48, "width": 64, "num_frames": 5, "num_inference_steps": STEPS}
FORWARDS = {
    "wan": 2 * STEPS,
    "cogvideox": STEPS,
    "hunyuan_video": 2 * STEPS,
}  # guidance: twice, or in one batch
LAYERS = 2
STOCK = functional.scaled_dot_product_attention


class Counting(Stopwatch):
    """Every interval lasts one second: sums are numbers of calls."""

    def seconds(self, start: Any, end: Any) -> float:
        assert start <= end
        return 1.0


@pytest.fixture(params=sorted(tiny.FAMILIES))
def family(request) -> str:
    return request.param


def generate(family: str, pipe: Any, **options: Any) -> generation.Run:
    inputs = tiny.FAMILIES[family][1]() | SMALL
    del inputs["output_type"]
    with torch.no_grad():
        return timed_run(pipe, inputs, seed=0, **options)


def sparse_run(family: str, pipe: Any, **options: Any) -> generation.Run:
    fields = {"density": 0.5, "dense_steps": 1, "min_tokens": 0, "block_size": 8}
    with dit_sparse.sparse_attention(pipe, "svg2", **fields) as handle:
        run = generate(family, pipe, handle=handle, **options)
        assert all("run" not in vars(runtime) for runtime in handle.runtimes)
    return run


def test_every_self_attention_is_counted_once_dense_and_sparse(family, monkeypatch):
    monkeypatch.setattr(generation, "Stopwatch", Counting)
    pipe = tiny.FAMILIES[family][0]()
    calls = LAYERS * FORWARDS[family]
    dense = generate(family, pipe, measure_parts=True)
    sparse = sparse_run(family, pipe, measure_parts=True)
    assert dense.attention_s == sparse.attention_s == calls
    assert dense.step_attention_s == sparse.step_attention_s == (calls / STEPS,) * STEPS
    assert dense.linear_s == sparse.linear_s
    assert dense.linear_s >= calls  # projections of every attention, and the feed-forward layers
    assert sparse.stats is not None
    assert len(sparse.stats.records) == calls


def test_watching_changes_nothing_and_leaves_nothing(family):
    pipe = tiny.FAMILIES[family][0]()
    plain, watched = generate(family, pipe), generate(family, pipe, measure_parts=True)
    assert np.array_equal(plain.frames, watched.frames)
    assert plain.parts_unmeasured == NOT_ASKED
    assert watched.parts_unmeasured is None
    assert functional.scaled_dot_product_attention is STOCK
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in pipe.transformer.modules()
    )
    sparse, watched_sparse = sparse_run(family, pipe), sparse_run(family, pipe, measure_parts=True)
    assert np.array_equal(sparse.frames, watched_sparse.frames)
    assert sparse.stats.density_total == watched_sparse.stats.density_total < 1


def test_parts_fit_into_the_transformer(family):
    run = generate(family, tiny.FAMILIES[family][0](), measure_parts=True)
    assert run.attention_s + run.linear_s < run.transformer_s <= run.denoise_s <= run.end_to_end_s
    assert sum(run.step_attention_s) == pytest.approx(run.attention_s)
    assert all(part < step for part, step in zip(run.step_attention_s, run.step_s))


def test_an_error_inside_puts_everything_back():
    pipe = tiny.wan_pipeline()

    def fail(*_: Any) -> None:
        raise RuntimeError("on the way")

    pipe.transformer.blocks[1].attn1.to_q.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="on the way"):
        generate("wan", pipe, measure_parts=True)
    assert functional.scaled_dot_product_attention is STOCK


def test_compiled_blocks_and_other_kernels_are_said_to_be_unmeasured(monkeypatch):
    pipe = tiny.wan_pipeline()
    pipe.transformer.blocks[0]._compiled_call_impl = pipe.transformer.blocks[0]._call_impl
    run = generate("wan", pipe, measure_parts=True)
    assert (run.attention_s, run.parts_unmeasured) == (None, COMPILED)
    pipe = tiny.wan_pipeline()
    from diffusers.models import attention_dispatch

    native = attention_dispatch._native_attention
    assert native  # stands for any kernel that does not go through torch's function
    backends = attention_dispatch._AttentionBackendRegistry._backends
    name = attention_dispatch.AttentionBackendName.NATIVE

    def other(query: Any, key: Any, value: Any, **_: Any) -> Any:
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        weights = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
        return (weights @ v).transpose(1, 2)

    monkeypatch.setitem(backends, name, other)
    run = generate("wan", pipe, measure_parts=True)
    assert (run.attention_s, run.parts_unmeasured) == (None, NOT_SEEN)
    assert run.linear_s > 0


def test_peak_memory_of_a_cpu_run_is_that_run_s_own():
    device = torch.device("cpu")
    memory.reset_peak(device)
    before = memory.peak_bytes(device)
    if before is None:
        pytest.skip("this system does not tell its peak memory")
    with mmap.mmap(-1, 64 * 2**20) as block:  # a tensor may get pages that an earlier one left resident
        block.write(b"x" * len(block))
    raised = memory.peak_bytes(device)
    assert raised >= before + 60 * 2**20
    memory.reset_peak(device)
    assert memory.peak_bytes(device) <= raised - 60 * 2**20


def test_a_system_that_does_not_tell_its_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "none")
    memory.reset_peak(torch.device("cpu"))
    assert memory.peak_bytes(torch.device("cpu")) is None
