"""HunyuanVideo text to video with sparse attention, beside the dense run, with a report.

python pipelines/hunyuan_video.py          # HunyuanVideo, 1280x720, 129 frames; one GPU with 80 GB
python pipelines/hunyuan_video.py --height 544 --width 960 --frames 61
python pipelines/hunyuan_video.py --tiny   # random weights, any machine: shows that it runs, not how it looks
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import HunyuanVideoPipeline, HunyuanVideoTransformer3DModel

from dit_sparse.report.compare import Context, generate_pair, write_comparison
from dit_sparse.report.environment import describe_model

PROMPT = "A cat walks on the grass, realistic style."


def main() -> None:
    """Generate dense and sparse from one seed and write the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="hunyuanvideo-community/HunyuanVideo")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--frames", type=int, default=129)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--method", default="mosaic")
    parser.add_argument("--density", type=float, default=0.25)
    parser.add_argument("--output", type=Path, default=Path("outputs/hunyuan_video"))
    parser.add_argument("--tiny", action="store_true", help="random weights at a tiny size")
    args = parser.parse_args()

    # The dense guard of the papers: the first tenth of the steps stays dense.
    sparse = {"method": args.method, "density": args.density, "dense_steps": 0.1}
    call = {"height": args.height, "width": args.width, "num_frames": args.frames, "guidance_scale": 6.0}
    if args.tiny:
        from tiny import hunyuan_video_inputs, hunyuan_video_pipeline

        pipe = hunyuan_video_pipeline()
        call |= {k: v for k, v in hunyuan_video_inputs().items() if k != "output_type"}
        sparse |= {"min_tokens": 0, "block_size": 16}
    else:
        # The transformer in bfloat16, the rest in float16, as its authors publish it.
        transformer = HunyuanVideoTransformer3DModel.from_pretrained(
            args.model, subfolder="transformer", dtype=torch.bfloat16
        )
        pipe = HunyuanVideoPipeline.from_pretrained(args.model, transformer=transformer, dtype=torch.float16)
        pipe.vae.enable_tiling()
        pipe.enable_model_cpu_offload()
        call |= {"prompt": args.prompt, "num_inference_steps": args.steps}

    pair = generate_pair(pipe, call, sparse, seed=args.seed)
    context = Context(
        args.prompt, args.seed, describe_model(pipe, "tiny" if args.tiny else args.model), config=sparse
    )
    write_comparison(args.output, pair, context, fps=15)
    print(args.output / "report.html")


if __name__ == "__main__":
    main()
