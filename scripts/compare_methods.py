"""Quality of methods and densities against dense attention on the embedded model: mean PSNR and SSIM with
intervals.

    python scripts/compare_methods.py --prompts 16 --json quality.json
    python scripts/compare_methods.py --methods draft svg2:score=mean_key,correction=pooled --densities 0.25

A method is a name, or a name with fields as above.
Same prompts, seeds and dense guard for all; metrics on raw frames. The floor is dense attention against
itself in other arithmetic: SDPA's math kernel against its default one. Rows come out as they are measured.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanPipeline
from torch.nn.attention import SDPBackend, sdpa_kernel

import dit_sparse
from dit_sparse.cli.options import parse_settings
from dit_sparse.embedded import DEFAULTS, heldout_prompts, tiny_wan_path
from dit_sparse.report.environment import describe_device, package_versions
from dit_sparse.report.generation import timed_run
from dit_sparse.report.metrics import psnr_per_frame, ssim_per_frame


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=dit_sparse.list_methods())
    parser.add_argument("--floor", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--densities", nargs="+", type=float, default=[0.5, 0.25, 0.1])
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--frames", type=int, default=DEFAULTS["num_frames"])
    parser.add_argument("--size", type=int, default=DEFAULTS["height"])
    parser.add_argument("--steps", type=int, default=DEFAULTS["steps"])
    parser.add_argument("--dense-steps", type=float, default=0.2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of its 95% interval (normal approximation)."""
    mean = float(np.mean(values))
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return mean, 1.96 * spread / math.sqrt(len(values))


def _mean(per_frame: list[float]) -> float:
    """Mean over frames; identical frames count as 100 dB."""
    return float(np.mean(np.minimum(per_frame, 100.0)))


def main() -> None:
    """Measure and print the table."""
    args = parse()
    dtype = torch.bfloat16 if args.device.startswith("cuda") else torch.float32
    pipe = WanPipeline.from_pretrained(tiny_wan_path(), dtype={"default": dtype, "vae": torch.float32})
    pipe.to(args.device)
    prompts = heldout_prompts()[: args.prompts]
    shape = {"height": args.size, "width": args.size, "num_frames": args.frames}
    call: dict[str, Any] = {
        **shape,
        "num_inference_steps": args.steps,
        "guidance_scale": DEFAULTS["guidance"],
    }

    def generate() -> list[Any]:
        return [timed_run(pipe, {"prompt": text, **call}, seed=i) for i, text in enumerate(prompts)]

    def row(name: str, density: float | None, runs: list[Any], total: float | None) -> dict[str, Any]:
        pairs = list(zip(dense, runs, strict=True))
        value, width = interval([_mean(psnr_per_frame(a.frames, b.frames)) for a, b in pairs])
        similarity, similarity_width = interval([_mean(ssim_per_frame(a.frames, b.frames)) for a, b in pairs])
        seconds = float(np.median([run.denoise_s for run in runs]))
        print(
            f"{name:40s} {density or 1.0:7.2f} {total or 1.0:7.3f} {value:7.2f} +- {width:4.2f} "
            f"{similarity:7.4f} +- {similarity_width:6.4f} {seconds:8.2f}",
            flush=True,
        )
        return {
            "method": name, "density": density, "density_total": total, "psnr": value, "psnr_95": width,
            "ssim": similarity, "ssim_95": similarity_width, "denoise_s": seconds,
        }  # fmt: skip

    timed_run(pipe, {"prompt": prompts[0], **call}, seed=0)  # warm-up: kernels are tuned at their first use
    dense = generate()
    print(
        f"tiny-wan {args.frames}x{args.size}x{args.size}, {args.steps} steps, {len(prompts)} prompts, {dtype}"
    )
    print(f"{'method':40s} density   total    PSNR           SSIM             seconds")
    rows = []
    if args.floor:
        with sdpa_kernel(SDPBackend.MATH):
            rows.append(row("dense floor", None, generate(), None))
        rows.append(row("dense again", None, generate(), None))
    for spec in args.methods:
        method, _, settings = spec.partition(":")
        for density in args.densities:
            fields = {"density": density, "dense_steps": args.dense_steps, "dense_layers": []}
            fields |= parse_settings(settings.split(",") if settings else [])
            handle = pipe.enable_sparse_attention(method, **fields)
            runs = generate()
            rows.append(row(spec, density, runs, handle.stats().density_total))
            pipe.disable_sparse_attention()
    if args.json:
        header = {"device": describe_device(pipe.device).model_dump(), "versions": package_versions()}
        args.json.write_text(json.dumps({**header, "call": call, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
