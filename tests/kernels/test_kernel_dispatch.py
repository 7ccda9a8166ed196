"""Choice of backend, refusals, validation messages, and lazy imports."""

import subprocess
import sys

import pytest
import torch

from dit_sparse.kernels import available_backends, block_sparse_attention, dispatch, explain_backend, flash4
from dit_sparse.layout import BlockMap

BLOCKS = (32, 32)


@pytest.fixture
def call():
    q, k, v = (torch.randn(1, 64, 2, 32) for _ in range(3))
    return {"q": q, "k": k, "v": v, "block_map": BlockMap.full(1, 2, 64, 64, BLOCKS, q.device)}


def test_import_is_lazy():
    code = """
import sys, torch
had = set(sys.modules)
import dit_sparse.kernels
optional = {"triton", "flash_attn", "flash_kmeans", "diffusers"}
print(sorted(optional & (set(sys.modules) - had)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_works_without_the_optional_packages():
    code = """
import sys
for name in ("triton", "flash_attn", "flash_kmeans"):
    sys.modules[name] = None
import torch
from dit_sparse import kernels
from dit_sparse.layout import BlockMap
assert "not installed" in kernels.available_backends()["triton"]
q = torch.randn(1, 64, 2, 32)
out = kernels.block_sparse_attention(q, q, q, BlockMap.full(1, 2, 64, 64, (32, 32), q.device))
order = kernels.sort_by_label(kernels.kmeans(q, 4).labels)
assert torch.equal(kernels.restore_rows(kernels.permute_rows(q, order), order), q)
print(tuple(out.shape))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "(1, 64, 2, 32)"


def test_auto_on_cpu_is_gathered_and_says_why():
    name, reason = explain_backend("cpu", torch.float32, 64, (128, 128))
    assert name == "gathered"
    assert "triton needs a GPU" in reason
    assert "flash4 needs an NVIDIA GPU" in reason


def test_available_backends_lists_all():
    found = available_backends()
    assert list(found) == list(dispatch.BACKENDS)
    assert found["reference"] == found["gathered"] == "available"


def test_auto_prefers_the_first_that_can(monkeypatch):
    """On a GPU with everything installed: FlashAttention-4, and Triton for what it cannot do."""
    monkeypatch.setattr(dispatch, "installed", lambda module: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(flash4, "import_error", lambda: None)
    assert explain_backend("cuda", torch.bfloat16, 128, (128, 128))[0] == "flash4"
    name, reason = explain_backend("cuda", torch.float32, 128, (128, 128))
    assert name == "triton"
    assert "float16 or bfloat16" in reason
    assert explain_backend("cuda", torch.bfloat16, 128, (100, 100))[0] == "gathered"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 6))
    assert explain_backend("cuda", torch.bfloat16, 128, (128, 128))[0] == "triton"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert explain_backend("cuda", torch.bfloat16, 128, (128, 128))[0] == "gathered"


@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim", "block", "works"),
    [
        ((9, 0), torch.bfloat16, 128, (128, 128), True),
        ((9, 0), torch.float16, 40, (64, 64), True),
        ((9, 0), torch.bfloat16, 36, (128, 128), False),
        ((9, 0), torch.bfloat16, 128, (32, 128), False),
        ((9, 0), torch.bfloat16, 128, (128, 256), False),
        ((10, 0), torch.bfloat16, 128, (128, 128), False),
        ((10, 0), torch.bfloat16, 128, (256, 128), True),
        ((8, 0), torch.bfloat16, 128, (128, 128), False),
    ],
)
def test_flash4_limits(capability, dtype, head_dim, block, works):
    assert (flash4.limits(capability, dtype, head_dim, block) is None) == works


def test_unknown_impl_lists_the_choices(call):
    with pytest.raises(ValueError, match=r"unknown impl 'fast'.*auto.*gathered.*reference"):
        block_sparse_attention(**call, impl="fast")


@pytest.mark.skipif(torch.cuda.is_available(), reason="flash4 may run here")
def test_named_backend_never_falls_back(call):
    with pytest.raises(ValueError, match="impl 'flash4' cannot run here: it needs an NVIDIA GPU"):
        block_sparse_attention(**call, impl="flash4")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.randn(1, 63, 2, 32)}, "built for 64 queries and 64 keys, got q with 63"),
        ({"v": torch.randn(1, 64, 2, 16)}, r"v must match k"),
        (
            {"k": torch.randn(1, 64, 1, 32), "v": torch.randn(1, 64, 1, 32)},
            "share batch, heads and head size",
        ),
        ({"q": torch.randn(1, 64, 2, 32).half()}, "share dtype and device"),
        ({"q": torch.randn(1, 64, 32, 2).transpose(2, 3)}, "last dimension of q must be contiguous"),
        ({"q": torch.randn(64, 2, 32)}, r"q must be \[B, N, H, D\].*\(64, 2, 32\)"),
        ({"q": torch.zeros(1, 64, 2, 32, dtype=torch.int32)}, "torch.int32"),
        ({"scale": 0.0}, "scale must be a positive finite number or None, got 0.0"),
        ({"scale": float("nan")}, "got nan"),
        (
            {"block_map": BlockMap.full(1, 3, 64, 64, BLOCKS, torch.device("cpu"))},
            r"\(1, 2, 2\), got \(1, 3, 2, 2\)",
        ),
    ],
)
def test_bad_input_is_named(call, change, message):
    with pytest.raises(ValueError, match=message):
        block_sparse_attention(**{**call, **change})


def test_without_lse_a_tensor_comes_back(call):
    out = block_sparse_attention(**call)
    assert isinstance(out, torch.Tensor)
    assert torch.equal(out, block_sparse_attention(**call, return_lse=True)[0])


def test_a_broken_flash_attention_is_a_reason_not_a_crash(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn.cute", None)
    flash4.import_error.cache_clear()
    try:
        assert "does not import" in flash4.import_error()
    finally:
        flash4.import_error.cache_clear()
