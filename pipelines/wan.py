"""Wan 2.1 text to video with sparse attention, beside the dense run, with a report.

python pipelines/wan.py                    # Wan2.1-T2V-1.3B, 832x480, 81 frames; one GPU with 16 GB
python pipelines/wan.py --model Wan-AI/Wan2.1-T2V-14B-Diffusers --height 720 --width 1280
python pipelines/wan.py --tiny             # random weights, any machine: shows that it runs, not how it looks
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline

from dit_sparse.report.compare import Context, generate_pair, write_comparison
from dit_sparse.report.environment import describe_model

PROMPT = (
    "Two anthropomorphic cats in comfy boxing gear and bright gloves fight intensely on a spotlighted stage."
)
NEGATIVE = (
    "worst quality, low quality, JPEG artifacts, static, blurred details, subtitles, deformed, still picture"
)


def main() -> None:
    """Generate dense and sparse from one seed and write the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", default="mosaic")
    parser.add_argument("--density", type=float, default=0.25)
    parser.add_argument("--output", type=Path, default=Path("outputs/wan"))
    parser.add_argument("--tiny", action="store_true", help="random weights at a tiny size")
    args = parser.parse_args()

    # The dense guard of the papers: the first fifth of the steps stays dense.
    sparse = {"method": args.method, "density": args.density, "dense_steps": 0.2}
    call = {"height": args.height, "width": args.width, "num_frames": args.frames, "guidance_scale": 5.0}
    if args.tiny:
        from tiny import wan_inputs, wan_pipeline

        pipe = wan_pipeline()
        call |= {k: v for k, v in wan_inputs().items() if k != "output_type"}
        sparse |= {"min_tokens": 0, "block_size": 16}
    else:
        # The autoencoder stays in float32, as its authors publish it; flow_shift 3 is theirs for 480p, 5 for
        # 720p.
        vae = AutoencoderKLWan.from_pretrained(args.model, subfolder="vae", dtype=torch.float32)
        pipe = WanPipeline.from_pretrained(args.model, vae=vae, dtype=torch.bfloat16)
        shift = 5.0 if args.height >= 720 else 3.0
        pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, flow_shift=shift)
        pipe.enable_model_cpu_offload()
        call |= {"prompt": args.prompt, "negative_prompt": NEGATIVE, "num_inference_steps": args.steps}

    pair = generate_pair(pipe, call, sparse, seed=args.seed)
    context = Context(
        args.prompt, args.seed, describe_model(pipe, "tiny" if args.tiny else args.model), config=sparse
    )
    write_comparison(args.output, pair, context, fps=16)
    print(args.output / "report.html")


if __name__ == "__main__":
    main()
