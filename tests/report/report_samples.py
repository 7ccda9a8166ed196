"""Synthetic runs: small videos with texture, and records as the engine leaves them."""

from __future__ import annotations

import numpy as np
import torch

from dit_sparse.layout import Site, SiteRecord
from dit_sparse.report.compare import Context, Pair
from dit_sparse.report.generation import Run
from dit_sparse.report.recall import CallRecall, recall_section
from dit_sparse.report.schema import ModelInfo, Recall
from dit_sparse.stats import Stats

SCRIPT_PROMPT = "a <script>alert('x')</script> & \"quoted\" circle"


def make_video(frames: int = 5, height: int = 33, width: int = 47, seed: int = 0) -> np.ndarray:
    """A moving gradient with noise, float32 [F, H, W, 3] in [0, 1]."""
    rng = np.random.default_rng(seed)
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    base = np.stack([(x + 3 * t) % width / width, y / height, (x + y) % 16 / 16], axis=-1)
    return np.clip(0.9 * base + 0.1 * rng.random(base.shape), 0, 1).astype(np.float32)


def make_stats(layers: int = 3, steps: int = 4) -> Stats:
    """Step 0 dense by schedule, layer 0 of the last step dense unplanned, the rest sparse."""
    records = []
    for step in range(steps):
        for layer in range(layers):
            for branch in ("conditional", "unconditional"):
                site = Site(layer, step, steps, branch)  # type: ignore[arg-type]
                reason = "dense_step" if step == 0 else None
                if (step, layer) == (steps - 1, 0):
                    reason = "attention_mask"
                density = 1.0 if reason else 0.25 if branch == "conditional" else 0.35
                heads = None if reason else torch.tensor([density - 0.05, density + 0.05])
                records.append(SiteRecord(site, density, reason, "dense" if reason else "gathered", heads))
    return Stats(tuple(records), state_bytes=1234)


def make_pair(*, compare: bool = True, identical: bool = False, floor: bool = True, frames: int = 5) -> Pair:
    """A dense and a sparse run that never happened, and the second dense one of the floor."""
    times = {
        "end_to_end_s": 3.0,
        "denoise_s": 2.0,
        "transformer_s": 1.5,
        "step_s": (0.5, 0.5, 0.5, 0.5),
        "attention_s": 0.6,
        "linear_s": 0.5,
        "step_transformer_s": (0.375, 0.375, 0.375, 0.375),
        "step_attention_s": (0.3, 0.1, 0.1, 0.1),
        "step_linear_s": (0.05, 0.15, 0.15, 0.15),
    }
    stages = {
        "order": (0.06, (0.0, 0.02, 0.02, 0.02)),
        "select": (0.03, (0.0, 0.01, 0.01, 0.01)),
        "attend": (0.21, (0.0, 0.07, 0.07, 0.07)),
        "dense": (0.3, (0.3, 0.0, 0.0, 0.0)),
    }
    slower = {"end_to_end_s": 6.0, "denoise_s": 5.0, "transformer_s": 4.5, "attention_s": 3.0}
    dense = Run(frames=make_video(frames), **{**times, **slower})
    apart = np.linspace(0.01, 0.03, frames, dtype=np.float32)[:, None, None, None]
    video = dense.frames if identical else np.clip(dense.frames + apart, 0, 1)
    sparse = Run(frames=video, stats=make_stats(), peak_memory_bytes=3 * 2**30, stages=stages, **times)
    second = Run(frames=np.clip(dense.frames + 1e-3, 0, 1), stats=make_stats(), **times)
    method = {"method": "svg2", "density": 0.25}
    return Pair(
        sparse,
        dense if compare else None,
        method,
        torch.device("cpu"),
        warmup=False,
        floor=second if compare and floor else None,
        recall=make_recall(),
        recall_unmeasured=None,
    )


def make_recall() -> Recall | None:
    """Two layers whose heads keep 70 and 90, and 80 and 100 percent, one of two steps of each."""
    calls = [
        CallRecall(Site(layer, step, 4), torch.tensor(heads))
        for layer, step, heads in ((1, 2, [0.7, 0.9]), (2, 3, [0.8, 1.0]))
    ]
    return recall_section(calls, rows=32)


def make_context(prompt: str = SCRIPT_PROMPT) -> Context:
    """Context with markup in every text a user controls."""
    model = ModelInfo(
        name="models/<b>bold</b>",
        pipeline="WanPipeline",
        denoisers={"transformer": "X"},
        config_sha256="0" * 64,
    )
    return Context(
        prompt, seed=7, model=model, command=f"dit-sparse generate '{prompt}'", config={"method": "svg2"}
    )
