"""Shared settings of the suite."""

import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Before anything imports triton (diffusers does): without a GPU its kernels run in the interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# Two cores are what continuous integration has: one for each of two workers. More threads make the tiny
# tensors here slower, not faster.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The recipes share their tiny random pipelines with the tests; the scripts are tested as modules.
for folder in ("scripts", "pipelines"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))

settings.register_profile("default", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("default")


@pytest.fixture
def single_thread():
    """One thread of torch, for tests by ``usefixtures``."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def attention_backend():
    """diffusers keeps one active kernel per process: a test that swaps it must not swap it for the next."""
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as registry

    before = registry._active_backend
    yield
    registry._active_backend = before
